"""MSD_musicnn, the music tagger of Pons and Serra, up to its 200-dimensional embedding, in PyTorch.

    pip download --no-deps musicnn==0.1.0
    python -m training.musicnn --wheel musicnn-0.1.0-py3-none-any.whl --out training/benchmark/musicnn.safetensors

"musicnn: pre-trained convolutional neural networks for music audio tagging" (ISMIR 2019, late breaking). The weights
(ISC licence) come with the repository; the command above made them, from the wheel alone.
"""

from __future__ import annotations

import argparse
import functools
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank

from training.tensor_bundle import read_bundle

WEIGHTS = Path(__file__).parent / "benchmark" / "musicnn.safetensors"
IN_WHEEL = "musicnn/MSD_musicnn/"
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


def convert(variables: Mapping[str, NDArray[np.float32]]) -> dict[str, torch.Tensor]:
    """The checkpoint's variables as a state dict of `Musicnn`.

    TensorFlow numbers layers in the order they were made, and has convolutions as (height, width, in, out).

    Raises:
        ValueError: if a variable is missing.
    """
    state: dict[str, torch.Tensor] = {}

    def take(name: str) -> torch.Tensor:
        if name not in variables:
            raise ValueError(f"the checkpoint has no variable {name!r}: it is not MSD_musicnn's")
        return torch.tensor(variables[name])

    def norm(target: str, number: int) -> None:
        name = f"batch_normalization_{number}" if number else "batch_normalization"
        parts = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        state.update({f"{target}.{own}": take(f"{name}/{theirs}") for own, theirs in parts.items()})
        state[f"{target}.num_batches_tracked"] = torch.tensor(0)

    norm("input_norm", 0)
    layers = [f"timbral.{n}" for n in range(2)] + [f"{kind}.{n}" for kind in ("temporal", "middle") for n in range(3)]
    for number, layer in enumerate(layers):
        name = f"conv2d_{number}" if number else "conv2d"
        state[f"{layer}.0.weight"] = take(f"{name}/kernel").permute(3, 2, 0, 1).contiguous()
        state[f"{layer}.0.bias"] = take(f"{name}/bias")
        norm(f"{layer}.2", number + 1)
    norm("pooled_norm", 9)
    state["dense.weight"] = take("dense/kernel").T.contiguous()
    state["dense.bias"] = take("dense/bias")
    norm("embedding_norm", 10)
    return state


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.musicnn", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--wheel", type=Path, required=True, help="musicnn-0.1.0-py3-none-any.whl")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args(argv)
    try:
        with zipfile.ZipFile(options.wheel) as wheel:
            index, data = (wheel.read(f"{IN_WHEEL}.{name}") for name in ("index", "data-00000-of-00001"))
        state = convert(read_bundle(index, data))
        part = options.out.with_name(f".{options.out.name}.part")
        save_file(state, part, {"source": "PyPI musicnn 0.1.0, MSD_musicnn", "licence": "ISC"})
        part.replace(options.out)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        print(f"musicnn: {error}", file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
