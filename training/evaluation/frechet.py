"""Fréchet audio distance: how far two sets of clips are from each other, in the space of MSD_musicnn's embeddings.

Kilgour et al., "Fréchet Audio Distance: a reference-free metric for evaluating music enhancement algorithms"
(Interspeech 2019). A value means something only beside its embedding and its number of clips, and beside that of the
recordings.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank

from pipeline_aud2studio.audio import Waveform, loudness_lufs, resample

Vectors = NDArray[np.float32]  # (windows, dimensions)
LOUDNESS_LUFS = -14.0  # about that of the released music which the network was trained on
WEIGHTS = Path(__file__).parent / "musicnn" / "musicnn.safetensors"
SAMPLE_RATE, FFT, HOP, BANDS = 16_000, 512, 256, 96
PATCH_FRAMES = 187  # 3 s, what it was trained on
EMBEDDING = 200
TEMPORAL_FRAMES = (128, 64, 32)
BATCH = 8
BN_EPSILON = 1e-3  # TensorFlow's default


@dataclass(frozen=True)
class Gaussian:
    """Mean (dimensions,) and covariance (dimensions, dimensions) of embedded windows."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


def embed(waveform: Waveform, sample_rate: int) -> Vectors:
    """Embeds a clip (channels, samples), loudness-normalised and mixed down -> (windows, 200).

    Raises:
        ValueError: For a clip that is silent or shorter than 3 s.
    """
    loudness = loudness_lufs(waveform, sample_rate)
    if not np.isfinite(loudness):
        raise ValueError("a silent clip has no embedding")
    louder = waveform * np.float32(10 ** ((LOUDNESS_LUFS - loudness) / 20))
    return embed_windows(resample(louder.mean(axis=0, keepdims=True), sample_rate, SAMPLE_RATE)[0])


def gaussian(clips: Sequence[Vectors]) -> Gaussian:
    """Fits a Gaussian to all windows of all clips."""
    windows = np.concatenate(clips).astype(np.float64)
    if len(windows) < 2:
        raise ValueError("a Fréchet distance needs at least two windows of sound")
    return Gaussian(windows.mean(axis=0), np.cov(windows, rowvar=False))


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """Computes the squared Fréchet distance of two Gaussians, in squared units of the embedding; 0 is equal.

    Dowson and Landau (1982): |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). The trace of the root is the sum of the
    roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric: no complex numbers to throw away.
    """
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ other.covariance @ root)
    between = np.square(one.mean - other.mean).sum() + np.trace(one.covariance) + np.trace(other.covariance)
    return float(between - 2 * np.sqrt(np.maximum(inner, 0.0)).sum())


# --- MSD_musicnn -----------------------------------------------------------------------------------------------------


class Musicnn(nn.Module):
    """Embeds log-mel patches (batch, frames, 96) -> (batch, 200): the last layer before the tags.

    Pons and Serra, "musicnn: pre-trained convolutional neural networks for music audio tagging" (ISMIR 2019, late
    breaking). The weights (ISC licence) come with the repository. They were made of the variables in the wheel musicnn
    0.1.0 (`MSD_musicnn`): a convolution's kernel (height, width, in, out) with its axes in the order (3, 2, 0, 1), a
    dense one's transposed, and batch normalisation's gamma, beta, moving mean and moving variance as weight, bias,
    running mean and running variance; layers are numbered in the order of the modules below.
    """

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
    """Turns (samples,) at 16 kHz into (frames, 96): `log10(1 + 10000 power)`, the power as librosa 0.7 has it."""
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
def embed_windows(waveform: NDArray[np.float32], hop_s: float = 1.5) -> NDArray[np.float32]:
    """Embeds windows of 3 s, one every `hop_s` -> (windows, 200).

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
