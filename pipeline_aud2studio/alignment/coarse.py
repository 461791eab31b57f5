"""The coarse search: which stretch of the reference sounds like which stretch of a recording, to about 10 ms.

Drift blurs a correlation after tens of seconds, so every segment of the recording is correlated with the whole
reference, and the path of offsets that most of them agree on is taken; a jump (the recorder was paused) has a price.
Compared are features `(rows, frames)` at `FRAME_RATE`: onset strength in bands, or chroma by beats where that is weak.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.fft
from scipy.ndimage import maximum_filter1d, uniform_filter1d
from scipy.stats import theilslopes

from .clock import Recording

FRAME_RATE = 50.0
# Eighth-octave bands for matching: narrow enough for single notes to stand out of reverberation and crowd (in
# simulated halls the true lag won in 20 of 22 segments; with 12 bands and 20 ms windows in 7). Above, half octaves
# that only the estimate of quality looks at.
NUM_MATCHED = 36
BAND_EDGES_HZ = np.concatenate([np.geomspace(200.0, 5000.0, NUM_MATCHED + 1), np.geomspace(5000.0, 16000.0, 6)[1:]])
BAND_WINDOW_S = 0.093
# A band's level counts as far as it stands out of the mean over this time.
CONTRAST_S = 2.0
# Chroma: five octaves from A2 on; a window that separates semitones from about A3 on.
CHROMA_WINDOW_S = 0.186
CHROMA_RANGE_HZ = (110.0, 3520.0)
CHROMA_RATE = 10.0
# Frames are read and transformed in pieces of this length.
BLOCK_S = 20.0
# Energies this far below a band's loudest moments are floor: codec silence, dither.
FLOOR_DB = 40.0


def frame_energies(recording: Recording, matrix: np.ndarray, window: np.ndarray, frame_rate: float) -> np.ndarray:
    """Computes the energy in groups of bins, float32 `(rows, frames)`; frame t is centred at `t / frame_rate` seconds.

    Args:
        matrix: `(rows, bins)` weights of the power spectrum's bins.
        window: analysis window in samples; its length is the transform's.
    """
    num_frames = int(recording.duration_s * frame_rate)
    energies = np.empty((len(matrix), max(num_frames, 1)), dtype=np.float32)
    step = int(BLOCK_S * frame_rate)
    half = len(window) // 2
    for begin in range(0, energies.shape[1], step):
        # Centres are rounded to samples one by one: no rate needs to be a multiple of the frame rate.
        centres = np.round(np.arange(begin, min(begin + step, energies.shape[1])) * recording.sample_rate / frame_rate)
        starts = centres.astype(int) - half
        samples = recording.mono(starts[0], starts[-1] + len(window))
        frames = np.lib.stride_tricks.sliding_window_view(samples, len(window))[starts - starts[0]]
        power = np.abs(scipy.fft.rfft(frames * window, axis=-1)) ** 2
        energies[:, begin : begin + len(centres)] = matrix @ power.T
    return energies


def _window(recording: Recording, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """The frequencies of a transform of about that length, and its window."""
    size = 2 ** int(np.round(np.log2(seconds * recording.sample_rate)))
    return np.fft.rfftfreq(size, 1 / recording.sample_rate), np.hanning(size).astype(np.float32)


def log_band_energies(recording: Recording) -> np.ndarray:
    """Energy in dB in narrow bands, float32 `(41, frames)`; bands above the recording's Nyquist are flat."""
    frequencies, window = _window(recording, BAND_WINDOW_S)
    band = np.searchsorted(BAND_EDGES_HZ, frequencies, side="right") - 1
    matrix = (band == np.arange(len(BAND_EDGES_HZ) - 1)[:, None]).astype(np.float32)
    energies = frame_energies(recording, matrix, window, FRAME_RATE)
    np.log10(np.maximum(energies, 1e-20, out=energies), out=energies)
    energies *= 10
    # A high quantile in place of the maximum: one bump of the microphone must not set the floor.
    floor = np.quantile(energies[:, :: max(1, energies.shape[1] // 20000)], 0.99, axis=1, keepdims=True) - FLOOR_DB
    return np.maximum(energies, floor.astype(np.float32), out=energies)


def estimate_quality(log_energies: np.ndarray) -> float:
    """How dry, clean and wide a recording sounds, in dB: the mean depth of its bands' fast modulations.

    Reverberation and crowd both fill the valleys between notes, a missing band has none. The depth is the standard
    deviation of a band's level around its mean over one second, as far as it exceeds that of stationary noise.

    Args:
        log_energies: `(bands, frames)` in dB, from `log_band_energies`.
    """
    total, frames = np.zeros(len(log_energies)), 0
    step = int(600 * FRAME_RATE)
    for start in range(0, log_energies.shape[1], step):
        block = smooth(log_energies[:, start : start + step], 0.05)
        total += np.sum((block - smooth(block, 1.0)) ** 2, axis=1)
        frames += block.shape[1]
    return float(np.sqrt(total / frames).mean())


def onset_strength(log_energies: np.ndarray) -> np.ndarray:
    """Measures onset strength by band, float32 `(36, frames)`: how far the level stands out of its surroundings.

    Args:
        log_energies: `(bands, frames)` in dB, from `log_band_energies`.
    """
    onsets = np.empty((NUM_MATCHED, log_energies.shape[1]), dtype=np.float32)
    for strength, level in zip(onsets, log_energies, strict=False):  # band by band: a file of hours has long ones
        strength[:] = standardise(level - smooth(level, CONTRAST_S), 10.0)
    return onsets


def beat_frames(onsets: np.ndarray) -> np.ndarray:
    """Beats as frame numbers, by dynamic programming (Ellis, "Beat tracking by dynamic programming", 2007).

    The tempo is estimated anew every 20 seconds from the autocorrelation of the onset strength (weighted towards
    120 beats a minute), so that a concert's songs may differ.

    Args:
        onsets: `(bands, frames)` from `onset_strength`.
    """
    strength = np.maximum(np.diff(onsets, axis=1, prepend=onsets[:, :1]), 0).mean(axis=0)
    strength -= smooth(strength, 1.0)
    num_frames = len(strength)
    lags = np.arange(int(0.25 * FRAME_RATE), int(1.5 * FRAME_RATE))
    prior = np.exp(-0.5 * (np.log2(lags / (0.5 * FRAME_RATE)) / 0.9) ** 2)
    step = int(20 * FRAME_RATE)
    periods = np.empty(num_frames, dtype=int)
    for start in range(0, num_frames, step):
        piece = strength[max(start - step // 2, 0) : start + step + step // 2]
        spectrum = np.abs(np.fft.rfft(piece, 2 * len(piece))) ** 2
        autocorrelation = np.pad(np.fft.irfft(spectrum), (0, int(1.5 * FRAME_RATE)))[lags]
        periods[start : start + step] = lags[np.argmax(autocorrelation * prior)]

    score, previous = strength.astype(np.float64).copy(), np.full(num_frames, -1)
    tightness = 100.0 * max(float(strength.std()), 1e-6)
    for frame in range(int(3.0 * FRAME_RATE), num_frames):
        period = periods[frame]
        candidates = np.arange(frame - 2 * period, frame - period // 2)
        transition = score[candidates] - tightness * np.log((frame - candidates) / period) ** 2
        best = int(np.argmax(transition))
        score[frame] += transition[best]
        previous[frame] = candidates[best]
    beats = [int(np.argmax(score[-int(1.5 * FRAME_RATE) :])) + max(num_frames - int(1.5 * FRAME_RATE), 0)]
    while previous[beats[-1]] >= 0:
        beats.append(int(previous[beats[-1]]))
    return np.array(beats[::-1])


def beat_chroma(recording: Recording, onsets: np.ndarray) -> np.ndarray:
    """Beat-synchronous chroma on the frame grid: every frame holds the mean pitch-class profile of its beat.

    Float32 `(12, frames)`: not one column a beat, so that a beat missed in one take does not shift the rest.
    """
    frequencies, window = _window(recording, CHROMA_WINDOW_S)
    inside = (frequencies >= CHROMA_RANGE_HZ[0]) & (frequencies <= CHROMA_RANGE_HZ[1])
    pitch = 12 * np.log2(np.where(inside, frequencies, 440.0) / 440.0)
    matrix = (np.round(pitch).astype(int) % 12 == np.arange(12)[:, None]) & inside
    energies = frame_energies(recording, matrix.astype(np.float32), window, CHROMA_RATE)
    chroma = np.sqrt(np.sqrt(energies))
    chroma /= np.maximum(chroma.sum(axis=0, keepdims=True), 1e-12)

    num_frames = onsets.shape[1]
    edges = np.unique(np.concatenate([[0], beat_frames(onsets), [num_frames]]))
    column = np.minimum(np.arange(num_frames) * int(CHROMA_RATE) // int(FRAME_RATE), chroma.shape[1] - 1)
    cumulative = np.zeros((12, num_frames + 1))
    np.cumsum(chroma[:, column], axis=1, out=cumulative[:, 1:])
    means = np.diff(cumulative[:, edges]) / np.diff(edges)
    return standardise(np.repeat(means, np.diff(edges), axis=1).astype(np.float32), 30.0)


def smooth(features: np.ndarray, seconds: float) -> np.ndarray:
    return uniform_filter1d(features, max(int(seconds * FRAME_RATE), 1), axis=-1, mode="nearest")


def standardise(features: np.ndarray, seconds: float) -> np.ndarray:
    """Zero mean and unit deviation over the surrounding `seconds`; silent stretches stay zero."""
    centred = features - smooth(features, seconds)
    # Running sums leave rounding errors of either sign where there is silence.
    deviation = np.sqrt(np.maximum(smooth(centred**2, seconds), 0))
    floor = 0.1 * maximum_filter1d(deviation, int(10 * seconds * FRAME_RATE), axis=-1) + 1e-9
    return np.clip(centred / np.maximum(deviation, floor), -3, 6).astype(np.float32)


# --- Matching --------------------------------------------------------------------------------------------------------

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


class Candidates(NamedTuple):
    """Peaks of the segments' correlations, one entry each: segment centre and lag in seconds, and score.

    A lag is reference time minus recording time of the same event.
    """

    times_s: np.ndarray
    lags_s: np.ndarray
    scores: np.ndarray


class Run(NamedTuple):
    """Consecutive segments whose lags lie on one line: `lag = offset_s + slope * recording time`."""

    start_s: float
    end_s: float
    offset_s: float
    slope: float
    score: float


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
    """Finds the peaks of the correlation of a recording's segments with the whole reference.

    Where a segment overlaps the reference in part, what chance makes of it is less: its deviation is made equal.

    Args:
        reference, features: `(rows, frames)` at `FRAME_RATE`, standardised in time.
        length: frames of a segment.
    """
    correlate = _correlator(reference, length)
    lags = np.arange(reference.shape[1] + length) - length  # reference frame minus segment frame
    overlap = np.minimum(lags + length, reference.shape[1]) - np.maximum(lags, 0)
    chance = np.sqrt(np.clip(overlap / length, min(MIN_OVERLAP_S * FRAME_RATE / length, 1.0), None))
    found: list[tuple[float, float, float]] = []
    last = features.shape[1] - length
    for start in np.linspace(0, last, int(np.ceil(2 * last / length)) + 1).astype(int):
        correlation = correlate(features[:, start : start + length]) / chance
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
    return Candidates(*np.array(found).reshape(-1, 3).T)


def _correlator(features: np.ndarray, length: int) -> Callable[[np.ndarray], np.ndarray]:
    """Correlates segments `(rows, length)` with features by overlap-save, whose spectra are computed once.

    Index i of a correlation is the lag `i - length`.
    """
    total = features.shape[1] + length
    size = int(min(FFT_FRAMES, scipy.fft.next_fast_len(total + length, real=True)))
    step = size - length
    padded = np.pad(features, ((0, 0), (length, length + step)))
    spectra = [scipy.fft.rfft(padded[:, at : at + size], size, axis=1) for at in range(0, total, step)]

    def correlate(segment: np.ndarray) -> np.ndarray:
        spectrum = scipy.fft.rfft(segment, size, axis=1).conj()
        pieces = [scipy.fft.irfft((block * spectrum).sum(axis=0), size) for block in spectra]
        return np.concatenate([piece[:step] for piece in pieces])[:total]

    return correlate


def best_path(candidates: Candidates) -> list[Run]:
    """The sequence of candidates, at most one a segment, with the greatest sum of scores less the price of jumps."""
    times, lags, scores = candidates
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
    if not len(scores):
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
    return Candidates(*(column[keep] for column in candidates))


def fit_run(candidates: Candidates, nodes: np.ndarray) -> Run:
    """A line through a run's lags; too short a run, or an impossible slope, gets slope 0."""
    times, lags = candidates.times_s[nodes], candidates.lags_s[nodes]
    slope = float(theilslopes(lags, times)[0]) if np.ptp(times) > 120.0 else 0.0
    if abs(slope) > MAX_DRIFT:
        slope = 0.0
    offset = float(np.median(lags - slope * times))
    return Run(float(times[0]), float(times[-1]), offset, slope, float(candidates.scores[nodes].sum()))


def parabolic_peak(values: np.ndarray, peak: int) -> float:
    """Offset in (-0.5, 0.5) of the vertex of a parabola through a peak and its neighbours; 0 at an edge."""
    if peak == 0 or peak == len(values) - 1:
        return 0.0
    left, middle, right = (float(values[peak + step]) for step in (-1, 0, 1))
    curvature = left - 2 * middle + right
    return 0.5 * (left - right) / curvature if np.isfinite(curvature) and curvature < 0 else 0.0
