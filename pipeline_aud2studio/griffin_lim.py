"""Phases that fit the magnitudes: what a mel alone leaves open, and what a small vocoder gets wrong."""

from __future__ import annotations

import torch

from .spectral import MEL_FLOOR, BandTransform


def griffin_lim(
    magnitude: torch.Tensor,
    phase: torch.Tensor,
    transform: BandTransform,
    length: int,
    num_iterations: int = 32,
    momentum: float = 0.99,
) -> torch.Tensor:
    """Waveforms (..., length) with an STFT near the given magnitudes.

    The fast variant of Perraudin, Balazs and Søndergaard, "A fast Griffin-Lim algorithm" (2013).

    Args:
        magnitude: What is wanted (..., bins, frames).
        phase: Complex numbers of modulus one to begin with (..., bins, frames).
        transform: The STFT.
        length: Samples of the waveforms.
        num_iterations: Each goes to a waveform and back. Three frames to each side see each other in one.
        momentum: Share of the last step that is taken once more.
    """
    previous = torch.zeros_like(phase)
    for _ in range(num_iterations):
        consistent = transform.stft(transform.istft(magnitude * phase, length))
        phase = unit(consistent - momentum / (1 + momentum) * previous)
        previous = consistent
    return transform.istft(magnitude * phase, length)


def unit(spectrum: torch.Tensor) -> torch.Tensor:
    """The phases of a complex spectrum, as complex numbers of modulus one (zero where there is nothing)."""
    return spectrum / (spectrum.abs() + 1e-12)


def refine(
    waveform: torch.Tensor, log_mel: torch.Tensor, transform: BandTransform, num_iterations: int
) -> torch.Tensor:
    """A vocoder's waveform (rows, frames * hop_length) with the magnitudes of the log-mel (rows, bands, frames).

    Its phases are where Griffin-Lim begins. They depend on nothing but the mel around them, so that blocks that are
    refined apart from each other fit together, which they would not with random ones.
    """
    magnitude = transform.magnitude_from_mel(above_floor(log_mel))
    phase = unit(transform.stft(waveform))
    return griffin_lim(magnitude, phase, transform, waveform.shape[-1], num_iterations)


def above_floor(log_mel: torch.Tensor) -> torch.Tensor:
    """The mel (not its logarithm) of a log-mel. The front end's floor, which means anything below it, becomes silence.

    Taken at its word, the floor is a hiss 93 dB below full scale. From twice the floor on, the mel is as it was.
    """
    mel = log_mel.exp()
    return mel * (mel / MEL_FLOOR - 1).clamp(0, 1)
