"""What training minimises on the faithful waveform. Every loss is a mean over the batch and larger is worse."""

from __future__ import annotations

import math

import torch


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
    """Distance of compressed spectra, complex and in magnitude only, of (batch, bins, frames).

    Compressing with `|X|^0.3` lets quiet bins count. 0.3 of the complex distance and 0.7 of the magnitude's, after
    Braun and Tashev, "A consolidated view of loss functions for supervised deep learning-based speech enhancement"
    (2021).
    """
    estimate_magnitude, target_magnitude = _magnitude(estimate), _magnitude(target)
    estimate_compressed, target_compressed = estimate_magnitude**exponent, target_magnitude**exponent
    difference = estimate * (estimate_compressed / estimate_magnitude) - target * (
        target_compressed / target_magnitude
    )
    complex_distance = (difference.real.square() + difference.imag.square()).mean()
    magnitude_distance = (estimate_compressed - target_compressed).square().mean()
    return 0.3 * complex_distance + 0.7 * magnitude_distance


def _magnitude(stft: torch.Tensor) -> torch.Tensor:
    # The floor bounds the gradient of the compression, which is infinite at zero.
    return (stft.real.square() + stft.imag.square() + 1e-5).sqrt()
