"""BigVGAN-v2 written once more, to compare with.

From Lee et al., "BigVGAN: A Universal Neural Vocoder with Large-Scale Training" (2023), and, for the filters, Karras
et al., "Alias-Free Generative Adversarial Networks" (2021), with plain functions on a dictionary of weights in the
layout of NVIDIA's checkpoints: weight-normalised convolutions, `weight_g` and `weight_v`, are folded over all
dimensions but the first.
"""

import math

import numpy as np
import scipy.signal
import torch
import torch.nn.functional as F

RATES = (4, 4, 2, 2, 2, 2)  # as bigvgan_v2_44khz_128band_256x
KERNELS = (3, 7)
DILATIONS = (1, 3, 5)
CHANNELS = 128
BANDS = 128

Weights = dict[str, torch.Tensor]


def low_pass() -> torch.Tensor:
    """Half-band filter of 12 taps: a sinc with its cutoff at a quarter of the rate in a Kaiser window, of sum 1."""
    taps, transition = 12, 4 * 0.3  # width of the transition, as a fraction of the (doubled) Nyquist frequency
    beta = scipy.signal.kaiser_beta(2.285 * (taps // 2 - 1) * math.pi * transition + 7.95)
    times = np.arange(taps) - (taps - 1) / 2
    response = np.sinc(times / 2) * np.kaiser(taps, beta)
    return torch.from_numpy(response / response.sum())


def up_twice(signal: torch.Tensor) -> torch.Tensor:
    """(batch, channels, samples) at twice the rate: zeros in between, then the low-pass; edges repeat."""
    edge = 8
    padded = F.pad(signal, (edge, edge), mode="replicate")
    stuffed = torch.stack([padded, torch.zeros_like(padded)], dim=-1).flatten(-2)
    filtered = F.conv1d(F.pad(stuffed.flatten(0, 1)[:, None], (6, 5)), 2 * low_pass()[None, None])
    return filtered[:, 0].unflatten(0, signal.shape[:2])[..., 2 * edge : 2 * edge + 2 * signal.shape[-1]]


def down_twice(signal: torch.Tensor) -> torch.Tensor:
    """(batch, channels, samples) at half the rate: the low-pass, then every second sample; edges repeat."""
    padded = F.pad(signal, (5, 6), mode="replicate")
    filtered = F.conv1d(padded.flatten(0, 1)[:, None], low_pass()[None, None])[..., ::2]
    return filtered[:, 0].unflatten(0, signal.shape[:2])


def snake(weights: Weights, name: str, signal: torch.Tensor) -> torch.Tensor:
    """Anti-aliased SnakeBeta: x + sin(alpha x)^2 / beta, alpha and beta on a logarithmic scale, at twice the rate."""
    alpha = weights[f"{name}.act.alpha"].exp()[:, None]
    beta = weights[f"{name}.act.beta"].exp()[:, None]
    signal = up_twice(signal)
    return down_twice(signal + torch.sin(alpha * signal) ** 2 / beta)


def convolve(weights: Weights, name: str, signal: torch.Tensor, dilation: int = 1) -> torch.Tensor:
    kernel = weights[f"{name}.weight"]
    padding = dilation * (kernel.shape[-1] - 1) // 2
    return F.conv1d(signal, kernel, weights.get(f"{name}.bias"), padding=padding, dilation=dilation)


def amp_block(weights: Weights, name: str, signal: torch.Tensor) -> torch.Tensor:
    """AMPBlock1: three residual pairs of a dilated and a plain convolution, an activation before each."""
    for number, dilation in enumerate(DILATIONS):
        branch = snake(weights, f"{name}.activations.{2 * number}", signal)
        branch = convolve(weights, f"{name}.convs1.{number}", branch, dilation)
        branch = snake(weights, f"{name}.activations.{2 * number + 1}", branch)
        signal = signal + convolve(weights, f"{name}.convs2.{number}", branch)
    return signal


def generator(weights: Weights, mel: torch.Tensor) -> torch.Tensor:
    """Log-mels (batch, bands, frames) to waveforms (batch, 1, frames * 256)."""
    signal = convolve(weights, "conv_pre", mel)
    for stage, rate in enumerate(RATES):
        name = f"ups.{stage}.0"
        signal = F.conv_transpose1d(
            signal, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=rate, padding=rate // 2
        )
        blocks = range(stage * len(KERNELS), (stage + 1) * len(KERNELS))
        signal = torch.stack([amp_block(weights, f"resblocks.{block}", signal) for block in blocks]).mean(0)
    return convolve(weights, "conv_post", snake(weights, "activation_post", signal)).clamp(-1, 1)


def nvidia_weights(seed: int) -> Weights:
    """Random weights with the names and shapes of a checkpoint that was saved with its weight normalisation."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    plain = {"conv_pre": (CHANNELS, BANDS, 7)}
    biases = {"conv_pre": CHANNELS}
    activations = {}
    width = CHANNELS
    for stage, rate in enumerate(RATES):
        plain[f"ups.{stage}.0"] = (width, width // 2, 2 * rate)  # (inputs, outputs, taps): transposed
        width //= 2
        biases[f"ups.{stage}.0"] = width
        for number, kernel in enumerate(KERNELS):
            block = f"resblocks.{stage * len(KERNELS) + number}"
            for pair in range(len(DILATIONS)):
                for convs in ("convs1", "convs2"):
                    plain[f"{block}.{convs}.{pair}"] = (width, width, kernel)
                    biases[f"{block}.{convs}.{pair}"] = width
            activations |= {f"{block}.activations.{index}": width for index in range(2 * len(DILATIONS))}
    activations["activation_post"] = width
    plain["conv_post"] = (1, width, 7)  # no bias in version 2

    weights: Weights = {}
    for name, shape in plain.items():
        weights[f"{name}.weight_v"] = random(*shape)
        weights[f"{name}.weight_g"] = 0.3 + 0.4 * random(shape[0], 1, 1).abs()
    weights |= {f"{name}.bias": 0.1 * random(size) for name, size in biases.items()}
    for name, size in activations.items():
        weights[f"{name}.act.alpha"] = 0.3 * random(size)
        weights[f"{name}.act.beta"] = 0.3 * random(size)
        weights[f"{name}.upsample.filter"] = low_pass().float()[None, None]
        weights[f"{name}.downsample.lowpass.filter"] = low_pass().float()[None, None]
    weights["conv_post.weight_g"] = torch.full((1, 1, 1), 1.2)  # the loudest peaks are clipped
    return weights


def folded(weights: Weights) -> Weights:
    """`weight_g * weight_v / |weight_v|`, the norm over all dimensions but the first."""
    result = {name: value for name, value in weights.items() if not name.endswith(("weight_g", "weight_v"))}
    for name, direction in weights.items():
        if name.endswith("weight_v"):
            norm = direction.flatten(1).norm(dim=1)[:, None, None]
            result[name.removesuffix("_v")] = weights[name.removesuffix("v") + "g"] * direction / norm
    return result
