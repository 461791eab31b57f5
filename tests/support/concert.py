"""Concerts whose every instant is known: music that is a formula, heard by recorders with a clock and a seat."""

from functools import cache

import numpy as np

RATE = 16000


@cache
def notes(seed: int, seconds: float, jitter_s: float = 0.0, jitter_seed: int = 0) -> np.ndarray:
    """Start, frequency, decay and phase of notes (tones with overtones, and drums of many partials), one row each."""
    rng = np.random.default_rng(seed)
    rows = []
    for start in np.cumsum(rng.exponential(0.3, int(3.5 * seconds))):
        if rng.random() < 0.5:
            frequencies, decay = 110.0 * 2 ** (rng.integers(0, 36) / 12) * np.arange(1, 6), 0.2
        else:
            frequencies, decay = rng.uniform(150.0, 6500.0, 30), 0.04
        rows += [(start, frequency, decay, rng.uniform(0, 6.28)) for frequency in frequencies if frequency < 6500]
    table = np.array(rows)
    if jitter_s:
        starts, which = np.unique(table[:, 0], return_inverse=True)
        table[:, 0] += np.random.default_rng(jitter_seed).normal(0.0, jitter_s, len(starts))[which]
    return table[np.argsort(table[:, 0])]


def music(times_s: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The notes at any instants in rising order."""
    out = np.zeros(len(times_s))
    for start, frequency, decay, phase in table:
        first, last = np.searchsorted(times_s, (start, start + 5 * decay))
        age = times_s[first:last] - start
        attack = np.sin(np.pi / 2 * np.minimum(age / 0.004, 1)) ** 2
        out[first:last] += attack * np.exp(-age / decay) * np.sin(2 * np.pi * frequency * age + phase)
    return out


def clock(seconds: float, offset_s: float, drift_ppm: float, rate: int = RATE) -> np.ndarray:
    """The instants at which a recorder that is started at `offset_s` takes its samples."""
    return np.arange(int(seconds * rate)) / (rate * (1 + drift_ppm * 1e-6)) + offset_s


def heard(times_s: np.ndarray, table: np.ndarray, seed: int, snr_db: float = 15.0) -> np.ndarray:
    """The music at a seat of its own: an echo, and noise."""
    rng = np.random.default_rng(seed)
    waveform = music(times_s, table) + rng.uniform(0.4, 0.6) * music(times_s - rng.uniform(0.004, 0.03), table)
    noise = rng.standard_normal(len(times_s)) * np.std(waveform) * 10 ** (-snr_db / 20)
    return (0.05 * (waveform + noise)).astype(np.float32)
