"""SRMR against torchmetrics, and its behaviour in a room."""

import numpy as np
import pytest
from scipy import signal

from training.srmr import MODULATION_HZ, SAMPLE_RATE, centre_frequencies, gammatone, srmr

TIME = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
# Of torchmetrics 1.9 (`speech_reverberation_modulation_energy_ratio`, max_cf=128), a translation of SRMRpy.
PROBES = {
    "slow": (0.2 * np.sin(2 * np.pi * 440 * TIME) * (1 + np.sin(2 * np.pi * 4 * TIME)), 165.17245572),
    "fast": (0.2 * np.sin(2 * np.pi * 1000 * TIME) * (1 + np.sin(2 * np.pi * 40 * TIME)), 0.08924954955),
    "gated": (
        0.3
        * np.sin(2 * np.pi * (150 * TIME + 400 * np.sin(2 * np.pi * 0.7 * TIME)))
        * (np.sin(2 * np.pi * 3 * TIME) > 0),
        5.207967798671,
    ),
    "noise": (0.05 * np.random.default_rng(0).standard_normal(len(TIME)), 0.249523434907),
}


@pytest.mark.parametrize("name", sorted(PROBES))
def test_srmr_is_that_of_torchmetrics(name: str) -> None:
    waveform, expected = PROBES[name]
    assert srmr(waveform.astype(np.float32)) == pytest.approx(expected, rel=5e-5)


def test_the_level_does_not_count_and_reverberation_lowers_it() -> None:
    rng = np.random.default_rng(1)
    syllables = (0.2 * rng.standard_normal(len(TIME)) * (np.sin(2 * np.pi * 4 * TIME) > 0.3)).astype(np.float32)
    tail = rng.standard_normal(SAMPLE_RATE) * np.exp(-6.9 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    wet = signal.oaconvolve(syllables, tail)[: len(TIME)].astype(np.float32)
    assert srmr(3 * syllables) == pytest.approx(srmr(syllables), rel=1e-6)
    assert srmr(wet) < 0.6 * srmr(syllables)


def test_filters_are_where_the_toolbox_has_them() -> None:
    centres_hz = centre_frequencies()
    # `gammatone.filters.centre_freqs(16000, 23, 125)`.
    assert centres_hz[[0, 11, 22]] == pytest.approx([6947.8450763, 1364.69927531, 125.0], rel=1e-9)
    assert np.argmax(np.abs(np.fft.rfft(gammatone(np.eye(1, SAMPLE_RATE)[0], 1000.0)))) == pytest.approx(1000, abs=5)
    np.testing.assert_allclose(MODULATION_HZ[[0, 3, 7]], [4.0, 17.67, 128.0], rtol=1e-3)


def test_too_short_and_silent_sounds_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 0.256 s"):
        srmr(np.ones(100, np.float32))
    with pytest.raises(ValueError, match="silent"):
        srmr(np.zeros(SAMPLE_RATE, np.float32))
