"""The recordings of one performance as takes that the pipeline can stack: on one clock, the reference first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .alignment import AlignmentResult, align
from .files import Audio, AudioError
from .recording import Recording


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
    takes: list[Audio]
    alignment: AlignmentResult


def gather(
    recordings: Sequence[Audio],
    names: Sequence[str],
    max_takes: int,
    reference: int | None,
    force: bool,
    say: Callable[[str], None],
) -> Gathered:
    """Aligns recordings and picks those that are used.

    Args:
        recordings: two or more, each at its own rate and with its own start, length and clock.
        names: what messages call them.
        max_takes: takes that the model stacks; of more, those of the best estimated quality are used.
        reference: index of the recording that sets clock, span, level and image; the best one if None.
        force: also use recordings that seem to be of another performance.
        say: is told which recordings are left out and why, a sentence each.

    Raises:
        AudioError: fewer than two recordings can be used, or the reference cannot.
    """
    takes = [Recording(audio.waveform, audio.sample_rate, name) for audio, name in zip(recordings, names, strict=True)]
    # The aligner's own warnings say the same of those that are refused.
    logging.getLogger("pipeline_aud2studio.alignment").setLevel(logging.ERROR)
    try:
        # The rate is the reference's, as with files.
        result = align(takes, None, reference, force, progress=True)
    except ValueError as error:
        raise AudioError(str(error)) from None
    used = result.accepted[:max_takes]
    for index, alignment in enumerate(result.alignments):
        if not alignment.accepted:
            say(f"{names[index]} is left out: it {alignment.reason}")
        elif index not in used:
            say(f"{names[index]} is left out: {max_takes} recordings of better quality are there")
    say(f"{names[result.reference]} is the reference")
    rate = round(result.sample_rate)
    aligned = []
    for index, waveform in zip(result.accepted, result.waveforms(), strict=True):
        if index in used:
            aligned.append(replace(recordings[index], waveform=waveform, sample_rate=rate))
    return Gathered(result.reference, aligned, result)
