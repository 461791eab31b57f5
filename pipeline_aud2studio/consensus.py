"""Which of the echoes is the direct sound, agreed on by more than two recordings.

Between two recordings the highest peak may be an echo against the direct sound, if a microphone hears a reflection as
loud as that. Three recordings know better: from the first to the second and on to the third it is as far as from the
first to the third. So the peaks of all pairs are chosen together, such that the delays close and the heights' sum is
the largest; of two arrivals that all others hear about equally well the earlier one is the direct sound, or of two
less alike, if the recording's own spectrum shows the later one as an echo.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from .clock import Segment
from .direct import (
    MIN_RIPPLE,
    OVERSAMPLING,
    RIVAL_SHARE,
    DirectPattern,
    direct_pattern,
    local_maxima,
    oversampled,
)
from .matching import parabolic_peak
from .recording import Recording

WINDOW_S, MAX_WINDOWS = 6.0, 100  # what is summed for a pair, spread over the time that it shares
MIN_SHARED_S = 4.0
REACH_S = 0.05  # from the lines that are given
TOLERANCE_S = 5e-5  # within which delays close
PEAKS = 12  # of a pair that are considered
AS_WELL = 0.9  # share of the best sum of heights
ROUNDS = 10

Clock = Sequence[Segment]  # a recording's segments in order


def agree(
    recordings: Sequence[Recording], clocks: Sequence[Clock], polarities: Sequence[int], sample_rate: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the direct sounds of several recordings say together.

    Args:
        recordings: The reference first.
        clocks: Every recording's relation to the reference's clock, as the pairs with the reference have it, without
            jumps.
        polarities: 1, or -1 where a recording is inverted against the reference.
        sample_rate: In Hz, at which the arrivals are measured.

    Returns:
        By recording: the delay against its clock in seconds, which is 0 where all pairs agree with it; the polarity;
        and how far the direct sound stands out, times the correlation's root mean square, in the weakest pair of the
        best chain of pairs that leads to it from the reference.
    """
    count = len(recordings)
    patterns: dict[tuple[int, int], _Pattern] = {}
    for first, second in combinations(range(count), 2):
        shared_s, windows = _shared_windows(recordings, clocks, first, second)
        if windows:
            window_s = float(np.clip(shared_s / 2, 1.0, WINDOW_S))
            pair = recordings[first], recordings[second]
            patterns[first, second] = _Pattern(direct_pattern(*pair, windows, sample_rate, window_s, REACH_S))

    delays, signs = np.zeros(count), np.array(polarities, dtype=float)

    def score(mine: int, delay: float, sign: float) -> float:
        return sum(
            sign * signs[other] * pattern.height(direction * (delay - delays[other]))
            for direction, other, pattern in _pairs_of(patterns, mine)
        )

    def echo(mine: int, delay: float, rival: float) -> float:
        """How clearly all pairs together show that what arrives later than the rival is its echo."""
        pairs = list(_pairs_of(patterns, mine))
        shown = [
            pattern.echo(*(direction * (each - delays[other]) for each in (delay, rival)))
            for direction, other, pattern in pairs
        ]
        return float(np.sum(shown)) / max(np.sqrt(len(pairs)), 1.0)

    for _ in range(ROUNDS):
        before = delays.copy(), signs.copy()
        for mine in range(count):
            # Delay, polarity, and the height of the peak that speaks for it; what is given stays where it is as good.
            candidates = [(float(delays[mine]), float(signs[mine]), np.inf)]
            for direction, other, pattern in _pairs_of(patterns, mine):
                candidates += [
                    (delays[other] + direction * lag, signs[other] * np.sign(height), abs(height))
                    for lag, height in pattern.peaks
                ]
            scores = [score(mine, delay, sign) for delay, sign, _ in candidates]
            best = int(np.argmax(scores))
            good = [
                each
                for each, value in zip(candidates, scores, strict=True)
                if value >= AS_WELL * scores[best]
                or value >= RIVAL_SHARE * scores[best]
                and each[0] < candidates[best][0]
                and echo(mine, candidates[best][0], each[0]) >= MIN_RIPPLE
            ]
            earliest = min(delay for delay, _, _ in good)
            same = [each for each in good if each[0] - earliest <= 2 * TOLERANCE_S]
            delays[mine], signs[mine], _ = max(same, key=lambda each: each[2])
        if np.array_equal(before[0], delays) and np.array_equal(before[1], signs):
            break
    signs *= signs[0]
    delays -= delays[0]
    delays[np.abs(delays) < TOLERANCE_S] = 0.0
    widths = np.zeros((count, count))
    for (first, second), pattern in patterns.items():
        height = signs[first] * signs[second] * pattern.height(delays[second] - delays[first])
        widths[first, second] = widths[second, first] = max(height, 0.0)
    return delays, signs.astype(int), _widest_paths(widths)


class _Pattern:
    """The correlation of a pair, to be read between its samples.

    Attributes:
        peaks: Lag in seconds and signed height of the highest ones.
    """

    def __init__(self, pattern: DirectPattern) -> None:
        self.echo = pattern.echo
        self._values = oversampled(pattern.values)
        self._rate = OVERSAMPLING * pattern.sample_rate
        self._middle = len(self._values) // 2
        heights = np.abs(self._values)
        tops = local_maxima(heights)
        tops = tops[np.argsort(-heights[tops])[:PEAKS]]
        lags = [(top + parabolic_peak(heights, int(top)) - self._middle) / self._rate for top in tops]
        self.peaks = list(zip(lags, self._values[tops].tolist(), strict=True))

    def height(self, lag_s: float) -> float:
        """The largest value near a lag, with its sign; 0 beyond the reach."""
        position, reach = round(lag_s * self._rate) + self._middle, round(TOLERANCE_S * self._rate)
        near = self._values[max(position - reach, 0) : max(position + reach + 1, 0)]
        return float(near[np.argmax(np.abs(near))]) if len(near) else 0.0


def _pairs_of(patterns: dict[tuple[int, int], _Pattern], mine: int) -> Iterator[tuple[int, int, _Pattern]]:
    """The other recording of every pair that one is in; 1 and -1 for whether it comes second or first there."""
    for (first, second), pattern in patterns.items():
        if mine in (first, second):
            yield (1, first, pattern) if mine == second else (-1, second, pattern)


def _shared_windows(
    recordings: Sequence[Recording], clocks: Sequence[Clock], first: int, second: int
) -> tuple[float, list[tuple[Segment, float]]]:
    """Seconds that both recorded; and lines from the second one's clock to the first one's, with the times on the
    second one's clock at which they hold."""
    spans = [
        (float(clocks[each][0].to_reference(0.0)), float(clocks[each][-1].to_reference(recordings[each].duration_s)))
        for each in (first, second)
    ]
    begin, end = max(span[0] for span in spans), min(span[1] for span in spans)
    shared_s = end - begin
    if shared_s < MIN_SHARED_S:
        return shared_s, []
    count = int(np.clip(shared_s / WINDOW_S, 2, MAX_WINDOWS))
    half_s = min(WINDOW_S, shared_s / 2) / 2
    windows = []
    for reference_s in np.linspace(begin + half_s, end - half_s, count).tolist():
        near, far = (_segment_at(clocks[each], reference_s) for each in (first, second))
        time_s = float(far.to_recording(reference_s))
        slope = near.rate / far.rate - 1
        offset_s = float(near.to_recording(reference_s)) - time_s - slope * time_s
        windows.append((Segment.from_line(offset_s, slope, 0.0, recordings[second].duration_s), time_s))
    return shared_s, windows


def _segment_at(clock: Clock, reference_s: float) -> Segment:
    """The segment of a clock that holds at a time of the reference."""
    return next((segment for segment in clock if segment.to_reference(segment.end_s) >= reference_s), clock[-1])


def _widest_paths(widths: np.ndarray) -> np.ndarray:
    """The smallest width on the best path from node 0 to each other one, of widths (nodes, nodes) between two."""
    widest = widths[0].copy()
    widest[0] = np.inf
    for _ in range(len(widths)):
        widest = np.maximum(widest, np.minimum(widest[:, None], widths).max(axis=0))
    return widest
