"""The embedding against TensorFlow's, its spectrum against librosa's."""

from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from training.musicnn import PATCH_FRAMES, WEIGHTS, Musicnn, embed, log_mel

# `musicnn.models.define_model(..., "MSD_musicnn", 50)` of the wheel, run by TensorFlow 2.15 on `patches`.
REFERENCE = Path(__file__).parent / "musicnn_penultimate.npy"


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
    windows = embed(waveform)
    assert windows.shape == (2, 200)
    with pytest.raises(ValueError, match="needs 3 s"):
        embed(waveform[:40_000])
