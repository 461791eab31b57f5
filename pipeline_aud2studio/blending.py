"""The cross-over from the faithful read-out to the vocoder, per band and frame.

    X = F + spread(weight * amplitude) * V

`F` is the faithful spectrum, which is always there in full. The weight is zero, to the bit, where it has what the
restored mel asks for: two versions of one sound at like levels would comb-filter. Where `F` is far below the restored
mel, because the microphone lost the band or the gains had to bury it, the vocoder's spectrum `V` is brought to the
level that is missing, with regard to the phase that the two happen to have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch.nn import functional as F

from .chunks import overlap_added, stft_parts
from .spectral import BandTransform

# What the faithful output may fall short of the restored mel before the vocoder comes in, and when it is in fully.
# From half the amplitude down, no comb between the two is deeper than the gap that is there without the vocoder.
LACK_DB = (6.0, 12.0)
SMOOTHED_FRAMES = 9  # over which energies are compared: 52 ms at 44.1 kHz
MAX_CORRECTION = 10.0  # factor by which a band of the vocoder may be raised to the restored mel

# First frame, faithful spectrum (rows, bins, frames), restored log-mel (rows, bands, frames).
Part = tuple[int, torch.Tensor, torch.Tensor]


def vocoder_weight(faithful_log_mel: torch.Tensor, restored_log_mel: torch.Tensor) -> torch.Tensor:
    """How much of the vocoder is wanted, 0 to 1, of log-mels (rows, bands, frames): the same shape.

    Energies are added up over time before they are compared, so that an attack decides for its surroundings and not
    the silence beside it. Over the bands there is a median of three: it keeps a limit of the recording where it is.
    """
    restored, faithful = (_energy_around(log_mel) for log_mel in (restored_log_mel, faithful_log_mel))
    lack_db = 10 * torch.log10(restored / faithful)
    beside = F.pad(lack_db, (0, 0, 1, 1), mode="replicate")
    lack_db = torch.stack([beside[:, :-2], lack_db, beside[:, 2:]]).median(0).values
    low, high = LACK_DB
    ramp = ((lack_db - low) / (high - low)).clamp(0, 1)
    return ramp.square() * (3 - 2 * ramp)


def _energy_around(log_mel: torch.Tensor) -> torch.Tensor:
    """Mean energy over `SMOOTHED_FRAMES`; at the edges with silence beyond, on both sides of a comparison."""
    return F.avg_pool1d((2 * log_mel).exp(), SMOOTHED_FRAMES, stride=1, padding=SMOOTHED_FRAMES // 2)


def blend(
    transform: BandTransform,
    faithful: torch.Tensor,
    vocoded: torch.Tensor,
    restored_log_mel: torch.Tensor,
    weight: torch.Tensor,
) -> torch.Tensor:
    """The faithful spectrum with the vocoder's where it is wanted.

    Args:
        faithful, vocoded: Spectra (rows, bins, frames).
        restored_log_mel: What the sum is to have (rows, bands, frames), where the weight is one.
        weight: See :func:`vocoder_weight`.
    """
    correction = (restored_log_mel - transform.log_mel(vocoded)).exp().clamp(max=MAX_CORRECTION)
    vocoded = vocoded * transform.spread(correction)
    # In every band |F + a V|^2 = |V|^2, whose level is the restored mel's: a^2 v + 2 a c + f = v.
    wanted = transform.average(_power(vocoded)).clamp_min(1e-20)
    present = transform.average(_power(faithful))
    cross = transform.average((faithful * vocoded.conj()).real)
    discriminant = cross.square() + wanted * (wanted - present)
    amplitude = ((discriminant.clamp_min(0).sqrt() - cross) / wanted).clamp(0, 2)
    amplitude = torch.where(present < wanted, amplitude, 0)
    return faithful + transform.spread(weight * amplitude) * vocoded


def _power(spectrum: torch.Tensor) -> torch.Tensor:
    return spectrum.real.square() + spectrum.imag.square()


def fine_parts(coarse: BandTransform, fine: BandTransform, parts: Iterable[Part], num_frames: int) -> Iterator[Part]:
    """Brings faithful spectra to the STFT of the vocoder's mel, in memory that does not grow.

    Args:
        coarse, fine: The STFT of the spectra that come, and of those that go; whole hops of the one fit the other.
        parts: First coarse frame, coarse spectrum (rows, bins, frames), and the log-mel (rows, bands, fine frames) of
            the same stretch, one after the other.
        num_frames: Fine frames of the whole.

    Yields:
        First fine frame, spectrum (rows, bins, frames) and log-mel of the same frames.
    """
    mels: list[torch.Tensor] = []

    def spectra() -> Iterator[tuple[int, torch.Tensor]]:
        for first, spectrum, log_mel in parts:
            mels.append(log_mel)
            yield first, spectrum

    samples = (block.to(mels[0].device) for block in overlap_added(coarse, spectra(), num_frames * fine.hop_length))
    for first, spectrum in stft_parts(fine, samples, num_frames):
        known = torch.cat(mels, dim=-1)
        count = spectrum.shape[-1]
        mels[:] = [known[..., count:]]
        yield first, spectrum, known[..., :count]


def blended_parts(
    transform: BandTransform,
    parts: Iterable[Part],
    vocode: Callable[[Iterator[tuple[int, torch.Tensor]]], Iterator[torch.Tensor]],
    num_frames: int,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Blends what comes in parts, in memory that does not grow.

    Args:
        transform: Of the spectra.
        parts: One after the other, from the first frame to the last.
        vocode: Makes waveforms (rows, samples) of such log-mels.
        num_frames: Of the whole.

    Yields:
        First frame and spectrum (rows, bins, frames), block by block.
    """
    begin = 0  # the first frame that is kept
    kept: list[torch.Tensor] = []  # spectra, log-mels, and log-mels of the spectra

    def log_mels() -> Iterator[tuple[int, torch.Tensor]]:
        nonlocal begin
        for first, faithful, log_mel in parts:
            new = [faithful, log_mel, transform.log_mel(faithful)]
            begin = begin if kept else first
            kept[:] = [torch.cat(pair, dim=-1) for pair in zip(kept, new, strict=True)] if kept else new
            yield first, log_mel

    samples = (block.to(kept[0].device) for block in vocode(log_mels()))
    for first, vocoded in stft_parts(transform, samples, num_frames):
        end, spectra, mels, own_mels = first + vocoded.shape[-1], *kept
        low = max(first - SMOOTHED_FRAMES // 2, begin)
        high = min(end + SMOOTHED_FRAMES // 2, begin + mels.shape[-1])
        near, inside = slice(low - begin, high - begin), slice(first - begin, end - begin)
        weight = vocoder_weight(own_mels[..., near], mels[..., near])[..., first - low : end - low]
        yield first, blend(transform, spectra[..., inside], vocoded, mels[..., inside], weight)
        forgotten = max(end - SMOOTHED_FRAMES // 2 - begin, 0)
        kept[:], begin = [each[..., forgotten:] for each in kept], begin + forgotten
