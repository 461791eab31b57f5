"""The table of distributions against numbers that are known."""

import math

import numpy as np
import pytest
from scipy import signal

from training.data.material import SAMPLE_RATE
from training.evaluation.facts import balance_db, tabulate_distributions


def test_the_balance_of_pink_noise_is_flat_in_spectral_density_less_3_db_an_octave() -> None:
    noise = np.random.default_rng(0).standard_normal((2, 20 * SAMPLE_RATE))
    size = noise.shape[1]
    pink = np.fft.irfft(np.fft.rfft(noise) / np.sqrt(np.maximum(np.arange(size // 2 + 1), 1)), size)
    found = balance_db(pink)
    assert found["500 Hz, dB"] - found["2000 Hz, dB"] == pytest.approx(6.02, abs=0.5)
    assert found["2000 Hz, dB"] - found["8000 Hz, dB"] == pytest.approx(6.02, abs=0.5)


def test_the_balance_shows_a_filter() -> None:
    noise = np.random.default_rng(0).standard_normal((1, 20 * SAMPLE_RATE))
    filtered = signal.sosfilt(signal.butter(2, 8000, fs=SAMPLE_RATE, output="sos"), noise)
    before, after = balance_db(noise), balance_db(filtered)
    assert after["8000 Hz, dB"] - before["8000 Hz, dB"] == pytest.approx(-3.0, abs=0.6)
    assert after["500 Hz, dB"] == pytest.approx(before["500 Hz, dB"], abs=0.3)


def test_what_lies_outside_is_marked() -> None:
    training = [{"snr_db": float(value), "voice": float(value % 4 == 0)} for value in range(100)]
    clips = [{"snr_db": value, "voice": voice} for value, voice in ((50.0, 1.0), (200.0, 0.0), (math.nan, math.nan))]
    inside = [{"snr_db": 50.0, "voice": 1.0}] * 3
    marked, unmarked = (tabulate_distributions(training, each).splitlines() for each in (clips, inside))
    assert marked[0] == "100 scenes, 3 clips: 5, 50 and 95 % quantiles."
    assert marked[4] == "| SNR, dB | 5.0, 49.5, 94.0 | 57.5, 125.0, 192.5 | 50 | widen |"
    assert marked[5] == "| with voice | 0.25 | 0.50 | | |"
    assert unmarked[4].endswith("| 0 |  |")
