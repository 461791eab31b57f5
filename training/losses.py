"""What training minimises on the faithful waveform. Every loss is a mean over the batch and larger is worse."""

from __future__ import annotations

import torch


def si_sdr_loss(
    estimate: torch.Tensor, target: torch.Tensor, ceiling_db: float = 30.0, floor_db: float = -10.0
) -> torch.Tensor:
    """Negative scale-invariant SDR in dB, softly bounded at both ends.

    SI-SDR after Le Roux et al., "SDR - half-baked or well done?" (2019); the upper bound, which keeps an easy clip
    from outweighing the hard ones, after Wisdom et al., "Unsupervised sound separation using mixture invariant
    training" (2020). The lower bound is for rooms: tonal music in a hall hardly correlates with the clean signal, down
    to -30 dB, where the gradient of SI-SDR is large and no more than noise.

    Args:
        estimate, target: Waveforms (batch, samples).
        ceiling_db: The value that a perfect estimate reaches.
        floor_db: The value that an estimate without any correlation reaches.
    """
    energy = target.square().sum(-1, keepdim=True).clamp_min(1e-8)
    projection = (estimate * target).sum(-1, keepdim=True) / energy * target
    signal = projection.square().sum(-1)
    error = (estimate - projection).square().sum(-1)
    best, worst = 10 ** (-ceiling_db / 10), 10 ** (floor_db / 10)
    return -10 * torch.log10((signal + worst * error + 1e-8) / (error + best * signal + 1e-8)).mean()


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
