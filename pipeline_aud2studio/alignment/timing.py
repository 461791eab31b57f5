"""From a coarse match to clocks: lines of lag against time, the jumps between them, polarity, and a confidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from .clock import Recording, Segment, blocks_on_reference_clock
from .coarse import LAG_TOLERANCE_S, MAX_DRIFT, Run
from .direct import direct_delay
from .fine import (
    JUMP_S,
    Correlations,
    Course,
    Windows,
    common_information,
    correlate_windows,
    find_drift,
    fit_courses,
    highest_lag,
    likeness,
    split_lines,
    track,
)

# Share of agreeing windows from which a recording counts as one of the same performance. Chance gives about 0.1.
MIN_CONFIDENCE = 0.3
# First pass: windows short enough that an unknown drift blurs them little, and as wide as the coarse search errs.
ROUGH_WINDOW_S, ROUGH_REACH_S, ROUGH_TOLERANCE_S, ROUGH_WINDOWS = 1.5, 0.15, 5e-4, 40
# Second pass, on nearly equal clocks. A window agrees if it lies within the tolerance of the line; it is looked for in
# eighty times as much, so that windows of different performances agree by chance in little more than 1 %.
FINE_WINDOW_S, FINE_REACH_S, FINE_TOLERANCE_S, FINE_WINDOWS = 4.0, 0.1, 2.5e-4, 100
# Third pass: as much as can be had is summed; the direct sound lies this near to the pattern's highest peak.
DIRECT_WINDOW_S, DIRECT_REACH_S = 6.0, 0.05
MIN_WINDOWS = 10
# The first pass leaves the drift off by a few of its tolerances over the length; clocks wander by a few millionths.
DRIFT_REACH_S, DRIFT_WANDER = 2e-3, 10e-6
# Two lines nearer than this are one stretch: the coarse search takes an echo for a jump. The second pass sees more.
MERGE_S = 0.05
# Music that repeats feigns jumps. Over a true one no second of the concert comes twice, no line goes on afterwards as
# if nothing had been, and the line before or after it does not explain this much of what the stretch's own explains.
REPEAT_S, REPEAT_SHARE = 2.0, 0.5
# What two recordings must share: over a second or two the end of one piece may well fit the beginning of another.
MIN_SHARED_S, MIN_SHARE = 5.0, 0.5  # the share is of the shorter recording
# Of a stretch's windows, the share that must agree lest it is taken for a mistake of the coarse search.
MIN_AGREEMENT = 0.1
# A stretch shorter than this takes its drift from the longest: a recorder has one clock.
OWN_DRIFT_S = 120.0
JUMP_WINDOW_S, JUMP_REACH_S, JUMP_WINDOWS = 0.75, 1e-3, 41


@dataclass(frozen=True)
class Alignment:
    """Where a recording lies on the reference's clock.

    Attributes:
        name: the recording's name.
        recording_rate, sample_rate: rates in Hz of the recording and of what `apply` returns.
        offset_s: reference time of the recording's first sample.
        drift_ppm: how much faster the recording's clock runs than the reference's, in millionths, on average; of the
            longest stretch between two jumps.
        polarity: 1, or -1 where the recording is inverted.
        confidence: share of the measured windows that agree, 0 to 1.
        accepted: whether the recording is used.
        segments: stretches in which the clock runs evenly, each with its own line; empty where nothing was found. The
            first begins at 0, the last ends with the recording. Where two of them do not meet, the recording jumps.
        window_times_s, window_lags_s, residuals_s: what the windows measured (on the recording's clock; reference
            time minus recording time), and its distance from the line.
        direct_height: how far the direct sound stands out of the echoes and the noise, times their root mean square.
        quality_db: see `coarse.estimate_quality`.
        reason: why the recording is not used, or would not be unless forced.
    """

    name: str
    recording_rate: float
    sample_rate: float
    offset_s: float = 0.0
    drift_ppm: float = 0.0
    polarity: int = 1
    confidence: float = 0.0
    accepted: bool = False
    segments: tuple[Segment, ...] = ()
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
        steps = [
            (right.start_s, float(right.to_reference(right.start_s)) - float(left.to_reference(left.end_s)))
            for left, right in pairwise(self.segments)
        ]
        return [(at_s, by_s) for at_s, by_s in steps if abs(by_s) >= JUMP_S]

    def apply(self, waveform: np.ndarray, length: int) -> np.ndarray:
        """Puts the recording on the reference's clock, with its polarity; zeros where it recorded nothing.

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
        """Returns plain numbers and strings, for JSON; times in seconds."""
        windows = zip(
            self.window_times_s.tolist(), self.window_lags_s.tolist(), self.residuals_s.tolist(), strict=True
        )
        names = "name accepted reason offset_s drift_ppm polarity confidence direct_height quality_db".split()
        return {name: getattr(self, name) for name in names} | {
            "residual_ms": 1e3 * float(np.median(np.abs(self.residuals_s))) if len(self.residuals_s) else None,
            "segments": [vars(segment) for segment in self.segments],
            "jumps": [{"at_s": at_s, "by_s": by_s} for at_s, by_s in self.jumps],
            "windows": [{"time_s": at_s, "lag_s": lag_s, "residual_ms": 1e3 * left} for at_s, lag_s, left in windows],
        }


@dataclass(frozen=True)
class _Stretch:
    """The course of a lag between two jumps, the windows with those that agree, and their pattern.

    The course leads through the pattern's lag 0, the direct sound comes `direct_s` later.
    """

    course: Course
    windows: Windows
    inliers: np.ndarray
    pattern: np.ndarray
    direct_s: float = 0.0

    @property
    def residuals_s(self) -> np.ndarray:
        return self.windows.lags_s - self.course.lags_at(self.windows.times_s)


@dataclass(frozen=True)
class Match:
    """Where the windows agree, up to the direct sound, which takes as long to find as all the rest.

    `groups`: stretches in order of time; those of a group share a pattern.
    """

    groups: tuple[tuple[_Stretch, ...], ...]

    @property
    def stretches(self) -> list[_Stretch]:
        return [stretch for group in self.groups for stretch in group]

    @property
    def confidence(self) -> float:
        """Share of the windows that agree with the courses, 0 to 1."""
        inliers = np.concatenate([stretch.inliers for stretch in self.stretches])
        return agreement(inliers, sum(len(stretch.course.times_s) for stretch in self.stretches))

    @property
    def segments(self) -> list[Segment]:
        """The courses' pieces, from the first to the last window that agrees."""
        courses = [stretch.course for stretch in self.stretches]
        return [segment for course in courses for segment in course.segments(course.start_s, course.end_s)]


def refine(reference: Recording, recording: Recording, runs: list[Run]) -> Match | None:
    """Measures a coarse match in many windows; None where reference and recording do not overlap enough to tell."""
    coarse = _cover([Segment.from_line(run.offset_s, run.slope, run.start_s, run.end_s) for run in runs], recording)
    rough = [part for segment in coarse for part in _rough_pass(reference, recording, segment)]
    if not rough:
        return None
    believed = [segment for segment, share in rough if share >= MIN_AGREEMENT]
    segments = believed or [max(rough, key=lambda part: part[1])[0]]
    covering = _cover(_merge(_without_repeats(reference, recording, _merge(segments))), recording)
    shortest_s = min(reference.duration_s, recording.duration_s)
    if _shared_s(reference, covering) < min(MIN_SHARED_S, MIN_SHARE * shortest_s):
        return None
    total_s = sum(map(_length, covering))
    limits = [max(int(_length(segment) / total_s * FINE_WINDOWS), MIN_WINDOWS) for segment in covering]
    passes = zip(covering, limits, strict=True)
    groups = [tuple(_fine_pass(reference, recording, segment, limit)) for segment, limit in passes]
    return Match(tuple(filter(None, groups))) if any(groups) else None


def locate(reference: Recording, recording: Recording, match: Match, sample_rate: float) -> Alignment:
    """Finds the direct sound on a match, not yet judged; its arrival is measured at `sample_rate` Hz."""
    stretches: list[_Stretch] = []
    heights: list[tuple[float, int]] = []  # signed, with the number of windows
    for group in match.groups:
        direct_s, height = _find_direct_sound(reference, recording, group, sample_rate)
        stretches += [replace(stretch, direct_s=direct_s) for stretch in group]
        heights.append((height, sum(len(stretch.windows) for stretch in group)))
    stretches = _one_clock(stretches)
    edges = [0.0, *_jumps(reference, recording, stretches), recording.duration_s]
    segments = tuple(
        segment
        for stretch, (start_s, end_s) in zip(stretches, pairwise(edges), strict=True)
        for segment in stretch.course.shifted(-stretch.direct_s).segments(start_s, end_s)
    )
    longest = max(stretches, key=lambda stretch: _length(stretch.course))
    return Alignment(
        recording.name,
        recording.sample_rate,
        sample_rate,
        offset_s=segments[0].offset_s,
        drift_ppm=Segment.from_line(0.0, longest.course.slope, 0.0, 0.0).drift_ppm,
        polarity=1 if sum(height * count for height, count in heights) >= 0 else -1,
        confidence=match.confidence,
        segments=segments,
        window_times_s=np.concatenate([stretch.windows.times_s for stretch in stretches]),
        window_lags_s=np.concatenate([stretch.windows.lags_s - stretch.direct_s for stretch in stretches]),
        residuals_s=np.concatenate([stretch.residuals_s for stretch in stretches]),
        direct_height=sum(abs(height) * count for height, count in heights) / sum(count for _, count in heights),
    )


def agreement(inliers: np.ndarray, free: int = 2) -> float:
    """Share of windows that agree beyond those, `free` in number, that a line or course can always be laid through."""
    return max(0.0, float(inliers.sum() - free) / (len(inliers) - free)) if len(inliers) > free else 0.0


def _cover(segments: list[Segment], recording: Recording) -> list[Segment]:
    """The same lines, their bounds moved so that together they cover the recording."""
    segments = sorted(segments, key=lambda segment: segment.start_s)
    borders = [(left.end_s + right.start_s) / 2 for left, right in pairwise(segments)]
    bounds = pairwise([0.0, *borders, recording.duration_s])
    return [replace(each, start_s=start, end_s=end) for each, (start, end) in zip(segments, bounds, strict=True)]


def _merge(segments: list[Segment]) -> list[Segment]:
    """Neighbours that lie on one line become one: the coarse search had strayed in between."""
    merged = segments[:1]
    for segment in segments[1:]:
        last = merged[-1]
        middle = (last.end_s + segment.start_s) / 2
        if abs(float(last.to_reference(middle)) - float(segment.to_reference(middle))) < MERGE_S:
            longer = max(last, segment, key=_length)
            merged[-1] = replace(longer, start_s=last.start_s, end_s=segment.end_s)
        else:
            merged.append(segment)
    return merged


def _without_repeats(reference: Recording, recording: Recording, segments: list[Segment]) -> list[Segment]:
    """The segments without those where what sounds twice, as a loop or a jingle, has misled the coarse search.

    A segment goes if its neighbours lie on one line without it. Of two neighbours the shorter goes if they share a
    passage of the reference, or if the longer one's line, continued, explains the shorter about as well.
    """
    kept = list(segments)
    for segment in sorted(segments, key=_length)[:-1]:
        at = kept.index(segment)
        neighbours = [*kept[max(at - 1, 0) : at], *kept[at + 1 : at + 2]]
        longer = [each for each in neighbours if _length(each) > _length(segment)]
        detour = len(neighbours) == 2 and len(_merge(neighbours)) == 1
        if detour or any(_repeats(reference, recording, segment, each) for each in longer):
            del kept[at]
    return kept


def _repeats(reference: Recording, recording: Recording, segment: Segment, neighbour: Segment) -> bool:
    """Whether a segment's music is the neighbour's over again."""
    (start_s, end_s), (other_start_s, other_end_s) = (_on_reference(each) for each in (segment, neighbour))
    if min(end_s, other_end_s) - max(start_s, other_start_s) > REPEAT_S:
        return True
    continued = replace(neighbour, start_s=segment.start_s, end_s=segment.end_s)
    own, others = (common_information(reference, recording, [each]) for each in (segment, continued))
    return others >= REPEAT_SHARE * own


def _length(part: Segment | Course) -> float:
    return part.end_s - part.start_s


def _shared_s(reference: Recording, segments: Sequence[Segment]) -> float:
    """Seconds of the reference that the segments lie on."""
    spans = map(_on_reference, segments)
    return sum(max(min(end_s, reference.duration_s) - max(start_s, 0.0), 0.0) for start_s, end_s in spans)


def _on_reference(segment: Segment) -> tuple[float, float]:
    """The segment's bounds on the reference's clock."""
    return float(segment.to_reference(segment.start_s)), float(segment.to_reference(segment.end_s))


def _centres(
    reference: Recording, recording: Recording, segment: Segment, window_s: float, limit: int
) -> tuple[np.ndarray, float]:
    """Centres of windows where both recorded, on the recording's clock, and the length that fits in."""
    start = max(segment.start_s, 0.0, float(segment.to_recording(0.0)))
    end = min(segment.end_s, recording.duration_s, float(segment.to_recording(reference.duration_s)))
    if end - start < 1.0:
        return np.empty(0), window_s
    window_s = min(window_s, (end - start) / MIN_WINDOWS)
    count = int(np.clip((end - start) / window_s, MIN_WINDOWS, limit))
    return np.linspace(start + window_s / 2, end - window_s / 2, count), window_s


def _rough_pass(reference: Recording, recording: Recording, segment: Segment) -> list[tuple[Segment, float]]:
    """The lines in a coarse stretch, led through the pattern's highest peak, and the share of windows on each."""
    centres, window_s = _centres(reference, recording, segment, ROUGH_WINDOW_S, ROUGH_WINDOWS)
    correlations = correlate_windows(reference, recording, segment, centres, window_s, ROUGH_REACH_S)
    if len(correlations.times_s) < MIN_WINDOWS:
        return []
    # A coarse slope is off by what its lags scatter over its length, or unknown.
    known = segment.drift_ppm != 0.0
    reach = min(MAX_DRIFT, 3 * LAG_TOLERANCE_S / float(np.ptp(centres))) if known else MAX_DRIFT
    drift = find_drift(correlations, reach)
    middle = float(correlations.times_s.mean())
    slope = segment.slope - drift
    offset_s = float(segment.to_reference(middle)) - middle - slope * middle
    turned = Segment.from_line(offset_s, slope, segment.start_s, segment.end_s)
    delays_s = drift * (correlations.times_s - middle)
    turns = np.exp(2j * np.pi * correlations.frequencies * delays_s[:, None])
    correlations = replace(correlations, spectra=(correlations.spectra * turns).astype(np.complex64))
    windows, pattern = _follow(correlations, turned)
    peak_s = highest_lag(pattern, correlations.size, ROUGH_REACH_S)
    found = []
    for part, line in split_lines(windows, ROUGH_TOLERANCE_S, slope, _slope_reach(windows)):
        agreeing_s = windows.times_s[part][line.inliers]
        bounds = float(agreeing_s[0]), float(agreeing_s[-1])
        found.append((Segment.from_line(line.offset_s - peak_s, line.slope, *bounds), agreement(line.inliers)))
    return found


def _fine_pass(reference: Recording, recording: Recording, segment: Segment, limit: int) -> list[_Stretch]:
    """The courses in a stretch, with all that was measured."""
    centres, window_s = _centres(reference, recording, segment, FINE_WINDOW_S, limit)
    correlations = correlate_windows(reference, recording, segment, centres, window_s, FINE_REACH_S)
    if len(correlations.times_s) < MIN_WINDOWS:
        return []
    windows, pattern = _follow(correlations, segment)
    lines = split_lines(windows, FINE_TOLERANCE_S, segment.slope, _slope_reach(windows))
    stretches = []
    for part, course in fit_courses(windows, lines, FINE_TOLERANCE_S):
        mine = windows[part]
        agrees = np.abs(mine.lags_s - course.lags_at(mine.times_s)) <= FINE_TOLERANCE_S
        stretches.append(_Stretch(course, mine, agrees, pattern))
    return stretches


def _follow(correlations: Correlations, segment: Segment) -> tuple[Windows, np.ndarray]:
    """Lags by the windows' pattern, and the pattern."""
    delays, scores, pattern = track(correlations)
    times = correlations.times_s
    lags = np.asarray(segment.to_reference(times)) - times - delays
    return Windows(times, lags, np.maximum(scores, 1e-3)), pattern


def _slope_reach(windows: Windows) -> float:
    return DRIFT_REACH_S / max(float(np.ptp(windows.times_s)), 1.0) + DRIFT_WANDER


def _find_direct_sound(
    reference: Recording, recording: Recording, stretches: Sequence[_Stretch], sample_rate: float
) -> tuple[float, float]:
    """Delay and signed height of the direct sound against lines that share a pattern, from their agreeing windows."""
    windows = [
        (stretch.course.segment_at(time_s), time_s)
        for stretch in stretches
        for time_s in stretch.windows.times_s[stretch.inliers].tolist()
    ]
    longest_s = max(_length(stretch.course) for stretch in stretches)
    window_s = float(np.clip(longest_s / 2, 1.0, DIRECT_WINDOW_S))
    return direct_delay(reference, recording, windows, sample_rate, window_s, DIRECT_REACH_S)


def _one_clock(stretches: list[_Stretch]) -> list[_Stretch]:
    """Short stretches with the drift of the longest, turned about their middle: a recorder has one clock."""
    longest = max(stretches, key=lambda stretch: _length(stretch.course))
    unified = []
    for stretch in stretches:
        course = stretch.course
        if _length(course) < OWN_DRIFT_S and stretch is not longest:
            middle_s = (course.start_s + course.end_s) / 2
            offset_s = float(course.lags_at(np.array([middle_s]))[0]) - longest.course.slope * middle_s
            course = Course.straight(offset_s, longest.course.slope, course.start_s, course.end_s)
        unified.append(replace(stretch, course=course))
    return unified


def _jumps(reference: Recording, recording: Recording, stretches: list[_Stretch]) -> list[float]:
    """Times on the recording's clock of the jumps between stretches: where short windows change sides."""
    jumps: list[float] = []
    for left, right in pairwise(stretches):
        # A window agrees as long as the larger part of it lies on its side of the jump.
        low = max([left.course.end_s - FINE_WINDOW_S / 2, 0.0, *jumps[-1:]])
        high = min(right.course.start_s + FINE_WINDOW_S / 2, right.course.end_s)
        while high - low > JUMP_WINDOW_S:
            times = np.linspace(low, high, JUMP_WINDOWS)
            on_left, on_right = (_likeness_at(reference, recording, side, times) for side in (left, right))
            gains = np.concatenate([[0.0], np.cumsum(on_left - on_right)])
            best, step = int(np.argmax(gains)), (high - low) / (JUMP_WINDOWS - 1)
            middle = low + step * (best - 0.5)
            if step <= JUMP_WINDOW_S / 2:
                low = high = middle
            else:
                low, high = max(low, middle - 2 * step), min(high, middle + 2 * step)
        jumps.append((low + high) / 2)
    return jumps


def _likeness_at(reference: Recording, recording: Recording, stretch: _Stretch, times_s: np.ndarray) -> np.ndarray:
    """How well short windows fit a stretch's course and pattern, one value each; 0 where there is silence."""
    fits = np.zeros(len(times_s))
    for index, time_s in enumerate(times_s):
        clock, window = stretch.course.segment_at(float(time_s)), times_s[index : index + 1]
        here = correlate_windows(reference, recording, clock, window, JUMP_WINDOW_S, FINE_REACH_S)
        for spectrum in here.spectra:
            fits[index] = likeness(spectrum, stretch.pattern, here.size, JUMP_REACH_S).max()
    return fits
