"""Which of the echoes is the direct sound: the delay between two recordings that hear one room from two places.

The pattern of a pair's cross-correlation holds every path of one microphone against every path of the other. Direct
against direct is one peak among them. Two things make it stand out:

- the smoothed coherence transform (SCOT: Carter, Nuttall and Cable, 1973) of cross-spectra summed over minutes, in
  which loud partials count and the crowd averages out, levelled in frequency so that the peak is narrow;
- the recordings' own power spectra. An echo is a ripple in them whose phase follows from its magnitude as long as the
  direct sound dominates (minimum phase: Oppenheim and Schafer, "Discrete-time signal processing", chapter 12). Taking
  that phase out removes the echoes' peaks from the cross-correlation and adds them to the direct sound's.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy.fft
from scipy.signal.windows import tukey

from .clock import IDENTITY, Segment, read_on_reference_clock
from .matching import parabolic_peak
from .recording import Recording

BAND_HZ = (200.0, 15000.0)
# Echoes whose phase is taken out. Shorter delays belong to the microphones' colour, which is not all minimum phase.
ECHO_RANGE_S = (0.5e-3, 0.16)
# Levelling in frequency: over a fifth of an octave.
LEVELLING_OCTAVES = 0.2
# A peak is interpolated from this many neighbours on either side, at this many points a sample.
NEIGHBOURS, OVERSAMPLING = 32, 8


def direct_delay(
    reference: Recording,
    recording: Recording,
    windows: Iterable[tuple[Segment, float]],
    sample_rate: float,
    window_s: float,
    reach_s: float,
) -> tuple[float, float]:
    """Delay of the direct sound against the segments' lines, in seconds, and its signed height.

    Args:
        windows: segment and centre on the recording's clock of every window to be summed.
        reach_s: how far from the line the direct sound is looked for.

    Returns:
        The delay, and the correlation's value there against its root mean square; negative is inverted polarity.
    """
    return highest_peak(direct_correlation(reference, recording, windows, sample_rate, window_s, reach_s), sample_rate)


def direct_correlation(
    reference: Recording,
    recording: Recording,
    windows: Iterable[tuple[Segment, float]],
    sample_rate: float,
    window_s: float,
    reach_s: float,
) -> np.ndarray:
    """What the direct sound is the highest peak of: see :func:`direct_delay`.

    Returns:
        `(2 * context + 1)` values at lags of whole samples around 0, in units of their root mean square. The context
        is the reach and `NEIGHBOURS` samples more on either side.
    """
    length = int(window_s * sample_rate)
    size = scipy.fft.next_fast_len(2 * length, real=True)
    taper = tukey(length, 0.2).astype(np.float32)
    cross = np.zeros(size // 2 + 1, dtype=np.complex128)
    powers = np.zeros((2, size // 2 + 1))
    for segment, time_s in windows:
        start = int(round(float(segment.to_reference(time_s)) * sample_rate)) - length // 2
        pair = [
            read_on_reference_clock(take, clock, start, start + length, sample_rate, mono=True)
            for take, clock in ((reference, IDENTITY), (recording, segment))
        ]
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
    echoes = minimum_phase(powers[1] / powers[0], band, sample_rate, ECHO_RANGE_S)
    coherence = cross / np.sqrt(powers.prod(axis=0)) * np.exp(-1j * echoes)
    level = np.sqrt(smooth_over_octaves(np.abs(coherence) ** 2, LEVELLING_OCTAVES))
    correlation = scipy.fft.irfft(np.where(band, coherence / np.maximum(level, 1e-12), 0), size)
    context = int(np.ceil(reach_s * sample_rate)) + NEIGHBOURS
    near = np.concatenate([correlation[-context:], correlation[: context + 1]])
    return near / (float(np.sqrt(np.mean(near**2))) or 1.0)


def minimum_phase(
    power: np.ndarray, band: np.ndarray, sample_rate: float, quefrencies_s: tuple[float, float]
) -> np.ndarray:
    """Phase in radians of the minimum-phase response with a power spectrum, of its ripples between two quefrencies.

    Args:
        power: `(bins)` of an even-sized transform; outside `band` it is held constant.
    """
    inside = np.flatnonzero(band)
    logarithm = 0.5 * np.log(power[np.clip(np.arange(len(power)), inside[0], inside[-1])])
    cepstrum = scipy.fft.irfft(logarithm)
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


def highest_peak(near: np.ndarray, sample_rate: float) -> tuple[float, float]:
    """Lag in seconds of the highest peak of a correlation around lag 0, and its signed height, of either sign."""
    peak = NEIGHBOURS + int(np.argmax(np.abs(near[NEIGHBOURS : len(near) - NEIGHBOURS])))
    sign = float(np.sign(near[peak])) or 1.0
    # Windowed-sinc interpolation around the peak, then a parabola through the finest three points.
    offsets = np.arange(-OVERSAMPLING, OVERSAMPLING + 1) / OVERSAMPLING
    fine = sign * _interpolation(offsets) @ near[peak - NEIGHBOURS : peak + NEIGHBOURS + 1]
    best = int(np.argmax(fine))
    position = peak - len(near) // 2 + (best + parabolic_peak(fine, best)) / OVERSAMPLING - 1
    return position / sample_rate, sign * float(fine[best])


def _interpolation(offsets: np.ndarray) -> np.ndarray:
    """Weights `(offsets, 2 * NEIGHBOURS + 1)` of the samples around one, for values that many samples beside it."""
    distance = offsets[:, None] - np.arange(-NEIGHBOURS, NEIGHBOURS + 1)
    return np.sinc(distance) * np.cos(np.pi / 2 * np.clip(distance / (NEIGHBOURS + 1), -1, 1)) ** 2


def oversampled(near: np.ndarray) -> np.ndarray:
    """`OVERSAMPLING` values a sample of a correlation without its outer `NEIGHBOURS`; lag 0 stays in the middle."""
    fractions = np.arange(OVERSAMPLING) / OVERSAMPLING
    around = np.lib.stride_tricks.sliding_window_view(near, 2 * NEIGHBOURS + 1)
    return (around @ _interpolation(fractions).T).reshape(-1)[: 1 - OVERSAMPLING]
