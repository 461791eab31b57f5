"""The vocoder to train and what it minimises."""

from __future__ import annotations

import math
import warnings

import torch
from diffusers import MMAudioVocoder
from torch import nn

from pipeline_aud2studio.spectral import BandTransform
from pipeline_aud2studio.vocoding import griffin_lim

from .config import FrontEndConfig, GeneratorConfig, VocoderConfig, VocoderLossConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # auraloss imports librosa lazily and warns of what it does not need
    from auraloss.freq import MultiResolutionSTFTLoss

ENDS = ("conv_pre.", "conv_post.")  # where the generator meets bands and samples; no matrices for Muon


def front_end(mel: FrontEndConfig) -> BandTransform:
    return BandTransform(mel.sample_rate, mel.n_fft, mel.hop_length, mel.n_mels, mel.fmin, mel.fmax)


def build_vocoder(config: VocoderConfig) -> MMAudioVocoder:
    """Builds a freshly initialised generator."""
    vocoder = MMAudioVocoder(num_mels=config.mel.n_mels, **generator_arguments(config.model))
    initialize(vocoder, config.mel)
    return vocoder


def generator_arguments(model: GeneratorConfig) -> dict[str, object]:
    return {
        "upsample_initial_channel": model.upsample_initial_channel,
        "upsample_rates": model.upsample_rates,
        "upsample_kernel_sizes": tuple(2 * rate if rate > 1 else 3 for rate in model.upsample_rates),
        "resblock_kernel_sizes": model.resblock_kernel_sizes,
        "resblock_dilation_sizes": model.resblock_dilation_sizes,
    }


@torch.no_grad()
def initialize(vocoder: MMAudioVocoder, mel: FrontEndConfig) -> None:
    """Weights that keep the variance from layer to layer, and an output near -20 dBFS.

    BigVGAN's own N(0, 0.01) relies on weight normalisation, which this class does not have: six stages would fade to
    nothing. The first layer also undoes the mean and scale of log-mels, the residual branches start small.
    """
    pre = vocoder.conv_pre
    nn.init.normal_(pre.weight, std=1 / math.sqrt(pre.weight[0].numel()))
    pre.weight /= mel.std
    pre.bias.copy_(-mel.mean * pre.weight.sum((1, 2)))
    for stage in vocoder.ups:
        taps = stage[0].kernel_size[0] // stage[0].stride[0]  # that meet in every sample
        nn.init.normal_(stage[0].weight, std=1 / math.sqrt(taps * stage[0].in_channels))
        nn.init.zeros_(stage[0].bias)
    for block in vocoder.resblocks:
        for first, second in zip(block.convs1, block.convs2, strict=True):
            fan_in = first.weight[0].numel()
            nn.init.normal_(first.weight, std=1 / math.sqrt(fan_in))
            nn.init.normal_(second.weight, std=0.3 / math.sqrt(fan_in))
            nn.init.zeros_(first.bias)
            nn.init.zeros_(second.bias)
    post = vocoder.conv_post
    nn.init.normal_(post.weight, std=0.1 / math.sqrt(post.weight.numel()))


class SpectralObjective(nn.Module):
    """Reconstruction losses of a vocoder on waveforms (batch, samples).

    Args:
        transform: The front end.
        config: The resolutions of the mels beside the front end's, and the weights of the losses.
    """

    def __init__(self, transform: BandTransform, config: VocoderLossConfig) -> None:
        super().__init__()
        self.transforms, self.config = [transform], config
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # BigVGAN's bands of the lowest frequencies are narrower than a bin
            for n_fft, hop_length, n_mels in config.mel_resolutions:
                self.transforms.append(BandTransform(transform.sample_rate, n_fft, hop_length, n_mels))
        self.mr_stft = MultiResolutionSTFTLoss()

    def forward(self, vocoded: torch.Tensor, clean: torch.Tensor) -> dict[str, torch.Tensor]:
        """Computes losses by name; `loss` is their weighted sum."""
        mels = [log_mel_distance(vocoded, clean, transform) for transform in self.transforms]
        losses = {"mel": torch.stack(mels).mean(), "mr_stft": self.mr_stft(vocoded[:, None], clean[:, None])}
        return {**losses, "loss": self.config.mel * losses["mel"] + self.config.mr_stft * losses["mr_stft"]}


def log_mel_distance(first: torch.Tensor, second: torch.Tensor, transform: BandTransform) -> torch.Tensor:
    """Computes the mean absolute difference of the log-mels of two waveforms (..., samples), in nats."""
    return nn.functional.l1_loss(transform.log_mel(transform.stft(first)), transform.log_mel(transform.stft(second)))


@torch.inference_mode()
def vocode(vocoder: MMAudioVocoder, mels: torch.Tensor) -> torch.Tensor:
    """Makes waveforms (clips, samples) of log-mels (clips, bands, frames), one clip at a time to spare memory."""
    device = next(vocoder.parameters()).device
    return torch.stack([vocoder(mel[None].to(device)).sample[0, 0].cpu() for mel in mels])


@torch.inference_mode()
def distances(vocoded: torch.Tensor, clean: torch.Tensor, objective: SpectralObjective) -> dict[str, float]:
    """Measures log-mel L1 (nats, front end's mel) and multi-resolution STFT distance of waveforms (clips, samples)."""
    return {
        "log_mel_l1": float(log_mel_distance(vocoded, clean, objective.transforms[0])),
        "mr_stft": float(objective.mr_stft(vocoded[:, None], clean[:, None])),
    }


def without_vocoder(
    log_mel: torch.Tensor, transform: BandTransform, length: int, num_iterations: int = 32
) -> torch.Tensor:
    """Makes waveforms (..., length) of log-mels (..., bands, frames) by Griffin-Lim: what a vocoder has to beat.

    The initial phases are random, from a fixed seed.
    """
    magnitude = transform.magnitude_from_mel(log_mel.exp())
    angle = 2 * torch.pi * torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0))
    phase = torch.polar(torch.ones_like(angle), angle).to(magnitude.device)
    return griffin_lim(magnitude, phase, transform, length, num_iterations)
