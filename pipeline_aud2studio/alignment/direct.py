"""Which of the echoes is the direct sound: the delay between two recordings that hear one room from two places.

The pattern of a pair's cross-correlation holds every path of one microphone against every path of the other. Direct
against direct is one peak among them. Two things make it stand out:

- the smoothed coherence transform (SCOT: Carter, Nuttall and Cable, 1973) of cross-spectra summed over minutes, in
  which loud partials count and the crowd averages out, levelled in frequency so that the peak is narrow;
- the recordings' own power spectra. An echo is a ripple in them whose phase follows from its magnitude as long as the
  direct sound dominates (minimum phase: Oppenheim and Schafer, "Discrete-time signal processing", chapter 12). Taking
  that phase out removes the echoes' peaks from the cross-correlation and adds them to the direct sound's.

Where a reflection is louder than the direct sound, the minimum phase takes the one for the other, and so does the
highest peak. But the ripple tells whose echo lies between two peaks: if it is the recording's, the earlier one is that
of both direct sounds, if it is the reference's, the later one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import combinations

import numpy as np
import scipy.fft
from scipy.signal.windows import tukey

from .clock import Recording, Segment, read_pair
from .coarse import parabolic_peak

BAND_HZ = (200.0, 15000.0)
# Echoes whose phase is taken out. Shorter delays belong to the microphones' colour, which is not all minimum phase.
ECHO_RANGE_S = (0.5e-3, 0.16)
# A peak of this share of the highest is preferred to it if the ripple of the echo between the two, that many times the
# ripples' root mean square, says so.
RIVAL_SHARE, MIN_RIPPLE = 0.7, 4.0
# Levelling in frequency: over a fifth of an octave.
LEVELLING_OCTAVES = 0.2
# A peak is interpolated from this many neighbours on either side, at this many points a sample.
NEIGHBOURS, OVERSAMPLING = 32, 8


class DirectPattern:
    """The correlation of a recording with a reference, out of which the direct sound stands.

    Args:
        values: correlation `(2 * context + 1)` at lags of whole samples around 0, in units of its root mean square.
            The context is the reach and `NEIGHBOURS` samples more on either side.
        ripples: `(samples)`, by the delay of an echo in samples: how much more of it the recording's power spectrum
            shows than the reference's, in units of their root mean square.
        sample_rate: in Hz.
    """

    def __init__(self, values: np.ndarray, ripples: np.ndarray, sample_rate: float) -> None:
        self.values, self.ripples, self.sample_rate = values, ripples, sample_rate

    def echo(self, peak_s: float, rival_s: float) -> float:
        """Tells how clearly the peak at a lag is an echo's, if the one at the rival's lag is the direct sound's."""
        delay = round(abs(peak_s - rival_s) * self.sample_rate)
        if not ECHO_RANGE_S[0] * self.sample_rate <= delay < len(self.ripples) - 1:
            return 0.0
        near = self.ripples[delay - 1 : delay + 2]
        return float(np.sign(peak_s - rival_s) * near[np.argmax(np.abs(near))])

    @cached_property
    def _between(self) -> np.ndarray:
        """`OVERSAMPLING` values a sample, without the outer `NEIGHBOURS`; lag 0 stays in the middle."""
        around = np.lib.stride_tricks.sliding_window_view(self.values, 2 * NEIGHBOURS + 1)
        return (around @ _interpolation(np.arange(OVERSAMPLING) / OVERSAMPLING).T).reshape(-1)[: 1 - OVERSAMPLING]

    @cached_property
    def peaks(self) -> list[tuple[float, float]]:
        """Lags in seconds and signed heights of the highest peaks."""
        values, rate = self._between, OVERSAMPLING * self.sample_rate
        heights = np.abs(values)
        tops = local_maxima(heights)
        tops = tops[np.argsort(-heights[tops])[:PEAKS]]
        lags = [(top + parabolic_peak(heights, int(top)) - len(values) // 2) / rate for top in tops]
        return list(zip(lags, values[tops].tolist(), strict=True))

    def height(self, lag_s: float) -> float:
        """The largest value near a lag, with its sign; 0 beyond the reach."""
        values, rate = self._between, OVERSAMPLING * self.sample_rate
        position, reach = round(lag_s * rate) + len(values) // 2, round(TOLERANCE_S * rate)
        near = values[max(position - reach, 0) : max(position + reach + 1, 0)]
        return float(near[np.argmax(np.abs(near))]) if len(near) else 0.0


def direct_delay(
    reference: Recording,
    recording: Recording,
    windows: Iterable[tuple[Segment, float]],
    sample_rate: float,
    window_s: float,
    reach_s: float,
) -> tuple[float, float]:
    """Finds the delay of the direct sound against the segments' lines, in seconds, and its signed height.

    Args:
        windows: segment and centre on the recording's clock of every window to be summed.
        reach_s: how far from the line the direct sound is looked for.

    Returns:
        The delay, and the correlation's value there against its root mean square; negative is inverted polarity.
    """
    return direct_peak(direct_pattern(reference, recording, windows, sample_rate, window_s, reach_s))


def direct_pattern(
    reference: Recording,
    recording: Recording,
    windows: Iterable[tuple[Segment, float]],
    sample_rate: float,
    window_s: float,
    reach_s: float,
) -> DirectPattern:
    """Computes the correlation of which the direct sound is a peak: see :func:`direct_delay`."""
    length = int(window_s * sample_rate)
    size = scipy.fft.next_fast_len(2 * length, real=True)
    taper = tukey(length, 0.2).astype(np.float32)
    cross = np.zeros(size // 2 + 1, dtype=np.complex128)
    powers = np.zeros((2, size // 2 + 1))
    for segment, time_s in windows:
        start = int(round(float(segment.to_reference(time_s)) * sample_rate)) - length // 2
        pair = read_pair(reference, recording, segment, start, length, sample_rate)
        levels = [float(np.sqrt(np.mean(np.square(samples)))) for samples in pair]
        if min(levels) <= 0:
            continue
        near, far = (
            scipy.fft.rfft(samples / level * taper, size) for samples, level in zip(pair, levels, strict=True)
        )
        cross += far * near.conj()
        powers += np.abs([near, far]) ** 2
    frequencies = scipy.fft.rfftfreq(size, 1 / sample_rate)
    top_hz = min(BAND_HZ[1], 0.45 * min(reference.sample_rate, recording.sample_rate, sample_rate))
    band = (frequencies >= BAND_HZ[0]) & (frequencies <= top_hz)
    powers = np.maximum(powers, 1e-12 * powers.max(axis=1, keepdims=True))
    cepstrum = power_cepstrum(powers[1] / powers[0], band)
    coherence = cross / np.sqrt(powers.prod(axis=0)) * np.exp(-1j * minimum_phase(cepstrum, sample_rate, ECHO_RANGE_S))
    level = np.sqrt(smooth_over_octaves(np.abs(coherence) ** 2, LEVELLING_OCTAVES))
    correlation = scipy.fft.irfft(np.where(band, coherence / np.maximum(level, 1e-12), 0), size)
    reach = int(np.ceil(reach_s * sample_rate))
    context = reach + NEIGHBOURS
    values = np.concatenate([correlation[-context:], correlation[: context + 1]])
    ripples = cepstrum[: 2 * reach + 2]
    rms = float(np.sqrt(np.mean(np.square(ripples[round(ECHO_RANGE_S[0] * sample_rate) :])))) or 1.0
    return DirectPattern(values / (float(np.sqrt(np.mean(values**2))) or 1.0), ripples / rms, sample_rate)


def power_cepstrum(power: np.ndarray, band: np.ndarray) -> np.ndarray:
    """Real cepstrum `(size)` of the amplitudes of a power spectrum `(size // 2 + 1)`, held constant outside `band`."""
    inside = np.flatnonzero(band)
    return scipy.fft.irfft(0.5 * np.log(power[np.clip(np.arange(len(power)), inside[0], inside[-1])]))


def minimum_phase(cepstrum: np.ndarray, sample_rate: float, quefrencies_s: tuple[float, float]) -> np.ndarray:
    """Phase in radians `(size // 2 + 1)` of the minimum-phase response with a cepstrum `(size)`, of its ripples
    between two quefrencies."""
    quefrency = np.arange(len(cepstrum)) / sample_rate
    low, high = quefrencies_s
    rise = np.clip(quefrency / low * 2 - 1, 0, 1)
    fall = np.cos(np.pi / 2 * np.clip(quefrency / high, 0, 1)) ** 2
    return np.imag(scipy.fft.rfft(2 * cepstrum * rise * fall))


def smooth_over_octaves(values: np.ndarray, octaves: float) -> np.ndarray:
    """Mean over the bins within `octaves` around each, `(bins)`."""
    cumulative = np.concatenate([[0.0], np.cumsum(values)])
    bins = np.arange(len(values))
    low = np.floor(bins * 2 ** (-octaves / 2)).astype(int)
    high = np.minimum(np.ceil(bins * 2 ** (octaves / 2)).astype(int) + 1, len(values))
    return (cumulative[high] - cumulative[low]) / (high - low)


def direct_peak(pattern: DirectPattern) -> tuple[float, float]:
    """Lag in seconds of the direct sound and its signed height: the highest peak, or another if that is an echo."""
    near, rate = pattern.values, pattern.sample_rate
    heights = np.abs(near[NEIGHBOURS : len(near) - NEIGHBOURS])
    middle = len(heights) // 2
    highest = int(np.argmax(heights))
    tops = local_maxima(heights)
    alike = near[tops + NEIGHBOURS] * near[highest + NEIGHBOURS] > 0
    rivals = tops[alike & (heights[tops] >= RIVAL_SHARE * heights[highest])]
    echoes = [pattern.echo((highest - middle) / rate, (rival - middle) / rate) for rival in rivals.tolist()]
    best = int(np.argmax(echoes)) if echoes else 0
    peak = NEIGHBOURS + (int(rivals[best]) if echoes and echoes[best] >= MIN_RIPPLE else highest)
    sign = float(np.sign(near[peak])) or 1.0
    # Windowed-sinc interpolation around the peak, then a parabola through the finest three points.
    offsets = np.arange(-OVERSAMPLING, OVERSAMPLING + 1) / OVERSAMPLING
    fine = sign * _interpolation(offsets) @ near[peak - NEIGHBOURS : peak + NEIGHBOURS + 1]
    finest = int(np.argmax(fine))
    position = peak - len(near) // 2 + (finest + parabolic_peak(fine, finest)) / OVERSAMPLING - 1
    return position / rate, sign * float(fine[finest])


def local_maxima(values: np.ndarray) -> np.ndarray:
    """Indices of the values above their left and not below their right neighbour."""
    return 1 + np.flatnonzero((values[1:-1] > values[:-2]) & (values[1:-1] >= values[2:]))


def _interpolation(offsets: np.ndarray) -> np.ndarray:
    """Weights `(offsets, 2 * NEIGHBOURS + 1)` of the samples around one, for values that many samples beside it."""
    distance = offsets[:, None] - np.arange(-NEIGHBOURS, NEIGHBOURS + 1)
    return np.sinc(distance) * np.cos(np.pi / 2 * np.clip(distance / (NEIGHBOURS + 1), -1, 1)) ** 2


# --- Agreed on by more than two recordings ---------------------------------------------------------------------------
#
# Between two recordings the highest peak may be an echo against the direct sound, if a microphone hears a reflection
# as loud as that. Three recordings know better: from the first to the second and on to the third it is as far as from
# the first to the third. So the peaks of all pairs are chosen together, such that the delays close and the heights'
# sum is the largest; of two arrivals that all others hear about equally well the earlier one is the direct sound, or
# of two less alike, if the recording's own spectrum shows the later one as an echo.

WINDOW_S, MAX_WINDOWS = 6.0, 100  # what is summed for a pair, spread over the time that it shares
MIN_SHARED_S = 4.0
REACH_S = 0.05  # from the lines that are given
TOLERANCE_S = 5e-5  # within which delays close
PEAKS = 12  # of a pair that are considered
AS_WELL = 0.9  # share of the best sum of heights
ROUNDS = 10

Clock = Sequence[Segment]  # a recording's segments in order
Patterns = dict[tuple[int, int], DirectPattern]  # of pairs, by the numbers of both


def agree(
    recordings: Sequence[Recording], clocks: Sequence[Clock], polarities: Sequence[int], sample_rate: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chooses the direct sounds of several recordings together.

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
    patterns: Patterns = {}
    for first, second in combinations(range(count), 2):
        shared_s, windows = _shared_windows(recordings, clocks, first, second)
        if windows:
            window_s = float(np.clip(shared_s / 2, 1.0, WINDOW_S))
            pair = recordings[first], recordings[second]
            patterns[first, second] = direct_pattern(*pair, windows, sample_rate, window_s, REACH_S)
    delays, signs = np.zeros(count), np.array(polarities, dtype=float)
    for _ in range(ROUNDS):
        before = delays.copy(), signs.copy()
        for mine in range(count):
            delays[mine], signs[mine] = _chosen(patterns, mine, delays, signs)
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


def _chosen(patterns: Patterns, mine: int, delays: np.ndarray, signs: np.ndarray) -> tuple[float, float]:
    """Delay and polarity of one recording that fit those of the others best."""
    # The other recording of every pair; 1 and -1 for whether it comes first or second there.
    pairs = [
        (1, first, pattern) if mine == second else (-1, second, pattern)
        for (first, second), pattern in patterns.items()
        if mine in (first, second)
    ]

    def score(delay: float, sign: float) -> float:
        return sum(
            sign * signs[other] * pattern.height(direction * (delay - delays[other]))
            for direction, other, pattern in pairs
        )

    def echo(delay: float, rival: float) -> float:
        """How clearly all pairs together show that what arrives later than the rival is its echo."""
        shown = [
            pattern.echo(*(direction * (each - delays[other]) for each in (delay, rival)))
            for direction, other, pattern in pairs
        ]
        return float(np.sum(shown)) / max(np.sqrt(len(pairs)), 1.0)

    # Delay, polarity, and the height of the peak that speaks for it; what is given stays where it is as good.
    candidates = [(float(delays[mine]), float(signs[mine]), np.inf)]
    for direction, other, pattern in pairs:
        candidates += [
            (delays[other] + direction * lag, signs[other] * np.sign(height), abs(height))
            for lag, height in pattern.peaks
        ]
    scores = [score(delay, sign) for delay, sign, _ in candidates]
    best = int(np.argmax(scores))
    good = [
        each
        for each, value in zip(candidates, scores, strict=True)
        if value >= AS_WELL * scores[best]
        or value >= RIVAL_SHARE * scores[best]
        and each[0] < candidates[best][0]
        and echo(candidates[best][0], each[0]) >= MIN_RIPPLE
    ]
    earliest = min(delay for delay, _, _ in good)
    same = [each for each in good if each[0] - earliest <= 2 * TOLERANCE_S]
    return max(same, key=lambda each: each[2])[:2]


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
