"""The recordings of one performance as takes that the pipeline can stack: on one clock, the reference first."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from pathlib import Path

from ..files import AudioError, Spool
from ..restore_file import Take
from . import AlignmentResult, NothingInCommonError, align
from .clock import Recording

# That predict: with more a block has too few frames for their filters, and memory grows by the square.
MAX_CHANNELS = 12
SEVERAL = "they seem to be several recordings: restore each, or parts of one as one piece with --join"
MAX_PAUSE_S = 2.0  # of a recorder between two parts


class NoOtherFitsError(AudioError):
    """No recording has anything in common with the reference.

    Attributes:
        reference: index of the recording that can be restored alone.
    """

    def __init__(self, message: str, reference: int) -> None:
        super().__init__(message)
        self.reference = reference


@dataclass(frozen=True)
class Gathered:
    """Recordings on one clock.

    Attributes:
        reference: index of the recording that the others are aligned to.
        takes: at the reference's rate, all as long as it: the reference first, then the others by falling quality,
            whatever the order in which they were given. Those that only predict are last.
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
        max_takes: takes that the model sees; of more, those of the best estimated quality. The others, and those
            whose direct sound cannot be told, predict late sound, as far as `MAX_CHANNELS` allow.
        reference: index of the recording that sets clock, span, level and image; the best one if None.
        force: also use recordings that seem to be of another performance.
        say: is told which recordings are left out and why, a sentence each.
        folder: whose disk holds the decoded recordings, see :func:`decoded_bytes`.

    Raises:
        NoOtherFitsError: nothing but the reference can be used.
        AudioError: a recording cannot be read, the reference cannot be used, or they are parts of one, see `follow`.
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
            result = align(recordings, None, reference, force, progress=True, rough=True)
        except NothingInCommonError as error:
            if error.best is None or any(follow(takes, names)):
                raise AudioError(f"{error}; {SEVERAL}") from None
            raise NoOtherFitsError(f"{error}; {SEVERAL}", error.best) from None
        except ValueError as error:
            raise AudioError(str(error)) from None
        _check_parts(result, takes, names)
        seen = result.accepted[:max_takes]
        predicting = _predicting(result, seen, sum(takes[index].num_channels for index in seen))
        for index, alignment in enumerate(result.alignments):
            if index in seen:
                continue
            reason = "recordings of better quality are there" if alignment.accepted else f"it {alignment.reason}"
            role = "helps with the room only" if index in predicting else "is left out"
            say(f"{names[index]} {role}: {reason}")
        say(f"{names[result.reference]} is the reference")
        aligned = []
        for index in [*seen, *predicting]:
            take = replace(takes[index], sample_rate=round(result.sample_rate), frames=result.num_samples)
            blocks = partial(result.blocks, index)
            aligned.append(replace(take, blocks=blocks, only_predicts=index in predicting))
        yield Gathered(result.reference, aligned, result)


def follow(takes: Sequence[Take], names: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Find recordings that seem to be consecutive parts of one: of one format, and numbered or timed one by one.

    Yields:
        The index of a part and of the next.
    """
    formats = [(take.sample_rate, take.num_channels, take.subtype) for take in takes]
    for one, other in permutations(range(len(takes)), 2):
        if formats[one] == formats[other]:
            if _is_next(names[one], names[other]) or _is_resumed(takes[one], takes[other]):
                yield one, other


def _check_parts(result: AlignmentResult, takes: Sequence[Take], names: Sequence[str]) -> None:
    """Raise an AudioError where a recording that does not fit is the next part of another, or the one before it."""
    unfit = {index for index, each in enumerate(result.alignments) if not (each.accepted or each.is_rough)}
    for one, other in follow(takes, names):
        if unfit & {one, other}:
            raise AudioError(f"{names[other]} follows {names[one]} and has no sound in common with it: {SEVERAL}")


def _is_next(name: str, other: str) -> bool:
    """Whether two names are the same but for one number, which is higher by one in the second."""
    words, others = re.split(r"(\d+)", name), re.split(r"(\d+)", other)
    differing = [pair for pair in zip(words, others, strict=False) if pair[0] != pair[1]]
    if len(words) != len(others) or len(differing) != 1 or not (differing[0][0] + differing[0][1]).isdecimal():
        return False
    return int(differing[0][1]) == int(differing[0][0]) + 1


def _is_resumed(one: Take, other: Take) -> bool:
    """Whether a recording began when another ended, by what their recorder noted."""
    began, begins = _beginning(one), _beginning(other)
    if began is None or begins is None or not one.frames:
        return False
    pause_s = begins[1] - began[1] - one.frames / one.sample_rate
    return began[0] == begins[0] and 0 <= pause_s < MAX_PAUSE_S


def _beginning(take: Take) -> tuple[bytes, float] | None:
    """Date and seconds since midnight at which a recorder began, as BWF's `bext` chunk has them (EBU Tech 3285)."""
    for chunk in take.chunks:
        if chunk[:4] == b"bext" and len(chunk) >= 354:
            return chunk[328:338], int.from_bytes(chunk[346:354], "little") / take.sample_rate
    return None


def _predicting(result: AlignmentResult, seen: Sequence[int], channels: int) -> list[int]:
    """Picks the recordings that only predict, the best first, as long as there are channels left."""
    others = [
        index
        for index, each in enumerate(result.alignments)
        if index not in seen and (each.accepted or each.is_rough) and each.segments
    ]
    picked = []
    for index in sorted(others, key=lambda index: -result.alignments[index].quality_db):
        channels += result.recordings[index].num_channels
        if channels <= MAX_CHANNELS:
            picked.append(index)
    return picked


def decoded_bytes(takes: Sequence[Take]) -> int:
    """Disk space that the takes need while they are aligned, as far as their headers tell how long they are."""
    return sum(4 * (take.frames or 0) * take.num_channels for take in takes)
