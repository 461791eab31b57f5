"""Discriminators of waveforms, and the losses between them and a generator.

Period discriminators are those of Kong et al., "HiFi-GAN" (2020): the waveform is folded into rows of `period`
samples, and convolutions run along the columns. Resolution discriminators are those of Jang et al., "UnivNet" (2021):
they see the magnitude of an STFT. BigVGAN (Lee et al., 2023) combines the two; its second version replaces the latter
by ones of a constant-Q transform.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from .config import DiscriminatorConfig

SLOPE = 0.1  # of the leaky ReLUs
JUDGED_RMS = 0.1  # -20 dBFS, to which every clean crop is brought: the crops' levels differ by 30 dB and more
MIN_RMS = 1e-4  # a crop below is nearly silent and is not brought all the way up


class Judgement(NamedTuple):
    """Scores and features of some waveforms by one discriminator."""

    scores: torch.Tensor  # one for each place (batch, 1, ...): towards 1 for clean, towards 0 for vocoded
    features: list[torch.Tensor]  # of every hidden layer (batch, channels, ...)


class Discriminator(nn.Module, ABC):
    """Convolutions with leaky ReLUs in between.

    Args:
        hidden: The hidden layers.
        last: The layer that gives the scores.
    """

    def __init__(self, hidden: Sequence[nn.Conv2d], last: nn.Conv2d) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(weight_norm(layer) for layer in hidden)
        self.last = weight_norm(last)

    @abstractmethod
    def picture(self, waveform: torch.Tensor) -> torch.Tensor:
        """Turns waveforms (batch, samples) into what the first layer sees (batch, 1, height, width)."""

    def forward(self, waveform: torch.Tensor) -> Judgement:
        """Judges waveforms (batch, samples)."""
        features = [self.picture(waveform)]
        for layer in self.hidden:
            features.append(F.leaky_relu(layer(features[-1]), SLOPE))
        return Judgement(self.last(features[-1]), features[1:])


class PeriodDiscriminator(Discriminator):
    """Sees every `period`-th sample as a column.

    Args:
        period: Samples of a row.
        channels: Of the first layer; the others have 4, 16, 32 and 32 times as many.
    """

    def __init__(self, period: int, channels: int) -> None:
        widths = [1, *(channels * factor for factor in (1, 4, 16, 32, 32))]
        strides = (3, 3, 3, 3, 1)
        layers = [
            nn.Conv2d(before, width, (5, 1), (stride, 1), padding=(2, 0))
            for before, width, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        ]
        super().__init__(layers, nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))
        self.period = period

    def picture(self, waveform: torch.Tensor) -> torch.Tensor:
        """(batch, 1, rows, period)"""
        missing = -waveform.shape[-1] % self.period
        padded = F.pad(waveform[:, None], (0, missing), mode="reflect")
        return padded.unflatten(-1, (-1, self.period))


class ResolutionDiscriminator(Discriminator):
    """Sees the magnitude of an STFT.

    Args:
        n_fft, hop_length, window: Of the STFT, in samples.
        channels: Of every layer.
    """

    window: torch.Tensor

    def __init__(self, n_fft: int, hop_length: int, window: int, channels: int) -> None:
        layers = [nn.Conv2d(1, channels, (3, 9), padding=(1, 4))]
        layers += [nn.Conv2d(channels, channels, (3, 9), (1, 2), padding=(1, 4)) for _ in range(3)]
        layers += [nn.Conv2d(channels, channels, 3, padding=1)]
        super().__init__(layers, nn.Conv2d(channels, 1, 3, padding=1))
        self.n_fft, self.hop_length = n_fft, hop_length
        self.register_buffer("window", torch.hann_window(window), persistent=False)

    def picture(self, waveform: torch.Tensor) -> torch.Tensor:
        """(batch, 1, frames, bins)"""
        stft = torch.stft(waveform, self.n_fft, self.hop_length, len(self.window), self.window, return_complex=True)
        # The slope of a square root is infinite at zero.
        magnitude = (stft.real.square() + stft.imag.square() + 1e-9).sqrt()
        return magnitude.transpose(1, 2)[:, None]


class Discriminators(nn.Module):
    """All period and resolution discriminators.

    Args:
        config: Which ones, and how wide.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        members: list[Discriminator] = [PeriodDiscriminator(p, config.period_channels) for p in config.periods]
        members += [ResolutionDiscriminator(*size, config.resolution_channels) for size in config.resolutions]
        self.members = nn.ModuleList(members)

    def forward(self, waveform: torch.Tensor) -> list[Judgement]:
        """Judges waveforms (batch, samples)."""
        return [member(waveform) for member in self.members]


def level_gain(clean: torch.Tensor) -> torch.Tensor:
    """Computes gains (batch, 1) that bring clean waveforms (batch, samples) to the level at which they are judged."""
    rms = clean.square().mean(-1, keepdim=True).sqrt()
    return JUDGED_RMS / rms.clamp_min(MIN_RMS)


def discriminator_loss(clean: Sequence[Judgement], vocoded: Sequence[Judgement]) -> torch.Tensor:
    """Computes least squares (Mao et al., 2017), for the discriminators; the sum over them."""
    losses = [
        (1 - real.scores).square().mean() + fake.scores.square().mean()
        for real, fake in zip(clean, vocoded, strict=True)
    ]
    return torch.stack(losses).sum()


def adversarial_loss(vocoded: Sequence[Judgement]) -> torch.Tensor:
    """Computes least squares, for the generator; the sum over the discriminators."""
    return torch.stack([(1 - fake.scores).square().mean() for fake in vocoded]).sum()


def feature_matching_loss(clean: Sequence[Judgement], vocoded: Sequence[Judgement]) -> torch.Tensor:
    """Computes the L1 distance of the features (Larsen et al., 2016), the sum over layers and discriminators."""
    losses = [
        F.l1_loss(ours, theirs)
        for real, fake in zip(clean, vocoded, strict=True)
        for ours, theirs in zip(fake.features, real.features, strict=True)
    ]
    return torch.stack(losses).sum()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Gradients pass through the model and do not reach its parameters, nor are they computed."""
    model.requires_grad_(False)
    try:
        yield
    finally:
        model.requires_grad_(True)
