"""MSD_musicnn, the music tagger of Pons and Serra, up to its 200-dimensional embedding, in PyTorch.

"musicnn: pre-trained convolutional neural networks for music audio tagging" (ISMIR 2019, late breaking). The weights
(ISC licence) come with the repository. They were made of the variables in the wheel musicnn 0.1.0 (`MSD_musicnn`): a
convolution's kernel (height, width, in, out) with its axes in the order (3, 2, 0, 1), a dense one's transposed, and
batch normalisation's gamma, beta, moving mean and moving variance as weight, bias, running mean and running variance;
layers are numbered in the order of the modules below.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank

WEIGHTS = Path(__file__).parent / "benchmark" / "musicnn.safetensors"
SAMPLE_RATE, FFT, HOP, BANDS = 16_000, 512, 256, 96
PATCH_FRAMES = 187  # 3 s, what it was trained on
EMBEDDING = 200
TEMPORAL_FRAMES = (128, 64, 32)
BATCH = 8
BN_EPSILON = 1e-3  # TensorFlow's default


class Musicnn(nn.Module):
    """Log-mel patches (batch, frames, 96) to embeddings (batch, 200): the last layer before the tags."""

    def __init__(self) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm2d(1, BN_EPSILON)
        # Filters over much of the spectrum for timbre, and over much of the time for rhythm.
        self.timbral = nn.ModuleList(_layer(1, 204, (7, height)) for height in (38, 67))
        self.temporal = nn.ModuleList(_layer(1, 51, (length, 1)) for length in TEMPORAL_FRAMES)
        self.middle = nn.ModuleList(_layer(1, 64, (7, width)) for width in (561, 64, 64))
        self.pooled_norm = nn.BatchNorm1d(1506, BN_EPSILON)
        self.dense = nn.Linear(1506, EMBEDDING)
        self.embedding_norm = nn.BatchNorm1d(EMBEDDING, BN_EPSILON)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        normal = self.input_norm(patches[:, None])
        padded = functional.pad(normal, (0, 0, 3, 3))
        features = [layer(padded).amax(-1) for layer in self.timbral]
        for layer, length in zip(self.temporal, TEMPORAL_FRAMES, strict=True):
            same = functional.pad(normal, (0, 0, (length - 1) // 2, length // 2))  # TensorFlow's "same"
            features.append(layer(same).amax(-1))
        flow = torch.cat(features, 1)  # (batch, channels, frames)
        stack = [flow]
        for number, layer in enumerate(self.middle):
            image = functional.pad(stack[-1].transpose(1, 2)[:, None], (0, 0, 3, 3))
            made = layer(image)[..., 0]
            stack.append(made + stack[-1] if number else made)
        image = torch.cat(stack, 1)
        pooled = torch.stack([image.amax(-1), image.mean(-1)], -1).flatten(1)  # in pairs
        return self.embedding_norm(functional.relu(self.dense(self.pooled_norm(pooled))))


def _layer(channels: int, filters: int, kernel: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, filters, kernel), nn.ReLU(), nn.BatchNorm2d(filters, BN_EPSILON))


def log_mel(waveform: NDArray[np.float32]) -> torch.Tensor:
    """(samples,) at 16 kHz to (frames, 96): `log10(1 + 10000 power)`, as librosa 0.7's defaults have the power."""
    window = torch.hann_window(FFT)
    spectrum = torch.stft(torch.from_numpy(waveform), FFT, HOP, window=window, pad_mode="reflect", return_complex=True)
    power = _filters() @ spectrum.abs().square()
    return torch.log10(1 + 10_000 * power).T


@functools.cache
def _filters() -> torch.Tensor:
    """(96, 257)"""
    bank = mel_filter_bank(FFT // 2 + 1, BANDS, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, "slaney", mel_scale="slaney")
    return torch.from_numpy(bank.T.astype(np.float32))


@functools.cache
def _model() -> Musicnn:
    model = Musicnn()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


@torch.no_grad()
def embed(waveform: NDArray[np.float32], hop_s: float = 1.5) -> NDArray[np.float32]:
    """Embeddings of windows of 3 s, one every `hop_s` -> (windows, 200).

    Args:
        waveform: (samples,) at 16 kHz, 3 s or more, at a music file's level.

    Raises:
        ValueError: if it is shorter.
    """
    frames = log_mel(waveform)
    if len(frames) < PATCH_FRAMES:
        raise ValueError(f"an embedding needs 3 s of sound, not {len(waveform) / SAMPLE_RATE:.2f} s")
    patches = frames.unfold(0, PATCH_FRAMES, round(hop_s * SAMPLE_RATE / HOP)).transpose(1, 2)
    return torch.cat([_model()(batch) for batch in patches.split(BATCH)]).numpy()
