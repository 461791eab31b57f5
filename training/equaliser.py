"""Equalisers drawn in decibels over frequency, realised as minimum-phase filters whose delay is undone.

Loudspeakers, microphones and their preamplifiers are minimum-phase devices: their phase follows from their magnitude
(Oppenheim and Schafer, Discrete-Time Signal Processing, "Cepstrum analysis"). Anti-alias filters of converters and the
low-passes of codecs are linear-phase; they are applied with zero phase, that is with their delay undone.
"""

import numpy as np
from scipy import fft
from scipy.signal import oaconvolve

FFT_SIZE = 16_384  # 2.7 Hz apart at 44.1 kHz: fine enough for a low cut at 30 Hz
BEFORE = 512  # taps kept before the peak, the ringing of the zero-phase low-pass
AFTER = 8192  # taps kept after the peak, the ringing of the low cut
FLOOR_DB = -80.0
OVERSAMPLING = 8  # for the peak of the response, where the delay is measured


def high_shelf(frequencies: np.ndarray, corner_hz: float, gain_db: float) -> np.ndarray:
    """`gain_db` far above the corner, half of it at the corner, 0 dB far below."""
    ratio = np.square(frequencies / corner_hz)
    return gain_db * ratio / (1.0 + ratio)


def low_shelf(frequencies: np.ndarray, corner_hz: float, gain_db: float) -> np.ndarray:
    """`gain_db` far below the corner, half of it at the corner, 0 dB far above."""
    return gain_db / (1.0 + np.square(frequencies / corner_hz))


def bell(frequencies: np.ndarray, centre_hz: float, gain_db: float, width_octaves: float) -> np.ndarray:
    """`gain_db` at the centre, falling like a Gaussian of that standard deviation on the octave axis."""
    octaves = np.log2(np.maximum(frequencies, 1.0) / centre_hz)
    return gain_db * np.exp(-0.5 * np.square(octaves / width_octaves))


def tilt(frequencies: np.ndarray, db_per_octave: float) -> np.ndarray:
    """A straight line through 0 dB at 1 kHz, flat below 62.5 Hz and above 16 kHz."""
    return db_per_octave * np.log2(np.clip(frequencies, 62.5, 16_000.0) / 1000.0)


def low_cut(frequencies: np.ndarray, corner_hz: float, order: int) -> np.ndarray:
    """Butterworth high-pass: -3 dB at the corner, 6 * order dB per octave below."""
    return -10.0 * np.log10(1.0 + np.power(corner_hz / np.maximum(frequencies, 0.1), 2.0 * order))


def band_limit(frequencies: np.ndarray, corner_hz: float) -> np.ndarray:
    """Gain (not dB) of a low-pass that falls like half a cosine from the corner to 8 % above it."""
    position = np.clip((frequencies - corner_hz) / (0.08 * corner_hz), 0.0, 1.0)
    return 0.5 * (1.0 + np.cos(np.pi * position))


def design(gain_db: np.ndarray, sample_rate: int, limit_hz: float = 0.0) -> np.ndarray:
    """Impulse response of a minimum-phase filter with the gain `gain_db` (FFT_SIZE // 2 + 1,), bulk delay removed.

    Args:
        gain_db: gain at `frequencies(sample_rate)`; anything below FLOOR_DB is raised to it.
        limit_hz: corner of an additional zero-phase low-pass; 0 for none.

    Returns:
        (BEFORE + AFTER,) float64; tap BEFORE is where white noise comes out, to a fraction of a sample.
    """
    log_gain = np.maximum(gain_db, FLOOR_DB) * (np.log(10.0) / 20.0)
    cepstrum = fft.irfft(log_gain, FFT_SIZE)
    cepstrum[1 : FFT_SIZE // 2] *= 2.0
    cepstrum[FFT_SIZE // 2 + 1 :] = 0.0
    spectrum = np.exp(fft.rfft(cepstrum))
    if limit_hz > 0.0:
        spectrum = spectrum * band_limit(frequencies(sample_rate), limit_hz)
    # The cross-correlation of white noise with the filtered noise is the impulse response itself.
    fine = fft.irfft(spectrum, FFT_SIZE * OVERSAMPLING)
    peak = int(np.argmax(np.abs(fine)))
    left, middle, right = np.abs(fine[[peak - 1, peak, (peak + 1) % len(fine)]])
    peak = peak - len(fine) if peak > len(fine) // 2 else peak
    delay = (peak + 0.5 * (left - right) / (left - 2.0 * middle + right)) / OVERSAMPLING
    turns = np.arange(len(spectrum)) / FFT_SIZE
    response = fft.irfft(spectrum * np.exp(2j * np.pi * turns * delay), FFT_SIZE)
    return np.roll(response, BEFORE)[: BEFORE + AFTER]


def frequencies(sample_rate: int) -> np.ndarray:
    """The frequencies in Hz at which `design` wants its gain, (FFT_SIZE // 2 + 1,)."""
    return fft.rfftfreq(FFT_SIZE, 1.0 / sample_rate)


def apply(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Filter (..., samples) with a response of `design`; same shape, same time, float32."""
    taps = response.astype(np.float32).reshape((1,) * (waveform.ndim - 1) + (-1,))
    filtered = oaconvolve(waveform.astype(np.float32), taps, axes=-1)
    return filtered[..., BEFORE : BEFORE + waveform.shape[-1]]


def shift(waveform: np.ndarray, delay_s: float, sample_rate: int) -> np.ndarray:
    """Delay (..., samples) by a fraction of a sample or many, band-limited interpolation, silence shifted in."""
    margin = 64 + int(np.ceil(abs(delay_s) * sample_rate))
    padded = np.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(margin, margin)])
    length = fft.next_fast_len(padded.shape[-1], real=True)
    turns = fft.rfftfreq(length, 1.0 / sample_rate) * delay_s
    shifted = fft.irfft(fft.rfft(padded, length) * np.exp(-2j * np.pi * turns), length)
    return shifted[..., margin : margin + waveform.shape[-1]].astype(np.float32)
