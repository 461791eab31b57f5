"""What training renders: from the right material, aligned to the sample, with true labels, the same every time."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import signal

from training.data.audience import draw_audience
from training.data.material import HOLDOUT, SAMPLE_RATE, Material, allowed
from training.data.recorder import automatic_gain, recorder_gain
from training.data.responses import draw_place, early_part
from training.data.scenes import CONDITIONS, Scene, SceneRenderer, main
from training.rooms import energy_ratio_db, t20_s

ROOT = Path(__file__).parents[2]
SECONDS = 2.5


@pytest.fixture(scope="module")
def opened(material: Path) -> Material:
    return Material.open(material)


@pytest.fixture(scope="module")
def render(opened: Material) -> SceneRenderer:
    return SceneRenderer(opened, max_recordings=3, seed=5, seconds=SECONDS)


@pytest.fixture(scope="module")
def scenes(render: SceneRenderer) -> list[Scene]:
    return [render(row) for row in range(36)]


def test_material_is_what_training_may_use(opened: Material) -> None:
    found = {(sound.kind, sound.group) for sound in opened.sounds}
    assert {group for kind, group in found if kind == "music"} == {"train"}
    voices = {group for kind, group in found if kind in ("singing", "song", "speech")}
    # Not the test split's, not what may not be used, and no chant without highs.
    assert voices == {"lead.flac", "song.flac", "talk.flac"}
    assert {group for kind, group in found if kind in ("applause", "crowd")} == {
        "crowd/train_applause.flac",
        "crowd/train_crowd.flac",
    }
    assert {room.space for room in opened.rooms} == {"hall", "club"}
    with pytest.raises(ValueError, match="training.data.material"):
        Material.open(Path("nowhere"))


@pytest.mark.parametrize(
    ("licence", "is_allowed"),
    [("CC0", True), ("GPL-2+", True), ("CC BY-NC 3.0", False), ("GPL-3+", False), ("GPL-3 or CC-BY-3.0", True)],
)
def test_licences(licence: str, is_allowed: bool) -> None:
    assert allowed(licence) == is_allowed


def test_nothing_is_held_out_twice_or_of_two_splits() -> None:
    for kind in ("rir_files", "crowd_files", "voice_files"):
        assert len(HOLDOUT[kind]) == len(set(HOLDOUT[kind])) > 0
    assert not set(HOLDOUT["music_packages"]["test"]) & set(HOLDOUT["music_packages"]["validation"])


def test_a_scene_is_a_function_of_seed_and_row(render: SceneRenderer, material: Path) -> None:
    code = (
        "import hashlib, sys; from pathlib import Path\n"
        "from training.data.material import Material; from training.data.scenes import SceneRenderer\n"
        f"scene = SceneRenderer(Material.open(Path(sys.argv[1])), 3, 5, {SECONDS})(3)\n"
        "print(hashlib.sha256(scene.recordings[0].tobytes() + scene.target.tobytes()).hexdigest())"
    )
    import hashlib

    scene = render(3)
    mine = hashlib.sha256(scene.recordings[0].tobytes() + scene.target.tobytes()).hexdigest()
    done = subprocess.run([sys.executable, "-c", code, str(material)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == mine, done.stderr
    assert not np.array_equal(render(4).recordings[0][:1], scene.recordings[0][:1])


def test_scenes_are_what_they_say(scenes: list[Scene]) -> None:
    seen = []
    for scene in scenes:
        condition = scene.recipe["condition"]
        seen.append(condition)
        first, samples = scene.recordings[0], round(SECONDS * SAMPLE_RATE)
        assert first.shape == scene.target.shape == scene.dry.shape and first.shape[1] == samples
        assert first.dtype == scene.target.dtype == np.float32
        assert all(np.isfinite(part).all() and part.any() for part in (*scene.recordings, scene.target))
        assert math.isnan(scene.labels["rt60_s"]) == (condition not in ("room", "both", "phone"))
        assert math.isnan(scene.labels["snr_db"]) == (condition not in ("audience", "both", "phone"))
        if condition == "alone":
            np.testing.assert_array_equal(first, scene.target)
        json.dumps(scene.recipe)
        if condition in ("audience", "clean") and "codec" not in scene.recipe["recorder"]:
            # The target is in the recording, at its place and its level.
            lags = np.arange(-30, 31)
            middle = slice(SAMPLE_RATE // 2, 3 * SAMPLE_RATE // 2)
            found = [float(np.dot(first[0, middle], np.roll(scene.target[0], lag)[middle])) for lag in lags]
            if scene.labels["snr_db"] > 3 or condition == "clean":
                assert lags[int(np.argmax(found))] == 0
    assert {"audience", "room", "both"} <= set(seen) <= set(CONDITIONS)


def test_the_audience_is_as_loud_as_the_label_says(scenes: list[Scene]) -> None:
    """What the recorder adds beside, it adds below; without saturation, gain and codec the rest is the audience."""
    checked = 0
    for scene in scenes:
        recorder = scene.recipe["recorder"]
        added = {"agc", "drive_db", "clip_db", "codec", "hum_db"} & set(recorder)
        if scene.recipe["condition"] != "audience" or added:
            continue
        rest = scene.recordings[0] - scene.target
        snr_db = 10 * np.log10(np.mean(scene.target**2) / np.mean(rest**2))
        if recorder.get("hiss_db", -99) < -scene.labels["snr_db"] - 15:
            assert snr_db == pytest.approx(scene.labels["snr_db"], abs=0.5)
            checked += 1
    assert checked


def test_places_have_the_measures_that_they_are_said_to_have(opened: Material) -> None:
    longer = 0
    for seed in range(24):
        place = draw_place(np.random.default_rng(seed), opened, 4, measured_share=0.5)
        assert place.responses.shape[0] == 4
        first = place.responses[0].astype(np.float64)
        assert t20_s(first, SAMPLE_RATE) == pytest.approx(place.rt60_s, rel=1e-3)
        assert energy_ratio_db(first, SAMPLE_RATE, 0.0025) == pytest.approx(place.drr_db, abs=1e-6)
        assert np.argmax(np.abs(first[:100])) == 0
        if place.recipe["kind"] == "generated":
            assert place.rt60_s == pytest.approx(place.recipe["rt60_s"], rel=0.8)
            longer += place.rt60_s > 1
            # Neighbours share their lows, and not their highs.
            late = place.responses[:2, SAMPLE_RATE // 50 : SAMPLE_RATE // 4]
            frequencies, coherence = signal.coherence(late[0], late[1], SAMPLE_RATE, nperseg=512)
            assert coherence[1] > coherence[frequencies > 5000].mean()
    assert longer >= 3


def test_the_early_part_is_the_first_50_ms() -> None:
    response = np.ones((1, SAMPLE_RATE), np.float32)
    early = early_part(response)
    assert (early[:, : round(0.05 * SAMPLE_RATE)] == 1).all()
    assert early.shape[1] == round(0.05 * SAMPLE_RATE) + round(0.005 * SAMPLE_RATE)
    assert early[0, -1] < 1e-3


def test_the_recorders_equaliser_against_filters_formulas() -> None:
    frequencies = np.array([50.0, 100.0, 1000.0, 3000.0, 16000.0])
    recorder = {"spread_db": 0.0, "tilt_db": 0.0, "low_cut_hz": 100.0, "order": 2}
    butterworth = np.abs(signal.freqs(*signal.butter(2, 100.0, "high", analog=True), worN=frequencies)[1])
    found = recorder_gain(recorder, np.random.default_rng(0), frequencies)
    np.testing.assert_allclose(found, butterworth, rtol=1e-4)
    presence = {"spread_db": 0.0, "tilt_db": 0.0, "presence_hz": 3000.0, "presence_db": 6.0}
    assert 20 * np.log10(recorder_gain(presence, np.random.default_rng(0), frequencies)[3]) == pytest.approx(6.0, 1e-3)


def test_automatic_gain_brings_levels_nearer() -> None:
    """A step of 20 dB at a ratio of 4: 5 dB are left."""
    level = np.where(np.arange(8 * SAMPLE_RATE) < 4 * SAMPLE_RATE, 0.01, 0.1)
    noise = np.random.default_rng(0).standard_normal((1, len(level))) * level
    gain = automatic_gain(noise.astype(np.float32), 4.0, 0.01, 0.2)
    controlled = noise[0] * gain
    before, after = controlled[3 * SAMPLE_RATE : 4 * SAMPLE_RATE], controlled[6 * SAMPLE_RATE :]
    assert 20 * np.log10(after.std() / before.std()) == pytest.approx(5.0, abs=1.5)


def test_near_people_differ_from_microphone_to_microphone(opened: Material) -> None:
    correlations = []
    for seed in range(16):
        audience, recipe = draw_audience(np.random.default_rng(seed), opened, 2, 3 * SAMPLE_RATE)
        assert np.sqrt(np.mean(audience**2)) == pytest.approx(1.0, rel=1e-3)
        if len(recipe["audience"]) == 1:
            correlations.append((recipe["audience"][0]["near"], np.corrcoef(audience)[0, 1]))
    near, far = ([c for n, c in correlations if low <= n < high] for low, high in ((1.2, 1.6), (0, 0.4)))
    assert np.mean(near) < 0.3 < 0.8 < np.mean(far)


def test_the_command_writes_scenes_to_listen_to(material: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("training.data.scenes.SECONDS", 1.0)
    main(["--material", str(material), "--count", "2", "--out", str(tmp_path)])
    assert {path.name.split("-")[0] for path in tmp_path.glob("*-target.flac")} == {"00000", "00001"}
    assert json.loads((tmp_path / "00000.json").read_text())["condition"] in CONDITIONS
