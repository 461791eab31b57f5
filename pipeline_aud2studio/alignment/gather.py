"""The recordings of one performance as takes that the pipeline can stack: on one clock, the reference first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..files import AudioError, Spool
from ..restore_file import Take
from . import AlignmentResult, align
from .clock import Recording


@dataclass(frozen=True)
class Gathered:
    """Recordings on one clock.

    Attributes:
        reference: index of the recording that the others are aligned to.
        takes: at the reference's rate, all as long as it: the reference first, then the others by falling quality,
            whatever the order in which they were given.
        alignment: what was measured, of the recordings that were left out too.
    """

    reference: int
    takes: list[Take]
    alignment: AlignmentResult


@contextmanager
def gather(
    takes: Sequence[Take],
    names: Sequence[str],
    max_takes: int,
    reference: int | None,
    force: bool,
    say: Callable[[str], None],
    folder: Path,
) -> Iterator[Gathered]:
    """Aligns recordings of any length and picks those that are used; a context, which keeps them on the disk.

    Args:
        takes: two or more, each at its own rate and with its own start, length and clock.
        names: what messages call them.
        max_takes: takes that the model stacks; of more, those of the best estimated quality are used.
        reference: index of the recording that sets clock, span, level and image; the best one if None.
        force: also use recordings that seem to be of another performance.
        say: is told which recordings are left out and why, a sentence each.
        folder: whose disk holds the decoded recordings, see :func:`decoded_bytes`.

    Raises:
        AudioError: a recording cannot be read, fewer than two can be used, or the reference cannot.
        OSError: the disk is full.
    """
    # The aligner's own warnings say the same of those that are refused.
    logging.getLogger("pipeline_aud2studio.alignment").setLevel(logging.ERROR)
    with ExitStack() as spools:
        recordings = []
        for take, name in zip(takes, names, strict=True):
            spool = spools.enter_context(closing(Spool(folder, take.num_channels, take.sample_rate)))
            recordings.append(Recording(spool.extend(take.blocks()), take.sample_rate, name))
        try:
            # The rate is the reference's, as with files.
            result = align(recordings, None, reference, force, progress=True)
        except ValueError as error:
            hint = ""
            if "fewer than two" in str(error):
                hint = "; they seem to be several recordings: restore each, or parts of one as one piece with --join"
            raise AudioError(f"{error}{hint}") from None
        used = result.accepted[:max_takes]
        for index, alignment in enumerate(result.alignments):
            if not alignment.accepted:
                say(f"{names[index]} is left out: it {alignment.reason}")
            elif index not in used:
                say(f"{names[index]} is left out: {max_takes} recordings of better quality are there")
        say(f"{names[result.reference]} is the reference")
        rate, length = round(result.sample_rate), result.num_samples
        aligned = [
            replace(takes[index], sample_rate=rate, frames=length, blocks=partial(result.blocks, index))
            for index in used
        ]
        yield Gathered(result.reference, aligned, result)


def decoded_bytes(takes: Sequence[Take]) -> int:
    """Disk space that the takes need while they are aligned, as far as their headers tell how long they are."""
    return sum(4 * (take.frames or 0) * take.num_channels for take in takes)
