"""What training renders: from the right material, aligned to the sample, with true labels, the same every time."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import signal

from training.data.audience import draw_audience
from training.data.material import CURVE_HZ, HOLDOUT, SAMPLE_RATE, Material, allowed, third_octaves_db
from training.data.recorder import automatic_gain, gain_at, recorder_curve_db
from training.data.responses import Place, draw_place, early_part
from training.data.rooms import energy_ratio_db, t20_s
from training.data.scenes import (
    CONDITIONS,
    MAX_DRIFT_PPM,
    SEVERAL,
    WITH_PLACE,
    Scene,
    SceneRenderer,
    draw_layout,
    main,
)

ROOT = Path(__file__).parents[3]
SECONDS = 2.5


@pytest.fixture(scope="module")
def opened(material: Path) -> Material:
    return Material.open(material)


@pytest.fixture(scope="module")
def render(opened: Material) -> SceneRenderer:
    return SceneRenderer(opened, max_recordings=3, seed=5, seconds=SECONDS)


@pytest.fixture(scope="module")
def scenes(render: SceneRenderer) -> list[Scene]:
    return [render(row) for row in range(30)]


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
    assert [hall.kind for hall in opened.halls] == ["simulated"] * 2
    assert {curve.name for curve in opened.curves} == {"device/box.wav", "device/tape.wav"}
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


def test_conditions_channels_and_recordings_have_their_shares() -> None:
    drawn = [draw_layout(np.random.default_rng([1, row]), 2) for row in range(4000)]
    conditions, channels, counts = zip(*drawn, strict=True)
    for condition, share in CONDITIONS.items():
        assert conditions.count(condition) / len(drawn) == pytest.approx(share, abs=0.02)
    assert sum(CONDITIONS.values()) == pytest.approx(1.0)
    assert channels.count(2) / len(drawn) == pytest.approx(0.65, abs=0.02)
    assert counts.count(2) / len(drawn) == pytest.approx(SEVERAL, abs=0.02)
    assert {condition for condition, _, count in drawn if count > 1} == set(WITH_PLACE)


def test_further_recordings_are_nearly_aligned(scenes: list[Scene]) -> None:
    several = [scene for scene in scenes if len(scene.recordings) > 1]
    assert several
    for scene in several:
        assert len(scene.recipe["other_recorders"]) == len(scene.recordings) - 1
        for other in scene.recipe["other_recorders"]:
            assert abs(other["offset_s"]) <= 0.01 and abs(other["drift_ppm"]) <= MAX_DRIFT_PPM


def test_a_room_leaves_the_target_where_the_recording_is(render: SceneRenderer) -> None:
    """Generalised cross-correlation, which the room's own spectrum does not smear."""
    checked = 0
    for row in [row for row in range(80) if draw_layout(np.random.default_rng([5, row]), 3)[0] == "room"][:14]:
        scene = render(row)
        # Zero-phase recorders leave the time alone; with a weak direct sound a reflection may be the stronger.
        if scene.labels["drr_db"] < -3 or scene.recipe["source"]["stereo"]:
            continue
        size = 2 * scene.target.shape[1]
        cross = np.fft.rfft(scene.recordings[0][0], size) * np.conj(np.fft.rfft(scene.target[0], size))
        correlation = np.fft.irfft(cross / (np.abs(cross) + 1e-9 * np.abs(cross).max()), size)
        assert np.argmax(correlation) == 0
        checked += 1
    assert checked >= 4


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


@pytest.fixture(scope="module")
def places(opened: Material) -> list[Place]:
    return [draw_place(np.random.default_rng(seed), opened, 4) for seed in range(60)]


def test_places_have_the_measures_that_they_are_said_to_have(places: list[Place]) -> None:
    kinds = [place.recipe["kind"] for place in places]
    for place in places:
        assert place.responses.shape[0] == 4 and place.across.shape == (2, place.responses.shape[1])
        first = place.responses[0].astype(np.float64)
        assert t20_s(first, SAMPLE_RATE) == pytest.approx(place.rt60_s, rel=1e-3)
        assert energy_ratio_db(first, SAMPLE_RATE, 0.0025) == pytest.approx(place.drr_db, abs=1e-6)
        assert np.argmax(np.abs(first[:100])) == 0
        assert np.square(first[: round(0.0025 * SAMPLE_RATE)]).sum() == pytest.approx(1.0, rel=0.2)
        if place.recipe["kind"] == "generated":
            # Neighbours share their lows, and not their highs.
            late = place.responses[:2, SAMPLE_RATE // 50 : SAMPLE_RATE // 4]
            frequencies, coherence = signal.coherence(late[0], late[1], SAMPLE_RATE, nperseg=512)
            assert coherence[1] > coherence[frequencies > 5000].mean()
    assert {kinds.count(kind) > 8 for kind in ("measured", "simulated", "generated")} == {True}


def test_decays_are_as_long_as_is_wanted_and_do_not_stop(places: list[Place]) -> None:
    ratios = [place.rt60_s / place.recipe["rt60_s"] for place in places]
    assert np.median(ratios) == pytest.approx(1.0, abs=0.1) and np.quantile(np.abs(np.log(ratios)), 0.9) < 0.4
    for place in places:
        blocks = np.square(place.responses[0])[: place.responses.shape[1] // 441 * 441].reshape(-1, 441).mean(1)
        last = np.flatnonzero(blocks)[-2]
        assert 10 * np.log10(blocks[last] / blocks.max()) < -40


def test_the_targets_energy_is_that_of_the_first_50_ms(opened: Material) -> None:
    """With a source of white noise through a place, the early sound's share of the energy is the response's own."""
    noise = np.random.default_rng(0).standard_normal((1, 20 * SAMPLE_RATE)).astype(np.float32)
    place = draw_place(np.random.default_rng(3), opened, 2)
    heard, wanted = (
        signal.oaconvolve(noise, part, axes=-1)[:, : noise.shape[1]]
        for part in (place.responses[:1], early_part(place.responses[:1]))
    )
    energy = np.square(place.responses[0].astype(np.float64))
    end, fade = round(0.05 * SAMPLE_RATE), round(0.005 * SAMPLE_RATE)
    for part, low, high in ((wanted, end, end + fade), (heard, len(energy), len(energy))):
        power = np.mean(part.astype(np.float64) ** 2)
        assert energy[:low].sum() * 0.95 < power < energy[:high].sum() * 1.05


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
    found = gain_at(frequencies, recorder_curve_db(recorder, np.random.default_rng(0)))
    np.testing.assert_allclose(found, butterworth, rtol=1e-4)
    presence = {"spread_db": 0.0, "tilt_db": 0.0, "presence_hz": 3000.0, "presence_db": 6.0}
    found = gain_at(frequencies, recorder_curve_db(presence, np.random.default_rng(0)))
    assert 20 * np.log10(found[3]) == pytest.approx(6.0, 1e-3)
    limit = {"spread_db": 0.0, "tilt_db": 0.0, "limit_hz": 12000.0}
    limited = gain_at(frequencies, recorder_curve_db(limit, np.random.default_rng(0)))
    assert limited[3] == pytest.approx(1.0, abs=1e-3) and limited[4] < 1e-3


def test_measured_curves_are_levels_of_third_octaves() -> None:
    """A low-pass of first order at 1 kHz, against its formula."""
    response = signal.lfilter(*signal.butter(1, 1000.0, fs=SAMPLE_RATE), np.eye(1, SAMPLE_RATE)[0])
    found = third_octaves_db(response, SAMPLE_RATE)
    formula = -10 * np.log10(1 + np.square(CURVE_HZ / 1000.0))
    middle = (CURVE_HZ > 200) & (CURVE_HZ < 4000)
    inside = CURVE_HZ < 5000  # above, the bilinear transform falls faster
    np.testing.assert_allclose(found[inside], (formula - formula[middle].mean())[inside], atol=0.5)


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
