"""From a log-mel to a waveform: the vocoder, in blocks, and Griffin-Lim for the phases that a small one gets wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from diffusers import MMAudioVocoder

from .precision import finite_or_again
from .spectral import MEL_FLOOR, BandTransform

VOCODER_BLOCK = 512  # frames vocoded at a time
# Frames beside a block that the vocoder sees and that are thrown away. With 32 iterations of Griffin-Lim after it,
# what is beyond changes the block by -93 dB; without any, 32 frames would do.
VOCODER_CONTEXT = 64

Refine = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of a waveform (rows, samples) and its log-mel


def vocode(
    vocoder: MMAudioVocoder, log_mel: torch.Tensor, device: torch.device | str, refine: Refine | None = None
) -> torch.Tensor:
    """Waveform (rows, frames * hop_length) of a log-mel (rows, n_mels, frames)."""
    return torch.cat([*vocode_parts(vocoder, [(0, log_mel)], device, refine=refine)], dim=-1)


def vocode_parts(
    vocoder: MMAudioVocoder,
    parts: Iterable[tuple[int, torch.Tensor]],
    device: torch.device | str,
    refine: Refine | None = None,
) -> Iterator[torch.Tensor]:
    """Waveform (rows, samples) piece by piece of a log-mel that comes in parts.

    It is vocoded in blocks, so that memory is bounded. A block sees `VOCODER_CONTEXT` further frames on both sides,
    whose samples are thrown away.

    Args:
        vocoder, device: What computes.
        parts: First frame and log-mel (rows, n_mels, frames), one after the other.
        refine: What becomes of a block's waveform, see :func:`refine`.
    """
    first = begin = 0  # of the next block's own frames, and of what is kept of the log-mel
    kept: torch.Tensor | None = None
    for at, part in itertools.chain(parts, [(0, None)]):
        if part is not None:
            begin = at if kept is None else begin
            kept = part if kept is None else torch.cat([kept, part], dim=-1)
        if kept is None:
            return
        known = begin + kept.shape[-1]
        while first + VOCODER_BLOCK + VOCODER_CONTEXT <= known or (part is None and first < known):
            end = min(first + VOCODER_BLOCK + VOCODER_CONTEXT, known)
            context = max(first - VOCODER_CONTEXT, 0)
            begin, kept = context, kept[..., context - begin :]
            compute = partial(_synthesised, vocoder, refine, kept[..., : end - begin].to(device))
            block = finite_or_again(compute, {"vocoder": vocoder}, f"from frame {begin} on")
            hop_length = block.shape[-1] // (end - begin)
            wanted = min(VOCODER_BLOCK, known - first)
            yield block[:, (first - begin) * hop_length : (first - begin + wanted) * hop_length]
            first += VOCODER_BLOCK


def _synthesised(vocoder: MMAudioVocoder, refine: Refine | None, log_mel: torch.Tensor) -> torch.Tensor:
    waveforms = []
    for row in log_mel.split(1):  # memory that is twice as large costs more than twice the time on a CPU
        waveform = vocoder(row.to(vocoder.dtype)).sample[:, 0].float()
        waveforms.append((waveform if refine is None else refine(waveform, row.float())).cpu())
    return torch.cat(waveforms)


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
