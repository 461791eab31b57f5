"""From a log-mel to a waveform, in blocks, so that memory is bounded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from diffusers import MMAudioVocoder

from .precision import finite_or_again

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
        refine: What becomes of a block's waveform, see :func:`.griffin_lim.refine`.
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
