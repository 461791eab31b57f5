"""The cross-over from the faithful read-out to the vocoder, per band and frame.

    X = F + spread(weight * amplitude) * V

`F` is the faithful spectrum, which is always there in full. The weight is zero, to the bit, where it has what the
restored mel asks for: two versions of one sound at like levels would comb-filter. Where `F` is far below the restored
mel, because the microphone lost the band or the gains had to bury it, the vocoder's spectrum `V` is brought to the
level that is missing, with regard to the phase that the two happen to have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch.nn import functional as F

from .chunks import overlap_added
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


def lag_frames(transform: BandTransform) -> int:
    """Frames at the end of a vocoded block whose windows reach beyond it."""
    return math.ceil(transform.pad / transform.hop_length)


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

    hop, pad = fine.hop_length, fine.pad
    waveform: torch.Tensor | None = None  # from `pad` samples before the frame `done` on
    done = heard = 0  # frames that are yielded, samples that came
    for samples in overlap_added(coarse, spectra(), num_frames * hop):
        samples, heard = samples.to(mels[0].device), heard + samples.shape[-1]
        edge = samples[:, 1 : pad + 1].flip(-1)  # before the first sample is a reflected edge
        waveform = torch.cat([edge if waveform is None else waveform, samples], dim=-1)
        if heard == num_frames * hop:
            waveform = torch.cat([waveform, waveform[:, -pad - 1 : -1].flip(-1)], dim=-1)
        mels[:] = [torch.cat(mels, dim=-1)]
        count = min((waveform.shape[-1] - 2 * pad) // hop, mels[0].shape[-1])
        if count > 0:
            yield done, fine.stft_of_padded(waveform[:, : count * hop + 2 * pad]), mels[0][..., :count]
            waveform, mels[0], done = waveform[:, count * hop :], mels[0][..., count:], done + count


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
    hop, pad, lag = transform.hop_length, transform.pad, lag_frames(transform)
    begin: int | None = None  # the first frame that is kept
    spectra, mels, own_mels = [torch.empty(0)] * 3

    def log_mels() -> Iterator[tuple[int, torch.Tensor]]:
        nonlocal begin, spectra, mels, own_mels
        for first, faithful, log_mel in parts:
            own = transform.log_mel(faithful)
            if begin is None:
                begin, spectra, mels, own_mels = first, faithful, log_mel, own
            else:
                spectra, mels, own_mels = (
                    torch.cat(pair, dim=-1) for pair in ((spectra, faithful), (mels, log_mel), (own_mels, own))
                )
            yield first, log_mel

    at_sample = -pad  # where the waveform begins: before the first sample is a reflected edge
    waveform: torch.Tensor | None = None
    first = known = 0  # the first frame of the next block, and frames that are vocoded
    for samples in vocode(log_mels()):
        assert begin is not None
        samples = samples.to(spectra.device)
        known += samples.shape[-1] // hop
        if waveform is None:
            waveform = torch.cat([samples[:, 1 : pad + 1].flip(-1), samples], dim=-1)
        else:
            waveform = torch.cat([waveform, samples], dim=-1)
        is_last = known == num_frames
        if is_last:
            waveform = torch.cat([waveform, waveform[:, -pad - 1 : -1].flip(-1)], dim=-1)
        end = num_frames if is_last else known - lag
        if end <= first:
            continue
        window = waveform[:, first * hop - pad - at_sample : end * hop + pad - at_sample]
        vocoded = transform.stft_of_padded(window)
        low = max(first - SMOOTHED_FRAMES // 2, begin)
        high = min(end + SMOOTHED_FRAMES // 2, begin + mels.shape[-1])
        near = slice(low - begin, high - begin)
        weight = vocoder_weight(own_mels[..., near], mels[..., near])[..., first - low : end - low]
        inside = slice(first - begin, end - begin)
        yield first, blend(transform, spectra[..., inside], vocoded, mels[..., inside], weight)
        kept_from = max(end - SMOOTHED_FRAMES // 2, begin)
        spectra, mels, own_mels = (each[..., kept_from - begin :] for each in (spectra, mels, own_mels))
        waveform = waveform[:, end * hop - pad - at_sample :]
        begin, at_sample, first = kept_from, end * hop - pad, end
