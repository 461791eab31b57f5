"""Fréchet distances against closed forms and scipy, their intervals, and the embeddings' own promises."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy import linalg

from training import frechet, reference_set
from training.frechet import (
    Gaussian,
    compare_sets,
    embed,
    frechet_distance,
    gaussian,
    load_reference,
    log_mel_windows,
    save_reference,
)

SAMPLE_RATE = 44_100


def music(seed: int, seconds: float = 4.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft(rng.standard_normal((2, round(seconds * SAMPLE_RATE))))
    spectrum /= np.sqrt(1 + (np.arange(spectrum.shape[-1]) / seconds / 300) ** 2)
    waveform = np.fft.irfft(spectrum)
    return (0.1 * waveform / waveform.std()).astype(np.float32)


def test_distance_of_diagonal_gaussians_is_the_closed_form() -> None:
    one = Gaussian(np.array([1.0, 2.0, 3.0]), np.diag([1.0, 4.0, 9.0]), 1, 2)
    other = Gaussian(np.array([1.0, 0.0, 3.5]), np.diag([4.0, 4.0, 1.0]), 1, 2)
    assert frechet_distance(one, other) == pytest.approx(2.0**2 + 0.5**2 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2)
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-9)


def test_distance_is_that_of_a_matrix_root() -> None:
    rng = np.random.default_rng(0)
    sets = [[rng.standard_normal((40, 8)) @ rng.standard_normal((8, 8)) + shift for _ in range(3)] for shift in (0, 1)]
    one, other = (gaussian(clips) for clips in sets)
    cross = linalg.sqrtm(one.covariance @ other.covariance).real
    expected = np.square(one.mean - other.mean).sum() + np.trace(one.covariance + other.covariance - 2 * cross)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)
    assert (one.clips, one.windows) == (3, 120)


def test_a_set_half_way_closes_half_of_the_gap() -> None:
    rng = np.random.default_rng(1)
    reference = gaussian([rng.standard_normal((5000, 4))])
    clean = [rng.standard_normal((10, 4)) for _ in range(60)]
    shift = np.array([10.0, 0.0, 0.0, 0.0])
    # A squared distance: half of it is the shift over the root of two.
    sets = {"clean": clean, "input": [c + shift for c in clean], "ours": [c + shift / np.sqrt(2) for c in clean]}
    report = compare_sets(reference, sets, "clean", "input")
    assert report["ours"]["closed"] == pytest.approx(0.5, abs=0.01)
    assert report["clean"]["closed"] == 1.0 and report["input"]["closed"] == 0.0
    assert report["input"]["value"] == pytest.approx(100.0, rel=0.05)
    for figures in report.values():
        assert figures["low"] <= figures["value"] <= figures["high"]
        assert figures["clips"] == 60 and figures["windows"] == 600
    # The mean of 600 values has a standard error of 1 / sqrt(600), and the squared shift twenty times that.
    assert report["input"]["high"] - report["input"]["low"] == pytest.approx(2 * 1.96 * 20 / np.sqrt(600), rel=0.3)


def test_log_mel_windows_are_levels_by_the_second() -> None:
    time = np.arange(3 * 44_100) / 44_100
    tone = (np.sin(2 * np.pi * 1000 * time) * (1 + 9 * (time > 1.5))).astype(np.float32)
    windows = log_mel_windows(tone)
    assert windows.shape == (3, 64)
    assert windows[2].max() - windows[0].max() == pytest.approx(20.0, abs=0.1)
    assert windows[0].argmax() == windows[2].argmax()


@pytest.mark.parametrize("name", ["musicnn", "log_mel"])
def test_the_level_of_a_clip_does_not_count_its_treble_does(name: str) -> None:
    clip = music(0)
    vectors = embed(clip, SAMPLE_RATE, name)
    np.testing.assert_allclose(embed(0.1 * clip, SAMPLE_RATE, name), vectors, atol=2e-3)
    dull = np.fft.irfft(np.fft.rfft(clip) * (np.fft.rfftfreq(clip.shape[-1], 1 / SAMPLE_RATE) < 3000))
    assert np.abs(embed(dull.astype(np.float32), SAMPLE_RATE, name) - vectors).mean() > 0.1


def test_embeddings_that_need_a_network_are_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("vggish", "clap"):
        with pytest.raises(ValueError, match=f"embedding {name} needs a network"):
            embed(music(0), SAMPLE_RATE, name)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setitem(sys.modules, "frechet_audio_distance", None)
    with pytest.raises(ValueError, match="frechet-audio-distance, which is not installed"):
        embed(music(0), SAMPLE_RATE, "vggish")
    with pytest.raises(ValueError, match="unknown embedding 'nosuch'"):
        embed(music(0), SAMPLE_RATE, "nosuch")
    with pytest.raises(ValueError, match="silent"):
        embed(np.zeros((2, SAMPLE_RATE), np.float32), SAMPLE_RATE, "log_mel")


def test_reference_of_a_folder_is_computed_once(tmp_path: Path) -> None:
    masters = tmp_path / "masters"
    masters.mkdir()
    clips = [music(seed, 3.0) for seed in range(2)]
    for number, clip in enumerate(clips):
        soundfile.write(masters / f"{number}.wav", clip.T, SAMPLE_RATE, subtype="FLOAT")
    options = ["--folder", str(masters), "--title", "two noises", "--embedding", "log_mel", "--out", str(tmp_path)]
    assert reference_set.main(options) == 0
    reference = load_reference("log_mel", tmp_path)
    assert (reference.title, reference.clips, reference.windows) == ("two noises", 2, 6)
    here = gaussian([embed(clip, SAMPLE_RATE, "log_mel") for clip in clips])
    np.testing.assert_allclose(reference.mean, here.mean, rtol=1e-4)
    np.testing.assert_allclose(reference.covariance, here.covariance, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="make it with"):
        load_reference("musicnn", tmp_path)


@pytest.mark.parametrize("name", frechet.OFFLINE)
def test_the_committed_reference_is_of_studio_music(name: str, tmp_path: Path) -> None:
    reference = load_reference(name)
    assert reference.clips > 300 and reference.windows > 1500 and "training" in reference.title
    assert np.linalg.eigvalsh(reference.covariance).min() > -1e-3
    save_reference(tmp_path / f"reference_{name}.safetensors", reference)
    assert frechet_distance(load_reference(name, tmp_path), reference) == pytest.approx(0.0, abs=1e-3)
