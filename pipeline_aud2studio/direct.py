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

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.fft
from scipy.signal.windows import tukey

from .clock import IDENTITY, Segment, read_on_reference_clock
from .matching import parabolic_peak
from .recording import Recording

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


@dataclass(frozen=True)
class DirectPattern:
    """What the direct sound of a recording stands out of, against a reference.

    Attributes:
        values: correlation `(2 * context + 1)` at lags of whole samples around 0, in units of its root mean square.
            The context is the reach and `NEIGHBOURS` samples more on either side.
        ripples: `(samples)`, by the delay of an echo in samples: how much more of it the recording's power spectrum
            shows than the reference's, in units of their root mean square.
        sample_rate: in Hz.
    """

    values: np.ndarray
    ripples: np.ndarray
    sample_rate: float

    def echo(self, peak_s: float, rival_s: float) -> float:
        """How clearly the peak at a lag is that of an echo, if the one at the rival's lag is the direct sound's."""
        delay = round(abs(peak_s - rival_s) * self.sample_rate)
        if not ECHO_RANGE_S[0] * self.sample_rate <= delay < len(self.ripples) - 1:
            return 0.0
        near = self.ripples[delay - 1 : delay + 2]
        return float(np.sign(peak_s - rival_s) * near[np.argmax(np.abs(near))])


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
    return direct_peak(direct_pattern(reference, recording, windows, sample_rate, window_s, reach_s))


def direct_pattern(
    reference: Recording,
    recording: Recording,
    windows: Iterable[tuple[Segment, float]],
    sample_rate: float,
    window_s: float,
    reach_s: float,
) -> DirectPattern:
    """What the direct sound is a peak of: see :func:`direct_delay`."""
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


def oversampled(near: np.ndarray) -> np.ndarray:
    """`OVERSAMPLING` values a sample of a correlation without its outer `NEIGHBOURS`; lag 0 stays in the middle."""
    fractions = np.arange(OVERSAMPLING) / OVERSAMPLING
    around = np.lib.stride_tricks.sliding_window_view(near, 2 * NEIGHBOURS + 1)
    return (around @ _interpolation(fractions).T).reshape(-1)[: 1 - OVERSAMPLING]
