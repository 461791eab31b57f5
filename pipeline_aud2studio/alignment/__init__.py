"""Several recordings of one performance on one clock.

    result = align(["front.wav", "balcony.flac", "bar.m4a"], sample_rate=44100)
    for alignment in result.alignments:
        print(alignment.name, alignment.offset_s, alignment.drift_ppm, alignment.polarity, alignment.confidence)
    waveforms = result.waveforms()              # one (channels, samples) each, all on the reference's clock

    alignment = align([desk, audience], 44100, reference=0).alignments[1]  # two arrays
    audience_on_the_desks_clock = alignment.apply(audience, desk.shape[-1])

The search is coarse to fine: onset strength is matched in segments (`coarse`), lags are measured by
GCC-PHAT in many windows and lines are laid through them (`fine`, `timing`), the recordings are read through a sinc
resampler (`clock`). A recording is accepted if enough of its windows agree with its line to a quarter of a
millisecond, which another performance, however similar, does not, and if its direct sound stands out (`direct`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from .clock import IDENTITY, Recording
from .coarse import (
    PEAK_DISTANCE_S,
    Candidates,
    beat_chroma,
    best_path,
    estimate_quality,
    find_candidates,
    log_band_energies,
    onset_strength,
    segment_lengths,
    without_path,
)
from .direct import agree
from .fine import common_information
from .timing import MIN_CONFIDENCE, Alignment, Match, locate, refine

logger = logging.getLogger(__name__)

Source = np.ndarray | str | os.PathLike[str] | Recording

# How far the direct sound must stand out, too. Of 103 pairs of 10 to 30 s, in simulated halls and in a measured one,
# 10 stayed below, all of them off by 0.3 to 30 ms; of the other 93, 89 were right to 0.1 ms.
MIN_DIRECT_HEIGHT = 6.0
# From this share on a match is one. Of several, as there are where music repeats, the one that explains most counts,
# among those that come this near to the most confident.
SURE_CONFIDENCE, CONFIDENCE_MARGIN = 0.5, 0.25
# Coarse paths that are tried until one is sure, and at most, those of this share of the best one's score.
NUM_PATHS, MAX_PATHS, RIVAL_SHARE = (2, 4), 6, 0.5
MIN_DURATION_S = 3.0


@dataclass(frozen=True)
class AlignmentResult:
    """All recordings' alignments, in the order given; the reference's is the identity.

    Attributes:
        reference: index of the recording whose clock and time span count.
        num_samples: the reference's length at `sample_rate`.
    """

    alignments: tuple[Alignment, ...]
    recordings: tuple[Recording, ...]
    reference: int
    num_samples: int
    sample_rate: float

    @property
    def accepted(self) -> list[int]:
        """Indices of the recordings that are used, the reference first, then by falling quality."""
        others = [index for index, each in enumerate(self.alignments) if each.accepted and index != self.reference]
        return [self.reference, *sorted(others, key=lambda index: -self.alignments[index].quality_db)]

    def blocks(self, index: int) -> Iterator[np.ndarray]:
        """A recording on the reference's clock, in pieces `(channels, samples)`."""
        return self.alignments[index].blocks(self.recordings[index], self.num_samples)

    def waveforms(self) -> list[np.ndarray]:
        """The accepted recordings on the reference's clock, `(channels, samples)` each, in the order of `accepted`."""
        return [np.concatenate(list(self.blocks(index)), axis=-1) for index in self.accepted]

    def report(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return {
            "reference": self.alignments[self.reference].name,
            "sample_rate": self.sample_rate,
            "duration_s": self.num_samples / self.sample_rate,
            "recordings": [alignment.report() for alignment in self.alignments],
        }


class NothingInCommonError(ValueError):
    """Fewer than two recordings can be used.

    Attributes:
        best: index of the recording that the others were compared with; None if none can be used.
    """

    def __init__(self, message: str, best: int | None) -> None:
        super().__init__(message)
        self.best = best


def align(
    recordings: Sequence[Source],
    sample_rate: float | None = None,
    reference: int | None = None,
    force: bool = False,
    progress: bool = False,
    rough: bool = False,
) -> AlignmentResult:
    """Puts recordings of one performance on one clock.

    Args:
        recordings: files, or arrays `(samples)` or `(channels, samples)` at `sample_rate`, or `Recording`s.
        sample_rate: rate in Hz of arrays, and of what the result returns; for files the reference's own if None.
        reference: index of the recording that sets the clock; the one of the best estimated quality if None.
        force: use recordings of low confidence as well.
        progress: show a bar.
        rough: whether a reference with none but rough alignments (:attr:`Alignment.is_rough`) is enough, too.

    Raises:
        NothingInCommonError: fewer than two recordings can be used; the message names each with the reason.
        ValueError: the reference cannot be used.
    """
    takes = tuple(_as_recording(source, sample_rate, index) for index, source in enumerate(recordings))
    if len(takes) < 2:
        raise ValueError(f"alignment needs at least two recordings, got {len(takes)}")
    if reference is not None and not 0 <= reference < len(takes):
        raise ValueError(f"reference {reference} does not exist: choose 0 to {len(takes) - 1}")
    hidden = None if progress else True
    surveys = [_survey(take) for take in tqdm(takes, desc="listening", unit="recording", leave=False, disable=hidden)]
    if reference is not None and surveys[reference].fault:
        raise ValueError(f"{takes[reference].name} cannot be the reference: it {surveys[reference].fault}")
    usable = [index for index, survey in enumerate(surveys) if not survey.fault]
    usable.sort(key=lambda index: -surveys[index].quality_db)

    # The best one may be of another night: then the next best that any other agrees with is the reference.
    attempts: dict[int, tuple[Alignment, ...]] = {}
    chosen = -1
    for candidate in usable if reference is None else [reference]:
        rate = sample_rate or takes[candidate].sample_rate
        indices = tqdm(range(len(takes)), desc="aligning", unit="recording", leave=False, disable=hidden)
        pairs = [_place(takes, surveys, candidate, index, rate, force) for index in indices]
        attempts[candidate] = _agreed(takes, pairs, candidate, rate, force)
        if sum(each.accepted for each in attempts[candidate]) >= 2:
            chosen = candidate
            break
    if chosen < 0 and rough:
        chosen = next((candidate for candidate, found in attempts.items() if any(each.is_rough for each in found)), -1)
    if chosen < 0:
        faults = [f"{take.name} {survey.fault}" for take, survey in zip(takes, surveys, strict=True) if survey.fault]
        others = next(iter(attempts.values()), ()) if len(usable) > 1 else ()
        refusals = [f"{each.name} {each.reason}" for each in others if each.reason and not each.accepted]
        best = (usable[0] if usable else None) if reference is None else reference
        raise NothingInCommonError(f"fewer than two recordings can be aligned: {'; '.join(refusals or faults)}", best)
    for each in attempts[chosen]:
        if not each.accepted:
            logger.warning("%s is left out: it %s", each.name, each.reason)
    rate = sample_rate or takes[chosen].sample_rate
    return AlignmentResult(attempts[chosen], takes, chosen, int(np.ceil(takes[chosen].duration_s * rate)), rate)


class _Survey(NamedTuple):
    """Onset strength and quality of a recording, or why it cannot be used."""

    onsets: np.ndarray
    quality_db: float
    fault: str = ""


def _as_recording(source: Source, sample_rate: float | None, index: int) -> Recording:
    if isinstance(source, Recording):
        return source
    return Recording(source, sample_rate or 0.0, f"recording {index}" if isinstance(source, np.ndarray) else "")


def _survey(take: Recording) -> _Survey:
    if take.duration_s < MIN_DURATION_S:
        return _Survey(np.empty((0, 0)), 0.0, f"is shorter than {MIN_DURATION_S:.0f} s")
    if take.is_silent:
        return _Survey(np.empty((0, 0)), 0.0, "is silent")
    energies = log_band_energies(take)
    return _Survey(onset_strength(energies), estimate_quality(energies))


def _place(
    takes: Sequence[Recording], surveys: Sequence[_Survey], reference: int, index: int, sample_rate: float, force: bool
) -> Alignment:
    """Aligns one recording with the reference, and judges what is found."""
    take, survey, name = takes[index], surveys[index], takes[reference].name
    nothing = Alignment(take.name, take.sample_rate, sample_rate, quality_db=survey.quality_db, reason=survey.fault)
    if survey.fault:
        return nothing
    if index == reference:
        identity = replace(IDENTITY, end_s=take.duration_s)
        return replace(nothing, confidence=1.0, accepted=True, segments=(identity,))
    match = _search(takes[reference], take, surveys[reference].onsets, survey.onsets)
    if match is None:
        return replace(nothing, reason=f"has no overlap with {name} that could be found")
    found = locate(takes[reference], take, match, sample_rate)
    doubt = _doubt(found.confidence, found.direct_height, name)
    return replace(found, quality_db=survey.quality_db, accepted=force or not doubt, reason=doubt)


def _agreed(
    takes: Sequence[Recording], pairs: Sequence[Alignment], reference: int, sample_rate: float, force: bool
) -> tuple[Alignment, ...]:
    """The alignments with the reference, after what the other recordings say of each other."""
    together = [
        index
        for index, each in enumerate(pairs)
        # Where a recording jumps, its stretches may be wrong each by itself.
        if index != reference and each.confidence >= MIN_CONFIDENCE and not each.jumps
    ]
    agreed = list(pairs)
    if len(together) < 2:
        return tuple(agreed)
    together = [reference, *together]
    clocks, polarities = [pairs[each].segments for each in together], [pairs[each].polarity for each in together]
    found = agree([takes[each] for each in together], clocks, polarities, sample_rate)
    for index, delay, polarity, height in [*zip(together, *(each.tolist() for each in found), strict=True)][1:]:
        each = pairs[index]
        # Where all agree, the pair's own windows have been chosen better.
        height = max(height, each.direct_height) if delay == 0 else height
        doubt = _doubt(each.confidence, height, takes[reference].name)
        agreed[index] = replace(
            each,
            offset_s=each.offset_s - delay,
            polarity=polarity,
            accepted=force or not doubt,
            segments=tuple(replace(segment, offset_s=segment.offset_s - delay) for segment in each.segments),
            window_lags_s=each.window_lags_s - delay,
            direct_height=height,
            reason=doubt,
        )
    return tuple(agreed)


def _doubt(confidence: float, direct_height: float, reference: str) -> str:
    """Why a match should not be used; empty where it may."""
    if confidence < MIN_CONFIDENCE:
        return (
            f"does not seem to be of the same performance as {reference} "
            f"(confidence {confidence:.2f}, needs {MIN_CONFIDENCE})"
        )
    if direct_height < MIN_DIRECT_HEIGHT:
        return (
            f"is too short, noisy or reverberant to tell when the direct sound arrives, against {reference} "
            f"(it stands out {direct_height:.1f} times, needs {MIN_DIRECT_HEIGHT})"
        )
    return ""


def _search(reference: Recording, take: Recording, reference_onsets: np.ndarray, onsets: np.ndarray) -> Match | None:
    """Picks the best of the coarse search's ideas: by onsets, then by chroma.

    Where music repeats, several fit: the right one has most in common.
    """
    found: list[Match] = []
    for by_chroma in (False, True):
        near, far = reference_onsets, onsets
        if by_chroma:
            near, far = beat_chroma(reference, near), beat_chroma(take, far)
        for length, num_paths in zip(segment_lengths(near, far), NUM_PATHS, strict=False):
            _try_paths(reference, take, find_candidates(near, far, length), num_paths, found)
        best = max((match.confidence for match in found), default=0.0)
        if best >= SURE_CONFIDENCE:
            found = [match for match in found if match.confidence >= best - CONFIDENCE_MARGIN]
            if len(found) == 1:
                return found[0]
            return max(found, key=lambda match: common_information(reference, take, match.segments))
    return max(found, key=lambda match: match.confidence, default=None)


def _try_paths(
    reference: Recording, take: Recording, candidates: Candidates, num_paths: int, found: list[Match]
) -> None:
    """Adds what comes of the likeliest paths: of some until one is sure, then of those that come near to the best."""
    rival_score = 0.0
    for number in range(MAX_PATHS):
        runs = best_path(candidates)
        score = sum(run.score for run in runs)
        rival_score = max(rival_score, RIVAL_SHARE * score)
        sure = [match for match in found if match.confidence >= SURE_CONFIDENCE]
        if not runs or (score < rival_score if sure else number >= num_paths):
            break
        known = len(runs) == 1 and any(
            abs(match.segments[0].offset_s - runs[0].offset_s) < PEAK_DISTANCE_S for match in sure
        )
        match = None if known else refine(reference, take, runs)
        if match is not None:
            found.append(match)
        candidates = without_path(candidates, runs)
