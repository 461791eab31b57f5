"""How much of a known room's late reverberation is left in a restoration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pipeline_aud2studio.audio import Waveform
from training.degrade import EARLY_S, convolve, loudspeakers, take_response
from training.metrics import checked
from training.sources import Roots, inside, read_music, read_responses

FFT, HOP = 2048, 512  # 46 ms and 12 ms at 44.1 kHz: shorter than what counts as early


def late_tail_ratio(estimate: torch.Tensor, early: torch.Tensor, late: torch.Tensor) -> torch.Tensor:
    """Energy of the late reverberation over that of the early sound in an estimate, in dB; lower is drier.

    The signal-based counterpart of the reverberation ratios of Naylor and Gaubitch, "Speech Dereverberation" (2010),
    chapter 2. In every frequency bin the estimate is explained by the known early and late parts of the recording, by
    least squares over all frames; what neither explains (noise, artefacts) does not count, and an equaliser changes
    both alike. In the recording itself it is the ratio that the room has.

    Args:
        estimate, early, late: (..., samples), on one clock.

    Raises:
        ValueError: if the shapes differ, or the early or the late part is silent.
    """
    estimate, early = checked(estimate, early)
    _, late = checked(estimate, late)
    heard, first, second = (_spectrum(waveform) for waveform in (estimate, early, late))
    # The normal equations of two unknowns, in closed form. The parts are nearly orthogonal, never quite.
    energy_first, energy_second = first.abs().square().sum(-1), second.abs().square().sum(-1)
    cross = (first.conj() * second).sum(-1)
    with_first, with_second = (first.conj() * heard).sum(-1), (second.conj() * heard).sum(-1)
    determinant = energy_first * energy_second - cross.abs().square()
    usable = determinant > 1e-9 * energy_first.amax(-1, keepdim=True) * energy_second.amax(-1, keepdim=True)
    determinant = torch.where(usable, determinant, 1.0)
    share_first = (energy_second * with_first - cross * with_second) / determinant
    share_second = (energy_first * with_second - cross.conj() * with_first) / determinant
    early_energy = (share_first.abs().square() * energy_first * usable).sum(-1)
    late_energy = (share_second.abs().square() * energy_second * usable).sum(-1)
    return 10 * torch.log10(late_energy.clamp_min(1e-20) / early_energy.clamp_min(1e-20))


def known_parts(row: Mapping[str, Any], roots: Roots) -> tuple[Waveform, Waveform] | None:
    """What reached the first microphone of a synthetic row's music early (up to 50 ms) and late.

    Returns:
        Both (channels, samples), before crowd and device; None if the music of this row is in no known room.
    """
    if row["kind"] != "synthetic" or not row["music_in_room"]:
        return None
    sample_rate = row["sample_rate"]
    clean = read_music(row, roots)
    lead_in = clean.shape[-1] - round(row["seconds"] * sample_rate)
    feed = loudspeakers(row, clean)
    response = take_response(row, read_responses(inside(roots.rir_dir, row["rir_path"]), sample_rate), 0)
    boundary = round(EARLY_S * sample_rate)
    late_response = response.copy()
    late_response[:, :boundary] = 0.0
    if not late_response.any():
        return None
    early, late = convolve(feed, response[:, :boundary]), convolve(feed, late_response)
    return early[:, lead_in:], late[:, lead_in:]


def _spectrum(waveform: torch.Tensor) -> torch.Tensor:
    """(..., samples) to (..., bins, frames), complex."""
    window = torch.hann_window(FFT, dtype=waveform.dtype)
    flat = waveform.reshape(-1, waveform.shape[-1])
    spectrum = torch.stft(flat, FFT, HOP, window=window, return_complex=True)
    return spectrum.reshape(*waveform.shape[:-1], *spectrum.shape[-2:])
