"""The coarse search: which stretch of the reference sounds like which stretch of a recording, to about 10 ms.

A whole-file correlation is blurred by drift after tens of seconds, so the recording is cut into segments, every
segment is correlated with the whole reference, and the path of offsets that most segments agree on is taken. A path
may jump (the recorder was paused), at a price.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft

from .onsets import FRAME_RATE

SEGMENT_S = 40.0
# Where the shorter recording is shorter than this many segments, it is cut into as many; never below so many seconds.
MIN_SEGMENTS, MIN_SEGMENT_S = 3, 5.0
# A lag is judged by what of a segment it lays on the reference, this much at least.
MIN_OVERLAP_S = 3.0
# Candidates kept of a segment, and how far they must stick out of its correlation, in standard deviations.
NUM_PEAKS = 6
MIN_SCORE = 3.0
# Peaks closer than this are one.
PEAK_DISTANCE_S = 0.25
# Clocks may differ by this much; what the search tolerates is a little more than what recorders do.
MAX_DRIFT = 700e-6
LAG_TOLERANCE_S = 0.04
# A jump must pay for itself with about two good segments.
JUMP_PENALTY = 15.0
FFT_FRAMES = 2**16


@dataclass(frozen=True)
class Candidates:
    """Peaks of the segments' correlations, one entry each: segment centre and lag in seconds, and score.

    A lag is reference time minus recording time of the same event.
    """

    times_s: np.ndarray
    lags_s: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Run:
    """Consecutive segments whose lags lie on one line: `lag = offset_s + slope * recording time`."""

    start_s: float
    end_s: float
    offset_s: float
    slope: float
    score: float


class SegmentMatcher:
    """Correlates segments with a reference's features by overlap-save, its spectra computed once.

    Args:
        features: `(rows, frames)` of the reference at `FRAME_RATE`.
        segment_frames: longest segment that will be asked for.
    """

    def __init__(self, features: np.ndarray, segment_frames: int):
        self.segment_frames = segment_frames
        self.num_frames = features.shape[1]
        total = self.num_frames + 2 * segment_frames
        self.fft_frames = int(min(FFT_FRAMES, scipy.fft.next_fast_len(total, real=True)))
        if self.fft_frames < 2 * segment_frames:
            raise ValueError(f"segments of {segment_frames} frames are too long for blocks of {self.fft_frames}")
        self.step = self.fft_frames - segment_frames
        padded = np.pad(features, ((0, 0), (segment_frames, segment_frames + self.step)))
        starts = range(0, self.num_frames + segment_frames, self.step)
        self.spectra = [
            scipy.fft.rfft(padded[:, start : start + self.fft_frames], self.fft_frames, axis=1) for start in starts
        ]

    def correlate(self, segment: np.ndarray) -> np.ndarray:
        """Correlation, float32; index i is the lag (reference frame minus segment frame) `i - segment_frames`.

        Where a segment overlaps the reference in part, what chance makes of it is less: its deviation is made equal.
        """
        spectrum = scipy.fft.rfft(segment, self.fft_frames, axis=1).conj()
        pieces = [scipy.fft.irfft((block * spectrum).sum(axis=0), self.fft_frames) for block in self.spectra]
        correlation = np.concatenate([piece[: self.step] for piece in pieces])[: self.num_frames + self.segment_frames]
        length = segment.shape[1]
        lags = np.arange(len(correlation)) - self.segment_frames
        overlap = np.minimum(lags + length, self.num_frames) - np.maximum(lags, 0)
        return correlation / np.sqrt(np.clip(overlap / length, min(MIN_OVERLAP_S * FRAME_RATE / length, 1.0), None))


def segment_lengths(reference: np.ndarray, features: np.ndarray) -> list[int]:
    """Frames of the segments to cut a recording into, best first.

    A short recording is cut into few short segments, lest a jump is missed. Where these show nothing, as they are
    short, or several lags alike, as music repeats, longer ones may tell: drift does not blur them yet.

    Args:
        reference, features: `(rows, frames)` at `FRAME_RATE`.
    """
    shortest = min(features.shape[1], reference.shape[1])
    longest = int(min(SEGMENT_S * FRAME_RATE, features.shape[1]))
    length = int(np.clip(shortest // MIN_SEGMENTS, min(MIN_SEGMENT_S * FRAME_RATE, shortest), longest))
    return [length] if length == longest else [length, longest]


def find_candidates(reference: np.ndarray, features: np.ndarray, length: int) -> Candidates:
    """Peaks of the correlation of a recording's segments with the whole reference.

    Args:
        reference, features: `(rows, frames)` at `FRAME_RATE`, standardised in time.
        length: frames of a segment.
    """
    num_frames = features.shape[1]
    matcher = SegmentMatcher(reference, length)
    found: list[tuple[float, float, float]] = []
    last = num_frames - length
    for start in np.linspace(0, last, int(np.ceil(2 * last / length)) + 1).astype(int):
        correlation = matcher.correlate(features[:, start : start + length])
        deviation = float(correlation.std())
        if deviation <= 0:
            continue
        scores = (correlation - correlation.mean()) / deviation
        centre_s = (start + length / 2) / FRAME_RATE
        for _ in range(NUM_PEAKS):
            peak = int(np.argmax(scores))
            if scores[peak] < MIN_SCORE:
                break
            position = peak + parabolic_peak(scores, peak)
            found.append((centre_s, (position - length - start) / FRAME_RATE, float(scores[peak])))
            reach = int(PEAK_DISTANCE_S * FRAME_RATE)
            scores[max(peak - reach, 0) : peak + reach + 1] = -np.inf
    table = np.array(found).reshape(-1, 3)
    return Candidates(table[:, 0], table[:, 1], table[:, 2])


def best_path(candidates: Candidates) -> list[Run]:
    """The sequence of candidates, at most one a segment, with the greatest sum of scores less the price of jumps."""
    times, lags, scores = candidates.times_s, candidates.lags_s, candidates.scores
    total, previous = scores.copy(), np.full(len(scores), -1)
    for node in range(len(scores)):
        earlier = np.flatnonzero(times[:node] < times[node])
        if len(earlier) == 0:
            continue
        passed, steps = times[node] - times[earlier], lags[node] - lags[earlier]
        jumps = np.abs(steps) > LAG_TOLERANCE_S + MAX_DRIFT * passed
        # A recorder may be paused, but what it plays next is never earlier in the concert: music that repeats is.
        gains = np.where(steps < -passed, -np.inf, total[earlier] - JUMP_PENALTY * jumps)
        best = int(np.argmax(gains))
        if gains[best] > 0:
            total[node] += gains[best]
            previous[node] = earlier[best]
    if len(scores) == 0:
        return []
    nodes = [int(np.argmax(total))]
    while previous[nodes[-1]] >= 0:
        nodes.append(int(previous[nodes[-1]]))
    nodes.reverse()

    gaps, steps = np.diff(times[nodes]), np.abs(np.diff(lags[nodes]))
    breaks = np.flatnonzero(steps > LAG_TOLERANCE_S + MAX_DRIFT * gaps) + 1
    return [fit_run(candidates, group) for group in np.split(np.array(nodes), breaks)]


def without_path(candidates: Candidates, runs: list[Run]) -> Candidates:
    """The candidates that do not lie on the runs: what to try when these turn out to be wrong."""
    keep = np.ones(len(candidates.scores), dtype=bool)
    for run in runs:
        inside = (candidates.times_s >= run.start_s) & (candidates.times_s <= run.end_s)
        near = np.abs(candidates.lags_s - run.offset_s - run.slope * candidates.times_s) < PEAK_DISTANCE_S
        keep &= ~(inside & near)
    return Candidates(candidates.times_s[keep], candidates.lags_s[keep], candidates.scores[keep])


def fit_run(candidates: Candidates, nodes: np.ndarray) -> Run:
    """A line through a run's lags; too short a run, or an impossible slope, gets slope 0."""
    times, lags = candidates.times_s[nodes], candidates.lags_s[nodes]
    slope = theil_sen_slope(times, lags) if np.ptp(times) > 120.0 else 0.0
    if abs(slope) > MAX_DRIFT:
        slope = 0.0
    offset = float(np.median(lags - slope * times))
    return Run(float(times[0]), float(times[-1]), offset, slope, float(candidates.scores[nodes].sum()))


def theil_sen_slope(x: np.ndarray, y: np.ndarray) -> float:
    """Median of the slopes between all pairs: indifferent to a quarter of outliers."""
    first, second = np.triu_indices(len(x), 1)
    apart = np.abs(x[second] - x[first]) > 1e-9
    return float(np.median((y[second] - y[first])[apart] / (x[second] - x[first])[apart])) if apart.any() else 0.0


def parabolic_peak(values: np.ndarray, peak: int) -> float:
    """Offset in (-0.5, 0.5) of the vertex of a parabola through a peak and its neighbours; 0 at an edge."""
    if peak == 0 or peak == len(values) - 1:
        return 0.0
    left, middle, right = (float(values[peak + step]) for step in (-1, 0, 1))
    curvature = left - 2 * middle + right
    return 0.5 * (left - right) / curvature if np.isfinite(curvature) and curvature < 0 else 0.0
