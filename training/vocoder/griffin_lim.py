"""Griffin-Lim from log-mels: the baseline that a vocoder has to beat."""

from __future__ import annotations

import torch

from pipeline_aud2studio import griffin_lim as algorithm
from pipeline_aud2studio.spectral import BandTransform


def griffin_lim(
    log_mel: torch.Tensor, transform: BandTransform, length: int, num_iterations: int = 32
) -> torch.Tensor:
    """Waveforms (..., length) for log-mels (..., bands, frames), with random initial phases from a fixed seed."""
    magnitude = transform.magnitude_from_mel(log_mel.exp())
    angle = 2 * torch.pi * torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0))
    phase = torch.polar(torch.ones_like(angle), angle).to(magnitude.device)
    return algorithm.griffin_lim(magnitude, phase, transform, length, num_iterations)
