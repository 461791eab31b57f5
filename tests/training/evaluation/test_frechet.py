"""Fréchet distances against closed forms and scipy, the embedding against TensorFlow's and librosa's."""

from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import linalg

from training.evaluation.perceptual import (
    PATCH_FRAMES,
    WEIGHTS,
    Gaussian,
    Musicnn,
    embed,
    embed_windows,
    frechet_distance,
    gaussian,
    log_mel,
)

SAMPLE_RATE = 44_100
# `musicnn.models.define_model(..., "MSD_musicnn", 50)` of the wheel, run by TensorFlow 2.15 on `patches`.
REFERENCE = Path(__file__).parent / "musicnn_penultimate.npy"


def music(seed: int, seconds: float = 4.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft(rng.standard_normal((2, round(seconds * SAMPLE_RATE))))
    spectrum /= np.sqrt(1 + (np.arange(spectrum.shape[-1]) / seconds / 300) ** 2)
    waveform = np.fft.irfft(spectrum)
    return (0.1 * waveform / waveform.std()).astype(np.float32)


def test_distance_of_diagonal_gaussians_is_the_closed_form() -> None:
    one = Gaussian(np.array([1.0, 2.0, 3.0]), np.diag([1.0, 4.0, 9.0]))
    other = Gaussian(np.array([1.0, 0.0, 3.5]), np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(one, other) == pytest.approx(2.0**2 + 0.5**2 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2)
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-9)


def test_distance_is_that_of_a_matrix_root() -> None:
    rng = np.random.default_rng(0)
    sets = [[rng.standard_normal((40, 8)) @ rng.standard_normal((8, 8)) + shift for _ in range(3)] for shift in (0, 1)]
    one, other = (gaussian(clips) for clips in sets)
    cross = linalg.sqrtm(one.covariance @ other.covariance).real
    expected = np.square(one.mean - other.mean).sum() + np.trace(one.covariance + other.covariance - 2 * cross)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)


def test_the_level_of_a_clip_does_not_count_its_treble_does() -> None:
    clip = music(0)
    vectors = embed(clip, SAMPLE_RATE)
    np.testing.assert_allclose(embed(0.1 * clip, SAMPLE_RATE), vectors, atol=2e-3)
    dull = np.fft.irfft(np.fft.rfft(clip) * (np.fft.rfftfreq(clip.shape[-1], 1 / SAMPLE_RATE) < 3000))
    assert np.abs(embed(dull.astype(np.float32), SAMPLE_RATE) - vectors).mean() > 0.1


def test_what_has_no_embedding_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="silent"):
        embed(np.zeros((2, SAMPLE_RATE), np.float32), SAMPLE_RATE)


def patches() -> np.ndarray:
    time, band = np.arange(PATCH_FRAMES)[:, None], np.arange(96)[None]
    shapes = [np.cos(0.05 * band * turn + 0.013 * time * band / (turn + 1)) for turn in range(3)]
    return np.stack([2 + 1.5 * np.sin(0.37 * time + 0.11 * band) * shape for shape in shapes]).astype(np.float32)


def test_embedding_is_that_of_tensorflow() -> None:
    model = Musicnn()
    model.load_state_dict(load_file(WEIGHTS))
    with torch.no_grad():
        embedding = model.eval()(torch.from_numpy(patches())).numpy()
    np.testing.assert_allclose(embedding, np.load(REFERENCE), atol=1e-5)


def test_log_mel_is_librosas() -> None:
    waveform = 0.1 * np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    spectrum = librosa.stft(waveform, n_fft=512, hop_length=256, pad_mode="reflect")
    power = librosa.feature.melspectrogram(S=np.abs(spectrum) ** 2, sr=16_000, n_mels=96)
    np.testing.assert_allclose(log_mel(waveform), np.log10(1 + 10_000 * power).T, atol=1e-4)


def test_windows_are_3_s_long_and_half_overlapped() -> None:
    waveform = 0.1 * np.random.default_rng(0).standard_normal(5 * 16_000).astype(np.float32)
    windows = embed_windows(waveform)
    assert windows.shape == (2, 200)
    with pytest.raises(ValueError, match="needs 3 s"):
        embed_windows(waveform[:40_000])
