"""Several recordings of one performance on one clock.

    result = align(["front.wav", "balcony.flac", "bar.m4a"], sample_rate=44100)
    for alignment in result.alignments:
        print(alignment.name, alignment.offset_s, alignment.drift_ppm, alignment.polarity, alignment.confidence)
    waveforms = result.waveforms()              # one (channels, samples) each, all on the reference's clock

    alignment = align_pair(desk, audience, sample_rate=44100)          # two arrays
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
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .clock import IDENTITY, Recording, Segment, blocks_on_reference_clock
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
from .fine import JUMP_S, common_information
from .timing import Match, locate, refine

logger = logging.getLogger(__name__)

Source = np.ndarray | str | os.PathLike[str] | Recording

# Share of agreeing windows from which a recording counts as one of the same performance. Chance gives about 0.1.
MIN_CONFIDENCE = 0.3
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
class Alignment:
    """Where a recording lies on the reference's clock.

    Attributes:
        name: the recording's name.
        offset_s: reference time of the recording's first sample.
        drift_ppm: how much faster the recording's clock runs than the reference's, in millionths, on average.
        polarity: 1, or -1 where the recording is inverted.
        confidence: share of the measured windows that agree, 0 to 1.
        direct_height: how far the direct sound stands out of the echoes and the noise, times their root mean square.
        accepted: whether the recording is used.
        segments: stretches in which the clock runs evenly, each with its own line; empty where nothing was found.
        window_times_s, window_lags_s, residuals_s: what the windows measured (on the recording's clock; reference
            time minus recording time), and its distance from the line.
        quality_db: see `coarse.estimate_quality`.
        reason: why the recording is not used, or would not be unless forced.
        recording_rate, sample_rate: rates in Hz of the recording and of what `apply` returns.
    """

    name: str
    offset_s: float
    drift_ppm: float
    polarity: int
    confidence: float
    accepted: bool
    segments: tuple[Segment, ...]
    recording_rate: float
    sample_rate: float
    window_times_s: np.ndarray = field(default_factory=partial(np.empty, 0), repr=False)
    window_lags_s: np.ndarray = field(default_factory=partial(np.empty, 0), repr=False)
    residuals_s: np.ndarray = field(default_factory=partial(np.empty, 0), repr=False)
    direct_height: float = 0.0
    quality_db: float = 0.0
    reason: str = ""

    @property
    def is_rough(self) -> bool:
        """Whether it is of the same performance, but which of the echoes is its direct sound cannot be told."""
        return not self.accepted and self.confidence >= MIN_CONFIDENCE

    @property
    def jumps(self) -> list[tuple[float, float]]:
        """Where the recorder was paused or lost samples: time on its clock and what the lag grows by, in seconds."""
        meetings = zip(self.segments, self.segments[1:], strict=False)
        steps = [
            (right.start_s, float(right.to_reference(right.start_s)) - float(left.to_reference(left.end_s)))
            for left, right in meetings
        ]
        return [(at_s, by_s) for at_s, by_s in steps if abs(by_s) >= JUMP_S]

    def apply(self, waveform: np.ndarray, length: int) -> np.ndarray:
        """The recording on the reference's clock, with the reference's polarity; zeros where it recorded nothing.

        Args:
            waveform: the recording, `(samples)` or `(channels, samples)`, at its own rate.
            length: samples to return, usually the reference's.

        Returns:
            float32 `(length)` or `(channels, length)` at `sample_rate`.
        """
        recording = Recording(waveform, self.recording_rate, self.name)
        aligned = np.concatenate(list(self.blocks(recording, length)), axis=-1)
        return aligned[0] if np.ndim(waveform) == 1 else aligned

    def blocks(self, recording: Recording, length: int) -> Iterator[np.ndarray]:
        """Yields what `apply` returns in pieces `(channels, samples)` of some seconds, for files of any length."""
        for block in blocks_on_reference_clock(recording, self.segments, length, self.sample_rate):
            yield self.polarity * block

    def report(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON; times in seconds."""
        columns = zip(self.window_times_s, self.window_lags_s, self.residuals_s, strict=True)
        return {
            "name": self.name,
            "accepted": self.accepted,
            "reason": self.reason,
            "offset_s": self.offset_s,
            "drift_ppm": self.drift_ppm,
            "polarity": self.polarity,
            "confidence": self.confidence,
            "direct_height": self.direct_height,
            "quality_db": self.quality_db,
            "residual_ms": 1e3 * float(np.median(np.abs(self.residuals_s))) if len(self.residuals_s) else None,
            "segments": [vars(segment) for segment in self.segments],
            "jumps": [{"at_s": at_s, "by_s": by_s} for at_s, by_s in self.jumps],
            "windows": [
                {"time_s": float(time), "lag_s": float(lag), "residual_ms": 1e3 * float(residual)}
                for time, lag, residual in columns
            ],
        }


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


def align_pair(reference: np.ndarray, recording: np.ndarray, sample_rate: float, force: bool = False) -> Alignment:
    """Puts one recording on the clock of another, both in memory.

    Args:
        reference, recording: `(samples)` or `(channels, samples)` at `sample_rate`, of different lengths.

    Raises:
        ValueError: one of them is silent or shorter than three seconds, or they are not of the same performance.
    """
    return align([reference, recording], sample_rate, reference=0, force=force).alignments[1]


@dataclass(frozen=True)
class _Survey:
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
        return _Survey(np.empty((0, 0)), -np.inf, f"is shorter than {MIN_DURATION_S:.0f} s")
    if take.is_silent:
        return _Survey(np.empty((0, 0)), -np.inf, "is silent")
    energies = log_band_energies(take)
    return _Survey(onset_strength(energies), estimate_quality(energies))


def _unusable(take: Recording, survey: _Survey, sample_rate: float) -> Alignment:
    return Alignment(take.name, 0.0, 0.0, 1, 0.0, False, (), take.sample_rate, sample_rate, reason=survey.fault)


def _place(
    takes: Sequence[Recording], surveys: Sequence[_Survey], reference: int, index: int, sample_rate: float, force: bool
) -> Alignment:
    """The alignment of one recording with the reference, judged."""
    take, survey = takes[index], surveys[index]
    alignment = _unusable(take, survey, sample_rate)
    if survey.fault:
        return alignment
    alignment = replace(alignment, quality_db=survey.quality_db)
    if index == reference:
        identity = replace(IDENTITY, end_s=take.duration_s)
        return replace(alignment, confidence=1.0, accepted=True, segments=(identity,))
    match = _search(takes[reference], take, surveys[reference].onsets, survey.onsets)
    if match is None:
        return replace(alignment, reason=f"has no overlap with {takes[reference].name} that could be found")
    timing = locate(takes[reference], take, match, sample_rate)
    doubt = _doubt(timing.confidence, timing.direct_height, takes[reference].name)
    return replace(
        alignment,
        offset_s=timing.segments[0].offset_s,
        drift_ppm=timing.drift_ppm,
        polarity=timing.polarity,
        confidence=timing.confidence,
        accepted=force or not doubt,
        segments=timing.segments,
        window_times_s=timing.windows.times_s,
        window_lags_s=timing.windows.lags_s,
        residuals_s=timing.residuals_s,
        direct_height=timing.direct_height,
        reason=doubt,
    )


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
    chosen = [pairs[index] for index in together]
    delays, polarities, heights = agree(
        [takes[index] for index in together],
        [each.segments for each in chosen],
        [each.polarity for each in chosen],
        sample_rate,
    )
    figures = zip(delays.tolist(), polarities.tolist(), heights.tolist(), strict=True)
    for index, each, (delay, polarity, height) in zip(together, chosen, figures, strict=True):
        if index != reference:
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
    """The best of the coarse search's ideas: by onsets, then by chroma.

    Where music repeats, several fit: the right one has most in common.
    """
    found: list[Match] = []
    best: Match | None = None
    for describe in (None, beat_chroma):
        near, far = reference_onsets, onsets
        if describe is not None:
            near, far = describe(reference, near), describe(take, far)
        for length, num_paths in zip(segment_lengths(near, far), NUM_PATHS, strict=False):
            _try_paths(reference, take, find_candidates(near, far, length), num_paths, found)
        best = max(found, key=lambda match: match.confidence, default=None)
        if best is not None and best.confidence >= SURE_CONFIDENCE:
            rivals = [match for match in found if match.confidence >= best.confidence - CONFIDENCE_MARGIN]
            if len(rivals) > 1:
                best = max(rivals, key=lambda match: common_information(reference, take, match.segments))
            break
    return best


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
