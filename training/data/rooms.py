"""Room responses: what they measure, and how they are trimmed and normalised. ISO 3382-1 for the measures."""

import numpy as np
import soxr
from scipy.signal import resample_poly

DIRECT_S = 0.0025  # the direct path: the first 2.5 ms, as the usual definition of the DRR has it
EARLY_S = 0.05
FADE_S = 0.005
BLOCK_S = 0.01


def energy_decay_db(response: np.ndarray) -> np.ndarray:
    """Integrates backward, as Schroeder does, (samples,) -> (samples,) in dB, 0 dB at the start.

    M. R. Schroeder, "New method of measuring reverberation time", JASA 37, 1965.
    """
    energy = np.cumsum(np.square(response[::-1], dtype=np.float64))[::-1]
    if energy[0] == 0.0:
        raise ValueError("the response is silent")
    return 10.0 * np.log10(np.maximum(energy / energy[0], 1e-30))


def t20_s(response: np.ndarray, sample_rate: int) -> float:
    """Measures the reverberation time from the line through the decay between -5 and -25 dB; (samples,) -> seconds."""
    decay = energy_decay_db(response)
    inside = np.flatnonzero((decay <= -5.0) & (decay >= -25.0))
    if len(inside) < 2:
        raise ValueError("the response does not decay between -5 and -25 dB in more than one step")
    slope, _ = np.polyfit(inside / sample_rate, decay[inside], 1)
    return float(-60.0 / slope)


def energy_ratio_db(response: np.ndarray, sample_rate: int, seconds: float) -> float:
    """Measures the energy before `seconds` over that after it in dB, within 99 dB: DRR for 2.5 ms, C50 for 50."""
    split = round(seconds * sample_rate)
    early, late = (np.square(part, dtype=np.float64).sum() for part in (response[:split], response[split:]))
    return float(np.clip(10.0 * np.log10((early + 1e-30) / (late + 1e-30)), -99.0, 99.0))


def onset(response: np.ndarray, sample_rate: int, threshold_db: float = -6.0) -> int:
    """Finds the direct path's peak: the highest sample within 1 ms from where the response comes near its maximum.

    The direct path need not be the maximum: focused reflections and a second loudspeaker can be stronger. A threshold
    much lower than -6 dB finds what a measurement has before it: leakage, pre-ringing, sound through a wall.
    """
    magnitude = np.abs(response)
    if not magnitude.any():
        raise ValueError("the response is silent")
    first = int(np.argmax(magnitude >= magnitude.max() * 10 ** (threshold_db / 20)))
    return first + int(np.argmax(magnitude[first : first + max(1, round(1e-3 * sample_rate))]))


def from_direct_path(response: np.ndarray, sample_rate: int) -> np.ndarray:
    """Cuts a response at its direct path, whose peak is shifted onto the sample grid first: (samples,) -> (fewer,).

    A band-limited pulse that peaks between two samples rings on both sides; one that peaks on a sample does not ring.
    Cutting at the peak would otherwise lose the half that comes before it.
    """
    oversampling = 16
    start = onset(response, sample_rate)
    before = min(start, 32)
    near = resample_poly(response[start - before : start + 33], oversampling, 1)
    centre = before * oversampling
    reach = oversampling  # up to one sample each way
    window = np.abs(near[max(0, centre - reach) : centre + reach + 1])
    offset = (int(np.argmax(window)) - min(centre, reach)) / oversampling
    if offset:
        size = len(response) + 64
        spectrum = np.fft.rfft(response, size)
        response = np.fft.irfft(spectrum * np.exp(2j * np.pi * np.fft.rfftfreq(size) * offset), size)[: len(response)]
    return response[start:]


def decay_end(response: np.ndarray, sample_rate: int, range_db: float = 60.0, noise_margin_db: float = 6.0) -> int:
    """Finds the sample after which nothing but noise or less than -60 dB of the strongest 10 ms is left."""
    size = round(BLOCK_S * sample_rate)
    blocks = np.square(response[: len(response) // size * size], dtype=np.float64).reshape(-1, size).mean(axis=1)
    if len(blocks) < 2:
        return len(response)
    floor = np.median(blocks[-max(1, len(blocks) // 10) :]) * 10 ** (noise_margin_db / 10)
    above = np.flatnonzero(blocks > max(blocks.max() * 10 ** (-range_db / 10), floor))
    return min(len(response), int(above[-1] + 1) * size) if len(above) else len(response)


def tidy(responses: np.ndarray, sample_rate: int, target_rate: int) -> np.ndarray:
    """Resamples, trims every channel to its direct path, cuts the decayed end, normalises.

    Args:
        responses: (channels, samples) at `sample_rate` in Hz.

    Returns:
        (channels, fewer samples) float32 at `target_rate`. Sample 0 is the peak of the direct path and positive; the
        first 2.5 ms have unit energy in every channel.
    """
    if not np.isfinite(responses).all():
        raise ValueError("the response has NaN or infinite samples")
    if sample_rate != target_rate:
        responses = soxr.resample(responses.T, sample_rate, target_rate, quality="VHQ").T
    trimmed = [from_direct_path(response.astype(np.float64), target_rate) for response in responses]
    ends = [decay_end(response, target_rate) for response in trimmed]
    length = max(max(ends), round(2 * DIRECT_S * target_rate))
    tidied = np.zeros((len(trimmed), length), dtype=np.float32)
    fade = round(FADE_S * target_rate)
    for row, response, end in zip(tidied, trimmed, ends, strict=True):
        response = response[:end]
        if end > 2 * fade:
            response[-fade:] *= np.linspace(1.0, 0.0, fade)
        direct = response[: round(DIRECT_S * target_rate)]
        row[: len(response)] = response * np.sign(response[0]) / np.sqrt(np.square(direct).sum())
    return tidied
