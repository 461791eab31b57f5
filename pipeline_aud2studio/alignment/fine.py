"""The fine measurement: how the lag between two recordings changes, from correlations in many windows.

In a hall the direct sound is rarely the highest peak of a window's cross-correlation; at the back of it a window shows
nothing but echoes. The pattern of echoes, however, is the same in every window, as nothing in the room moves: so the
windows are compared with one another, each with the sum of those before it. What an own recording of another
performance lacks is exactly such a pattern that stays.

The correlations are GCC-PHAT: Knapp and Carter, "The generalized correlation method for estimation of time delay",
1976.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.fft
from scipy.signal.windows import tukey

from .clock import Recording, Segment, read_pair
from .coarse import parabolic_peak

# Correlations are made at this rate: above, crowd and codecs leave little that two recordings share.
RATE = 22050.0
LOWEST_HZ = 100.0
# Until the drift is known, windows are blurred by it: higher frequencies would only add noise to the search.
DRIFT_TOP_HZ = 5000.0
# How far from the expected lag a window is looked for, and how far it must stick out there, in standard deviations.
TRACK_REACH_S, MIN_SCORE = 0.02, 5.0
# Windows that start the pattern.
SEED_WINDOWS = 8
# A match is interpolated to this many points a sample before the parabola.
OVERSAMPLING = 4
# Windows for the coherence: as long as most of a hall's echoes; more of them cost time and tell nothing new.
INFORMATION_WINDOW_S, INFORMATION_WINDOWS = 1.0, 200
# A second line must explain this many windows more than the first alone before a jump is believed.
JUMP_WINDOWS = 4
# Lines that a robust fit tries: all pairs of a few dozen windows, a seeded choice of more.
NUM_TRIALS = 3000


@dataclass(frozen=True)
class Windows:
    """Lags that were measured in windows, an entry each.

    Attributes:
        times_s: centres on the recording's clock.
        lags_s: reference time minus recording time of the same event.
        scores: how far the match stands out, in standard deviations.
    """

    times_s: np.ndarray
    lags_s: np.ndarray
    scores: np.ndarray

    def __getitem__(self, index: np.ndarray | slice) -> Windows:
        return Windows(self.times_s[index], self.lags_s[index], self.scores[index])

    def __len__(self) -> int:
        return len(self.times_s)


@dataclass(frozen=True)
class Correlations:
    """Cross-correlations of windows around a segment's line, unit energy each.

    Attributes:
        times_s: centres of the windows on the recording's clock.
        spectra: `(windows, bins)`, the correlations' spectra, cut on either side of lag 0.
        size: length of the transform; lag k is sample k, negative lags wrap around.
    """

    times_s: np.ndarray
    spectra: np.ndarray
    size: int

    @property
    def frequencies(self) -> np.ndarray:
        return scipy.fft.rfftfreq(self.size, 1 / RATE)


def shared_band(reference: Recording, recording: Recording, size: int) -> np.ndarray:
    """Bins of a spectrum of `size` samples in which both recordings have something."""
    frequencies = scipy.fft.rfftfreq(size, 1 / RATE)
    return (frequencies >= LOWEST_HZ) & (frequencies <= 0.45 * min(reference.sample_rate, recording.sample_rate, RATE))


def correlate_windows(
    reference: Recording, recording: Recording, segment: Segment, times_s: np.ndarray, window_s: float, reach_s: float
) -> Correlations:
    """GCC-PHAT of both recordings around a segment's line, in windows centred at `times_s` on the recording's clock.

    Windows in which one of them is silent are left out.
    """
    length, reach = int(window_s * RATE), int(reach_s * RATE)
    size, out_size = (2 * scipy.fft.next_fast_len(samples, real=True) for samples in (length, 2 * reach))
    taper = tukey(length, 0.2).astype(np.float32)
    band = shared_band(reference, recording, size)
    times, spectra = [], []
    for time_s in times_s:
        start = int(round(float(segment.to_reference(time_s)) * RATE)) - length // 2
        pair = read_pair(reference, recording, segment, start, length, RATE)
        near, far = (scipy.fft.rfft(samples * taper, size) for samples in pair)
        cross = far * near.conj()
        magnitude = np.abs(cross)
        floor = 1e-12 * float(magnitude.max())
        if floor <= 0:
            continue
        correlation = scipy.fft.irfft(np.where(band, cross / np.maximum(magnitude, floor), 0), size)
        cut = np.concatenate([correlation[: reach + 1], np.zeros(out_size - 2 * reach - 1), correlation[-reach:]])
        times.append(float(segment.to_recording((start + length / 2) / RATE)))
        spectra.append(scipy.fft.rfft(cut / np.linalg.norm(cut)).astype(np.complex64))
    table = np.array(spectra).reshape(len(times), out_size // 2 + 1)
    return Correlations(np.array(times), table, out_size)


def common_information(reference: Recording, recording: Recording, segments: Sequence[Segment]) -> float:
    """How much one recording tells of the other if they lie so, in nats; of two matches, the right one has more.

    That of Gaussian processes, which follows from their coherence (Gelfand and Yaglom, 1957), less what chance gives.
    """
    length = int(INFORMATION_WINDOW_S * RATE)
    taper = np.hanning(length)
    band = shared_band(reference, recording, length)
    cross, powers, count, shared_s = np.zeros(band.sum(), dtype=np.complex128), np.zeros((2, band.sum())), 0, 0.0
    for segment in segments:
        start_s = max(0.0, float(segment.to_reference(segment.start_s)))
        stop_s = min(reference.duration_s, float(segment.to_reference(segment.end_s)))
        shared_s += max(0.0, stop_s - start_s)
        starts = np.arange(int(start_s * RATE), int(stop_s * RATE) - length + 1, length)
        for start in starts[:: max(1, len(starts) // INFORMATION_WINDOWS)].tolist():
            near, far = read_pair(reference, recording, segment, start, length, RATE)
            levels = float(np.linalg.norm(near)), float(np.linalg.norm(far))
            if min(levels) <= 0:
                continue
            # Level by level, lest the loudest moment of a crowd decides.
            near, far = (
                scipy.fft.rfft(each / level * taper)[band] for each, level in zip((near, far), levels, strict=True)
            )
            cross += far * near.conj()
            powers += np.abs([near, far]) ** 2
            count += 1
    if count < 2:
        return 0.0
    coherence = np.abs(cross) ** 2 / np.maximum(powers.prod(axis=0), 1e-30)
    nats = float(-np.log(np.maximum(1 - coherence, 1e-6)).mean()) - 1 / (count - 1)
    return nats * shared_s * float(np.ptp(np.flatnonzero(band)) * RATE / length)


def find_drift(correlations: Correlations, reach: float) -> float:
    """The slope of delay against time, within `reach`, at which the windows' patterns add up to most energy."""
    frequencies = correlations.frequencies
    used = (frequencies > LOWEST_HZ) & (frequencies < DRIFT_TOP_HZ)
    times = correlations.times_s - correlations.times_s.mean()
    # Between two slopes no window turns by more than an eighth of a period.
    step = 0.25 / (DRIFT_TOP_HZ * max(float(np.ptp(times)), 1.0))
    slopes = step * np.arange(-int(np.ceil(reach / step)), int(np.ceil(reach / step)) + 1)
    turns = 2j * np.pi * times[:, None] * frequencies[used]
    turned, advance = correlations.spectra[:, used] * np.exp(turns * slopes[0]), np.exp(turns * step)
    energies = np.empty(len(slopes))
    for index in range(len(slopes)):
        energies[index] = np.sum(np.abs(turned.sum(axis=0)) ** 2)
        turned *= advance
    return float(slopes[np.argmax(energies)])


def track(correlations: Correlations) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Follows the pattern through the windows, forwards and backwards from where it shows best.

    Every window is matched with the sum of those already placed, so that a jump moves all windows beyond it. Returns
    the delay in seconds of every window, its score, and the pattern's spectrum `(bins)`.
    """
    spectra = correlations.spectra
    count, frequencies = len(spectra), correlations.frequencies
    block = min(SEED_WINDOWS, count)
    sums = [np.sum(np.abs(spectra[first : first + block].sum(axis=0)) ** 2) for first in range(count - block + 1)]
    first = int(np.argmax(sums))
    seed = range(first, first + block)
    pattern = spectra[first : first + block].sum(axis=0)
    delays, scores = np.zeros(count), np.zeros(count)
    for index in seed:
        delays[index], scores[index] = match(spectra[index], pattern - spectra[index], correlations.size)
    for index in (*range(seed.stop, count), *reversed(range(first))):
        delays[index], scores[index] = match(spectra[index], pattern, correlations.size)
        if scores[index] >= MIN_SCORE:
            pattern = pattern + spectra[index] * np.exp(2j * np.pi * frequencies * delays[index])
    return delays, scores, pattern


def match(spectrum: np.ndarray, pattern: np.ndarray, size: int) -> tuple[float, float]:
    """Delay in seconds of a correlation against a pattern, and how far the match stands out of its surroundings."""
    values = likeness(spectrum, pattern, size, TRACK_REACH_S)
    peak = int(np.argmax(values))
    deviation = 1.4826 * float(np.median(np.abs(values))) or 1.0
    delay = (peak + parabolic_peak(values, peak) - len(values) // 2) / (RATE * OVERSAMPLING)
    return delay, float(values[peak]) / deviation


def likeness(spectrum: np.ndarray, pattern: np.ndarray, size: int, reach_s: float) -> np.ndarray:
    """Correlation of a window's correlation with a pattern at delays within `reach_s`, interpolated; (odd number)."""
    fine = np.zeros(size * OVERSAMPLING // 2 + 1, dtype=np.complex64)
    fine[: len(spectrum)] = spectrum * pattern.conj()
    return _around_zero(scipy.fft.irfft(fine, size * OVERSAMPLING), int(reach_s * RATE * OVERSAMPLING))


def highest_lag(pattern: np.ndarray, size: int, reach_s: float) -> float:
    """Lag in seconds of a pattern's highest peak, of either sign."""
    reach = int(reach_s * RATE)
    return (int(np.argmax(np.abs(_around_zero(scipy.fft.irfft(pattern, size), reach)))) - reach) / RATE


def _around_zero(values: np.ndarray, reach: int) -> np.ndarray:
    """Values at lags from `-reach` to `reach` of a circular correlation."""
    return np.concatenate([values[-reach:], values[: reach + 1]])


@dataclass(frozen=True)
class Line:
    """`lag = offset_s + slope * recording time`, and which windows lie on it."""

    offset_s: float
    slope: float
    inliers: np.ndarray

    def residuals(self, windows: Windows) -> np.ndarray:
        return windows.lags_s - self.offset_s - self.slope * windows.times_s


def fit_line(windows: Windows, tolerance_s: float, slope: float, slope_reach: float) -> Line:
    """Lays the line that most windows agree on, by their scores (MSAC over pairs, then least squares on the inliers).

    Args:
        tolerance_s: how far from the line a window may lie and still count.
        slope, slope_reach: what the slope is expected to be, and how far it may differ.
    """
    times, lags, weights = windows.times_s, windows.lags_s, windows.scores
    first, second = np.triu_indices(len(times), 1)
    if len(first) > NUM_TRIALS:
        chosen = np.random.default_rng(0).choice(len(first), NUM_TRIALS, replace=False)
        first, second = first[chosen], second[chosen]
    slopes = (lags[second] - lags[first]) / (times[second] - times[first])
    possible = np.abs(slopes - slope) <= slope_reach
    # Lines of the expected slope through single windows are tried as well.
    slopes = np.concatenate([np.full(len(times), slope), slopes[possible]])
    offsets = np.concatenate([lags, lags[first[possible]]]) - slopes * np.concatenate([times, times[first[possible]]])
    misses = (
        np.abs(lags - offset - slope * times) / tolerance_s for offset, slope in zip(offsets, slopes, strict=True)
    )
    scores = [np.clip(1 - miss**2, 0, None) @ weights for miss in misses]
    best = int(np.argmax(scores))
    slope, offset = float(slopes[best]), float(offsets[best])
    inliers = np.abs(lags - offset - slope * times) <= tolerance_s
    if np.count_nonzero(inliers) > 2:
        slope, offset = np.polyfit(times[inliers], lags[inliers], 1, w=np.sqrt(weights[inliers])).tolist()
        inliers = np.abs(lags - offset - slope * times) <= tolerance_s
    return Line(offset, slope, inliers)


def split_lines(windows: Windows, tolerance_s: float, slope: float, slope_reach: float) -> list[tuple[slice, Line]]:
    """Lays one line, or several where the windows before and after a jump agree on different ones.

    In order of time, with the windows that were given to each.
    """
    whole = fit_line(windows, tolerance_s, slope, slope_reach)
    outliers = windows[~whole.inliers]
    if len(outliers) >= JUMP_WINDOWS:
        other = fit_line(outliers, tolerance_s, slope, slope_reach)
        agrees = np.abs(other.residuals(windows)) <= tolerance_s
        # Windows explained if one line holds up to a split and the other from there on, for every split.
        before, after = (
            np.concatenate([[0], np.cumsum(first)]) + np.concatenate([np.cumsum(second[::-1])[::-1], [0]])
            for first, second in ((whole.inliers, agrees), (agrees, whole.inliers))
        )
        split = int(np.argmax(np.maximum(before, after)))
        gain = max(before[split], after[split]) - whole.inliers.sum()
        if min(split, len(windows) - split) >= JUMP_WINDOWS and gain >= max(JUMP_WINDOWS, 0.05 * len(windows)):
            left, right = (
                split_lines(part, tolerance_s, slope, slope_reach) for part in (windows[:split], windows[split:])
            )
            return [*left, *((slice(part.start + split, part.stop + split), line) for part, line in right)]
    return [(slice(0, len(windows)), whole)]


# --- The course of a lag between two jumps: a straight line, or one that bends where a clock warms up ----------------

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
        piece, slopes = self._lines_at(times_s)
        return self.lags_s[piece] + slopes * (times_s - self.times_s[piece])

    def _lines_at(self, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and slopes of the lines that hold at some times."""
        piece = np.clip(np.searchsorted(self.times_s, times_s, side="right") - 1, 0, len(self.times_s) - 2)
        return piece, (np.diff(self.lags_s) / np.diff(self.times_s))[piece]

    def segments(self, start_s: float, end_s: float) -> list[Segment]:
        """The straight pieces that cover a span of the recording."""
        inner = self.times_s[1:-1]
        edges = [start_s, *inner[(inner > start_s) & (inner < end_s)].tolist(), end_s]
        return [self.segment_at((low + high) / 2, low, high) for low, high in pairwise(edges)]

    def segment_at(self, time_s: float, start_s: float = 0.0, end_s: float = np.inf) -> Segment:
        """The line that holds at a time, as a segment with the bounds given."""
        (piece,), (slope,) = self._lines_at(np.array([time_s]))
        offset_s = float(self.lags_s[piece] - slope * self.times_s[piece])
        return Segment.from_line(offset_s, float(slope), start_s, end_s)


def fit_courses(
    windows: Windows, lines: Sequence[tuple[slice, Line]], tolerance_s: float
) -> list[tuple[slice, Course]]:
    """Makes one course of lines that meet, which bends if the windows say so; with the windows of each.

    Its outer knots are the first and the last window that agrees.

    Args:
        windows, lines: what `split_lines` was given and gave, in order of time.
        tolerance_s: how far from the course a window may lie and still count.
    """
    groups = [[lines[0]]]
    for (_, last), (part, line) in pairwise(lines):
        border_s = float(windows.times_s[part.start - 1 : part.start + 1].mean())
        gap_s = (last.offset_s + last.slope * border_s) - (line.offset_s + line.slope * border_s)
        if abs(gap_s) >= JUMP_S:
            groups.append([])
        groups[-1].append((part, line))
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
