"""From a log-mel to a waveform, in blocks, so that memory is bounded."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import partial

import torch
from diffusers import MMAudioVocoder

from .precision import finite_or_again

VOCODER_BLOCK = 512  # frames vocoded at a time
VOCODER_CONTEXT = 32  # frames beside a block that the vocoder sees and that are thrown away


def vocode(vocoder: MMAudioVocoder, log_mel: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Waveform (rows, frames * hop_length) of a log-mel (rows, n_mels, frames)."""
    return torch.cat([*vocode_parts(vocoder, [log_mel], device)], dim=-1)


def vocode_parts(
    vocoder: MMAudioVocoder, parts: Iterable[torch.Tensor], device: torch.device | str
) -> Iterator[torch.Tensor]:
    """Waveform (rows, samples) piece by piece of a log-mel that comes in parts (rows, n_mels, frames).

    It is vocoded in blocks, so that memory is bounded. A block sees `VOCODER_CONTEXT` further frames on both sides,
    whose samples are thrown away.
    """
    first = begin = 0  # of the next block's own frames, and of what is kept of the log-mel
    kept: torch.Tensor | None = None
    for part in itertools.chain(parts, [None]):
        if part is not None:
            kept = part if kept is None else torch.cat([kept, part], dim=-1)
        if kept is None:
            return
        known = begin + kept.shape[-1]
        while first + VOCODER_BLOCK + VOCODER_CONTEXT <= known or (part is None and first < known):
            end = min(first + VOCODER_BLOCK + VOCODER_CONTEXT, known)
            compute = partial(_synthesised, vocoder, kept[..., : end - begin].to(device))
            block = finite_or_again(compute, {"vocoder": vocoder}, f"from frame {begin} on")
            hop_length = block.shape[-1] // (end - begin)
            wanted = min(VOCODER_BLOCK, known - first)
            yield block[:, (first - begin) * hop_length : (first - begin + wanted) * hop_length]
            first += VOCODER_BLOCK
            forgotten = max(first - VOCODER_CONTEXT - begin, 0)
            begin, kept = begin + forgotten, kept[..., forgotten:]


def _synthesised(vocoder: MMAudioVocoder, log_mel: torch.Tensor) -> torch.Tensor:
    return vocoder(log_mel.to(vocoder.dtype)).sample[:, 0].float().cpu()
