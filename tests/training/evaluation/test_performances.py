"""Performances for the benchmark: what is drawn, when the others start, and the averages that ours has to beat."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import signal

from training.data.material import HOLDOUT
from training.evaluation.benchmark import run
from training.evaluation.clips import draw_performances, load_clips, render_all, render_performance
from training.evaluation.peers import coherence_weighted, mean

RATE = 44100


@pytest.fixture
def folders(corpus, acoustics: Path, voices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The corpora with three more positions in the arena, and performances of 4 s."""
    place = tmp_path / "acoustics"
    shutil.copytree(acoustics, place)
    rows = json.loads((place / "index.json").read_text())
    (arena,) = [row for row in rows if row.get("space") == "arena"]
    for name in ("rir/rear.wav", "rir/side.wav", "rir/top.wav"):
        shutil.copy(place / arena["file"], place / name)
        rows.append(arena | {"file": name})
    (place / "index.json").write_text(json.dumps(rows))
    monkeypatch.setattr("training.evaluation.clips.PERFORMANCE_S", 4.0)
    monkeypatch.setattr("training.evaluation.clips.PERFORMANCE_COUNTS", {"test": 1, "validation": 1})
    monkeypatch.setitem(HOLDOUT["music_packages"], "test", ["validation"])
    return corpus, place, voices


def test_every_recording_has_a_position_of_its_own(folders) -> None:
    rows = draw_performances("test", *folders)
    assert [len(row["takes"]) for row in rows] == [2, 3, 4, 3]
    for row in rows:
        assert len({take["rir"] for take in row["takes"]}) == len(row["takes"])
        assert {take["crowd"].split("_")[0] for take in row["takes"]} == {"crowd/test"}
        assert [take["late_s"] > 0 for take in row["takes"]] == [False] + [True] * (len(row["takes"]) - 1)
    assert ["near" in take for take in rows[3]["takes"]] == [True, False, False]
    assert rows == draw_performances("test", *folders)


def test_the_others_start_late_and_run_on_their_own_clock(folders) -> None:
    row = draw_performances("test", *folders)[0]
    for take in row["takes"]:
        take |= {"rir": row["takes"][0]["rir"], "snr_db": 60.0, "channels": 1}
    row["takes"][1] |= {"late_s": 0.5, "drift_ppm": 1000.0}
    parts = render_performance(row, *folders)
    reference, other = parts["recording"][0], parts["take1"][0]
    assert reference.shape == (4 * RATE,)
    assert len(other) == pytest.approx(3.5 * RATE * 1.001, abs=2)
    for at_s in (0.5, 2.5):  # a stretch of the other one, against where it should be
        start = round(at_s * RATE)
        found = signal.correlate(other[start : start + RATE // 2], reference, "valid", "fft")
        expected = at_s / 1.001 + 0.5
        assert len(reference) - RATE // 2 - np.argmax(np.abs(found)) == pytest.approx(expected * RATE, abs=30)


def test_the_mean_halves_noise_and_coherence_leaves_out_what_does_not_fit() -> None:
    music, *noises = np.random.default_rng(0).standard_normal((4, 1, 3 * RATE)).astype(np.float32)
    takes = [music + 0.5 * noise for noise in noises[:2]]
    rms = [np.sqrt(np.mean(take**2)) for take in takes]
    np.testing.assert_allclose(mean(takes), (takes[0] + rms[0] / rms[1] * takes[1]) / 2, atol=1e-5)
    assert mean([takes[0]]) == pytest.approx(takes[0], abs=1e-5)
    useless = [takes[0], noises[2]]
    errors = [np.mean((average(useless) - takes[0]) ** 2) for average in (mean, coherence_weighted)]
    assert errors[1] < 0.2 * errors[0]
    assert np.mean((coherence_weighted(takes) - music) ** 2) < 0.7 * np.mean((takes[0] - music) ** 2)


@pytest.mark.slow
def test_the_benchmark_runs_on_performances(folders, toy_model: Path, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    render_all(draw_performances("test", *folders)[:2], folders, clips)
    loaded = load_clips(clips)
    assert [len(clip.takes) for clip in loaded] == [1, 2]
    systems = ["input", "faithful", "several", "several_prediction", "mean", "coherence"]
    results = run(loaded, systems, str(toy_model), tmp_path / "out")
    assert len(results) == 2 * len(systems) and np.isfinite(results.early).all()
