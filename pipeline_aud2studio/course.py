"""The course of a lag over time between two jumps: a straight line, or one that bends where a clock warms up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .clock import Segment
from .lags import Line, Windows

# Bends are this far apart at least, in time and in windows.
MIN_BEND_S, MIN_BEND_WINDOWS = 120.0, 6
# Bends are believed if they leave less than this share of the straight line's deviation.
BEND_GAIN = 0.7
# Lines that meet within this are one course with a bend, not two with a jump.
JUMP_S = 1e-3
NUM_ITERATIONS = 5


@dataclass(frozen=True)
class Course:
    """Lag (reference time minus recording time) against recording time: straight between knots, two at least."""

    times_s: np.ndarray
    lags_s: np.ndarray

    @classmethod
    def straight(cls, offset_s: float, slope: float, start_s: float, end_s: float) -> Course:
        times = np.array([start_s, max(end_s, start_s + 1e-3)])
        return cls(times, offset_s + slope * times)

    @property
    def start_s(self) -> float:
        return float(self.times_s[0])

    @property
    def end_s(self) -> float:
        return float(self.times_s[-1])

    @property
    def slope(self) -> float:
        """From the first knot to the last."""
        return float((self.lags_s[-1] - self.lags_s[0]) / (self.times_s[-1] - self.times_s[0]))

    def shifted(self, seconds: float) -> Course:
        return Course(self.times_s, self.lags_s + seconds)

    def lags_at(self, times_s: np.ndarray) -> np.ndarray:
        """Beyond the knots the outer lines go on."""
        piece = np.clip(np.searchsorted(self.times_s, times_s, side="right") - 1, 0, len(self.times_s) - 2)
        slopes = np.diff(self.lags_s) / np.diff(self.times_s)
        return self.lags_s[piece] + slopes[piece] * (times_s - self.times_s[piece])

    def segments(self, start_s: float, end_s: float) -> list[Segment]:
        """The straight pieces that cover a span of the recording."""
        inner = self.times_s[1:-1]
        edges = [start_s, *inner[(inner > start_s) & (inner < end_s)].tolist(), end_s]
        return [self.segment_at((low + high) / 2, low, high) for low, high in zip(edges, edges[1:], strict=False)]

    def segment_at(self, time_s: float, start_s: float = 0.0, end_s: float = np.inf) -> Segment:
        """The line that holds at a time, as a segment with the bounds given."""
        piece = int(np.clip(np.searchsorted(self.times_s, time_s, side="right") - 1, 0, len(self.times_s) - 2))
        (first, last), (lag, next_lag) = self.times_s[piece : piece + 2], self.lags_s[piece : piece + 2]
        slope = float((next_lag - lag) / (last - first))
        return Segment.from_line(float(lag - slope * first), slope, start_s, end_s)


def fit_courses(
    windows: Windows, lines: Sequence[tuple[slice, Line]], tolerance_s: float
) -> list[tuple[slice, Course]]:
    """Lines that meet become one course, which bends if the windows say so.

    Args:
        windows, lines: what `split_lines` was given and gave, in order of time.
        tolerance_s: how far from the course a window may lie and still count.

    Returns:
        The courses, with the windows of each. Their outer knots are the first and the last window that agrees.
    """
    groups = [[lines[0]]]
    for part, line in lines[1:]:
        last = groups[-1][-1][1]
        border_s = float(windows.times_s[part.start - 1 : part.start + 1].mean())
        gap_s = (last.offset_s + last.slope * border_s) - (line.offset_s + line.slope * border_s)
        if abs(gap_s) < JUMP_S:
            groups[-1].append((part, line))
        else:
            groups.append([(part, line)])
    return [
        (slice(group[0][0].start, group[-1][0].stop), _fit_course(windows, group, tolerance_s)) for group in groups
    ]


def _fit_course(windows: Windows, lines: Sequence[tuple[slice, Line]], tolerance_s: float) -> Course:
    whole = windows[slice(lines[0][0].start, lines[-1][0].stop)]
    agrees = np.concatenate([line.inliers for _, line in lines])
    times, lags = whole.times_s, whole.lags_s
    start_s, end_s = float(times[agrees][0]), float(times[agrees][-1])
    longest = max(lines, key=lambda entry: entry[0].stop - entry[0].start)[1]
    straight = Course.straight(longest.offset_s, longest.slope, start_s, end_s)
    pieces = int(min((end_s - start_s) / MIN_BEND_S, agrees.sum() / MIN_BEND_WINDOWS))
    if pieces < 2:
        return straight
    knots = np.linspace(start_s, end_s, pieces + 1)
    # One hat function a knot; a touch of stiffness keeps knots in place that no window is near to.
    hats = np.stack([np.interp(times, knots, row) for row in np.eye(len(knots))], axis=1)
    stiffness = 0.03 * np.diff(np.eye(len(knots)), 2, axis=0)
    for _ in range(NUM_ITERATIONS):
        system = np.concatenate([hats[agrees], stiffness])
        levels = np.linalg.lstsq(system, np.concatenate([lags[agrees], np.zeros(len(stiffness))]), rcond=None)[0]
        agrees = np.abs(lags - hats @ levels) <= tolerance_s
        if agrees.sum() < 2 * len(knots):
            return straight
    bent = Course(knots, levels)
    deviations = [
        float(np.sqrt(np.mean(np.square((lags - course.lags_at(times))[agrees])))) for course in (straight, bent)
    ]
    freedom = np.sqrt(agrees.sum() / (agrees.sum() - len(knots)))
    return bent if len(lines) > 1 or deviations[1] * freedom < BEND_GAIN * deviations[0] else straight
