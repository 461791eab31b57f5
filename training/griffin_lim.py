"""Griffin-Lim from log-mels: the baseline that a vocoder has to beat."""

from __future__ import annotations

import torch

from pipeline_aud2studio.spectral import BandTransform


def magnitudes_from_log_mel(
    log_mel: torch.Tensor, transform: BandTransform, num_iterations: int = 100
) -> torch.Tensor:
    """Non-negative magnitudes (..., bins, frames) whose mel spectrum is `log_mel` (..., bands, frames).

    Multiplicative updates for the least squares problem (Lee and Seung, 2001): they stay non-negative, and keep equal
    the bins that no band tells apart.
    """
    bank = transform.filterbank.to(log_mel.device)  # (bands, bins)
    mel = log_mel.exp()
    numerator = bank.T @ mel
    magnitude = numerator / (bank.T.sum(1, keepdim=True) + 1e-12)
    for _ in range(num_iterations):
        magnitude = magnitude * numerator / (bank.T @ (bank @ magnitude) + 1e-12)
    return magnitude


def griffin_lim(
    log_mel: torch.Tensor, transform: BandTransform, length: int, num_iterations: int = 32, momentum: float = 0.99
) -> torch.Tensor:
    """Waveforms (..., length) for log-mels (..., bands, frames), with random initial phases from a fixed seed.

    The fast variant of Perraudin, Balazs and Søndergaard, "A fast Griffin-Lim algorithm" (2013).
    """
    magnitude = magnitudes_from_log_mel(log_mel, transform)
    angle = 2 * torch.pi * torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0))
    phase = torch.polar(torch.ones_like(angle), angle).to(magnitude.device)
    previous = torch.zeros_like(phase)
    for _ in range(num_iterations):
        consistent = transform.stft(transform.istft(magnitude * phase, length))
        phase = consistent - momentum / (1 + momentum) * previous
        phase = phase / (phase.abs() + 1e-12)
        previous = consistent
    return transform.istft(magnitude * phase, length)
