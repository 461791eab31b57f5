"""What training minimises on the faithful waveform. Every loss is a mean over the batch and larger is worse."""

from __future__ import annotations

import math

import torch

WINDOWS = (512, 2048, 4096)  # samples; hops are a half, for a quarter costs twice the time
FLOOR_DB = 70.0  # below a clip's mean band energy, what a band log-energy is compared at least with


def si_sdr_loss(
    estimate: torch.Tensor, target: torch.Tensor, ceiling_db: float = 30.0, softness: float = 0.4
) -> torch.Tensor:
    """Negative SI-SDR in dB that knows right from wrong polarity, softly bounded.

    With the correlation coefficient `rho` of estimate and target, SI-SDR (Le Roux et al., "SDR - half-baked or well
    done?", 2019) is `rho^2 / (1 - rho^2)`. It is even in `rho`: where tonal music in a hall correlates negatively with
    the clean signal, and a quarter of such clips do, its gradient asks for more of the wrong polarity, and around zero
    it explodes. So `rho` is replaced by `(rho + sqrt(rho^2 + softness^2)) / (1 + sqrt(1 + softness^2))`: nearly `rho`
    itself where the estimate is good, positive and ever smaller where it is not.

    Args:
        estimate, target: Waveforms (batch, samples).
        ceiling_db: The value that a perfect estimate reaches; it keeps an easy clip from outweighing the hard ones
            (Wisdom et al., "Unsupervised sound separation using mixture invariant training", 2020).
        softness: Correlation below which the slope stops growing; it is `8.7 / softness` dB at zero.
    """
    norms = (estimate.square().sum(-1) * target.square().sum(-1)).clamp_min(1e-12).sqrt()
    rho = (estimate * target).sum(-1) / norms
    signal = ((rho + (rho.square() + softness**2).sqrt()) / (1 + math.hypot(1, softness))).square()
    return -10 * torch.log10(signal / ((1 - signal).clamp_min(0) + 10 ** (-ceiling_db / 10))).mean()


def compressed_stft_loss(estimate: torch.Tensor, target: torch.Tensor, exponent: float = 0.3) -> torch.Tensor:
    """Distance of compressed spectra at several resolutions, complex and in magnitude only, of (batch, samples).

    Compressing with `|X|^0.3` lets quiet bins count. 0.3 of the complex distance and 0.7 of the magnitude's, after
    Braun and Tashev, "A consolidated view of loss functions for supervised deep learning-based speech enhancement"
    (2021).
    """
    return torch.stack([_compressed_distance(estimate, target, window, exponent) for window in WINDOWS]).mean()


def _compressed_distance(estimate: torch.Tensor, target: torch.Tensor, n_fft: int, exponent: float) -> torch.Tensor:
    window = torch.hann_window(n_fft, device=target.device)
    scale = 2 / window.sum()  # a steady tone has the same magnitude at every resolution

    def stft(waveform: torch.Tensor) -> torch.Tensor:
        return torch.stft(waveform, n_fft, n_fft // 2, window=window, return_complex=True) * scale

    estimated, wanted = stft(estimate), stft(target)
    estimated_magnitude, wanted_magnitude = _magnitude(estimated), _magnitude(wanted)
    estimated_compressed, wanted_compressed = estimated_magnitude**exponent, wanted_magnitude**exponent
    difference = estimated * (estimated_compressed / estimated_magnitude) - wanted * (
        wanted_compressed / wanted_magnitude
    )
    complex_distance = (difference.real.square() + difference.imag.square()).mean()
    magnitude_distance = (estimated_compressed - wanted_compressed).square().mean()
    return 0.3 * complex_distance + 0.7 * magnitude_distance


def _magnitude(stft: torch.Tensor) -> torch.Tensor:
    # The floor bounds the gradient of the compression, which is infinite at zero.
    return (stft.real.square() + stft.imag.square() + 1e-10).sqrt()


def band_energy_loss(estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference in nats of band energies (batch, bands, frames), quiet ones included.

    Both get a floor `FLOOR_DB` below the target's mean over its clip: that of highs in a hall lies well above it.
    """
    floor = target.mean((1, 2), keepdim=True) * 10 ** (-FLOOR_DB / 10) + 1e-12
    return ((estimate + floor).log() - (target + floor).log()).abs().mean()
