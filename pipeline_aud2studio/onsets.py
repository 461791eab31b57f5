"""What the coarse search compares: onset strength in bands, and beat-synchronous chroma where onsets are weak.

Both come as features `(rows, frames)` at `FRAME_RATE`, standardised in time, so that one matcher serves both.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from scipy.ndimage import maximum_filter1d, uniform_filter1d

from .recording import Recording

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
    """Energy in groups of bins, computed in blocks.

    Args:
        matrix: `(rows, bins)` weights of the power spectrum's bins.
        window: analysis window in samples; its length is the transform's.

    Returns:
        float32 `(rows, frames)`; frame t is centred at `t / frame_rate` seconds.
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


def log_band_energies(recording: Recording) -> np.ndarray:
    """Energy in dB in narrow bands, float32 `(41, frames)`; bands above the recording's Nyquist are flat."""
    size = 2 ** int(np.round(np.log2(BAND_WINDOW_S * recording.sample_rate)))
    frequencies = np.fft.rfftfreq(size, 1 / recording.sample_rate)
    band = np.searchsorted(BAND_EDGES_HZ, frequencies, side="right") - 1
    matrix = (band == np.arange(len(BAND_EDGES_HZ) - 1)[:, None]).astype(np.float32)
    energies = frame_energies(recording, matrix, np.hanning(size).astype(np.float32), FRAME_RATE)
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
    """Onset strength by band: how far the level stands out of its surroundings, standardised over ten seconds.

    Args:
        log_energies: `(bands, frames)` in dB, from `log_band_energies`.

    Returns:
        float32 `(36, frames)`.
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

    Kept on the clock's grid, and not one column a beat, so that a beat missed in one take does not shift the rest.

    Returns:
        float32 `(12, frames)`.
    """
    size = 2 ** int(np.round(np.log2(CHROMA_WINDOW_S * recording.sample_rate)))
    frequencies = np.fft.rfftfreq(size, 1 / recording.sample_rate)
    inside = (frequencies >= CHROMA_RANGE_HZ[0]) & (frequencies <= CHROMA_RANGE_HZ[1])
    pitch = 12 * np.log2(np.where(inside, frequencies, 440.0) / 440.0)
    matrix = (np.round(pitch).astype(int) % 12 == np.arange(12)[:, None]) & inside
    energies = frame_energies(recording, matrix.astype(np.float32), np.hanning(size).astype(np.float32), CHROMA_RATE)
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
