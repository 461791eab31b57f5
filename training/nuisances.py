"""What a recorder hears besides the concert: hum, hiss, wind, handling. Waveforms (2, samples), levels arbitrary."""

import numpy as np
from scipy.fft import next_fast_len
from scipy.signal import butter, fftconvolve, sosfilt


def coloured_noise(rng: np.random.Generator, shape: tuple[int, int], sample_rate: int, slope_db: float) -> np.ndarray:
    """Gaussian noise (channels, samples) whose density falls by `slope_db` an octave from 20 Hz on (pink: 3)."""
    size = next_fast_len(shape[1], real=True)
    frequency = np.maximum(np.fft.rfftfreq(size, 1 / sample_rate), 20.0)
    spectrum = np.fft.rfft(rng.standard_normal((shape[0], size))) * (frequency / 20.0) ** (-slope_db / 6.02)
    return np.fft.irfft(spectrum, size)[:, : shape[1]]


def slow_curve(rng: np.random.Generator, samples: int, sample_rate: int, rate_hz: float) -> np.ndarray:
    """A random curve (samples,), standard normal at every moment, that changes at about `rate_hz`."""
    num_knots = max(4, int(samples / sample_rate * rate_hz * 2) + 4)
    knots = rng.standard_normal(num_knots)
    position = np.linspace(0, num_knots - 1, samples)
    left = np.minimum(position.astype(int), num_knots - 2)
    part = 0.5 - 0.5 * np.cos(np.pi * (position - left))
    curve = knots[left] * (1 - part) + knots[left + 1] * part
    return curve / np.sqrt(part**2 + (1 - part) ** 2)


def filtered(waveform: np.ndarray, sample_rate: int, low_hz: float, high_hz: float, order: int = 2) -> np.ndarray:
    """Butterworth band-pass."""
    band = (low_hz, min(high_hz, 0.45 * sample_rate))
    return np.asarray(sosfilt(butter(order, band, "bandpass", fs=sample_rate, output="sos"), waveform))


def hum(rng: np.random.Generator, samples: int, sample_rate: int) -> np.ndarray:
    """Mains hum at 50 or 60 Hz, drifting by some 0.02 %, with harmonics: mostly even ones, or the buzz of a dimmer."""
    mains_hz = float(rng.choice((50.0, 60.0))) * (1 + 2e-4 * slow_curve(rng, samples, sample_rate, 0.05))
    phase = 2 * np.pi * np.cumsum(mains_hz) / sample_rate
    slope_db = rng.uniform(3.0, 9.0)
    wave = np.zeros(samples)
    for harmonic in range(1, int(rng.integers(6, 40))):
        level_db = -slope_db * np.log2(harmonic) + rng.normal(0.0, 5.0)
        wave += 10 ** (level_db / 20) * np.sin(harmonic * phase + rng.uniform(0, 2 * np.pi))
    return np.stack([wave, wave * 10 ** (rng.normal(0.0, 1.5) / 20)])


def hiss(rng: np.random.Generator, samples: int, sample_rate: int) -> np.ndarray:
    """Noise of preamplifier, tape or air conditioning: tilted, independent in both channels but for a share."""
    noise = coloured_noise(rng, (3, samples), sample_rate, rng.uniform(-2.0, 4.5))
    share = rng.uniform(0.0, 0.7)
    both = np.sqrt(1 - share) * noise[:2] + np.sqrt(share) * noise[2]
    return filtered(both, sample_rate, rng.uniform(20.0, 150.0), rng.uniform(6e3, 20e3), order=1)


def wind(rng: np.random.Generator, samples: int, sample_rate: int) -> np.ndarray:
    """Gusts at a microphone: noise falling steeply above 50 to 250 Hz, whose corner rises with the gust."""
    gust = 10 ** (rng.uniform(3.0, 9.0) * slow_curve(rng, samples, sample_rate, rng.uniform(0.2, 0.8)) / 20)
    flutter = 10 ** (rng.uniform(1.0, 4.0) * slow_curve(rng, samples, sample_rate, rng.uniform(4.0, 12.0)) / 20)
    corner_hz = rng.uniform(50.0, 250.0)
    noise = coloured_noise(rng, (2, samples), sample_rate, 3.0)
    low = filtered(noise, sample_rate, 15.0, corner_hz)
    high = filtered(noise, sample_rate, 15.0, 6 * corner_hz)
    return low * gust * flutter + 0.3 * high * gust**2 * flutter


def handling(rng: np.random.Generator, samples: int, sample_rate: int) -> np.ndarray:
    """Bumps and rustle: damped resonances of the case at 40 to 250 Hz, cloth on the microphone between them."""
    seconds = samples / sample_rate
    bumps = np.zeros((2, samples))
    time = np.arange(round(0.3 * sample_rate)) / sample_rate
    for _ in range(1 + rng.poisson(rng.uniform(0.3, 2.0) * seconds)):
        start = int(rng.integers(samples))
        bump = np.zeros_like(time)
        for _ in range(3):
            decay = np.exp(-time / rng.uniform(0.01, 0.06))
            bump += rng.uniform(0.2, 1.0) * decay * np.sin(2 * np.pi * rng.uniform(40.0, 250.0) * time)
        bump += 0.2 * rng.standard_normal(len(time)) * np.exp(-time / 0.004)
        level = 10 ** (rng.normal(-6.0, 6.0) / 20)
        for channel in range(2):
            piece = bumps[channel, start : start + len(bump)]
            piece += level * rng.uniform(0.5, 1.0) * bump[: len(piece)]
    rustle = filtered(coloured_noise(rng, (2, samples), sample_rate, 2.0), sample_rate, 200.0, rng.uniform(2e3, 8e3))
    strokes = np.maximum(0.0, slow_curve(rng, samples, sample_rate, 3.0) - rng.uniform(0.5, 1.5)) ** 1.5
    crackle = 10 ** (0.4 * slow_curve(rng, samples, sample_rate, 60.0))
    rustle *= strokes * crackle / (np.std(rustle) + 1e-12)
    return bumps + rng.uniform(0.05, 0.5) * rustle


def room_around(rng: np.random.Generator, dry: np.ndarray, sample_rate: int) -> np.ndarray:
    """Sound (2, samples) from all over a hall: its diffuse reverberation (0.4 to 2 s) added at -6 to +6 dB."""
    rt60_s = rng.uniform(0.4, 2.0)
    time = np.arange(int(0.8 * rt60_s * sample_rate)) / sample_rate
    tail = coloured_noise(rng, (2, len(time)), sample_rate, 2.0) * 10 ** (-3.0 * time / rt60_s)
    tail /= np.sqrt(np.square(tail).sum(axis=1, keepdims=True))
    wet = fftconvolve(dry, tail, axes=1)[:, : dry.shape[1]]
    scale = np.sqrt((np.square(dry).mean() + 1e-20) / (np.square(wet).mean() + 1e-20))
    return dry + wet * scale * 10 ** (rng.uniform(-6.0, 6.0) / 20)
