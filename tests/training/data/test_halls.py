"""Simulated halls against the formulas that they were made by."""

import numpy as np
import pytest
from scipy import signal

from training.data.rooms import (
    AIR_PER_M,
    HIGHS_DECAY,
    OCTAVES_HZ,
    shaped_noise,
    simulate,
    t20_s,
    tidy,
    wall_absorption,
)

SAMPLE_RATE = 44100


def test_walls_give_the_decay_by_eyrings_formula() -> None:
    size_m, floor = np.array([30.0, 20.0, 10.0]), np.full(8, 0.4)
    walls = wall_absorption(1.5, size_m, floor, AIR_PER_M)
    surface, volume = 2 * (600 + 300 + 200), 6000
    mean = (walls * (surface - 600) + floor * 600) / surface
    decay_s = 0.161 * volume / (-surface * np.log(1 - mean) + 4 * AIR_PER_M * volume)
    inside = (walls > 0.02) & (walls < 0.95)
    assert inside.sum() >= 5
    np.testing.assert_allclose(decay_s[inside], (1.5 * HIGHS_DECAY)[inside], rtol=1e-6)


def test_shaped_noise_has_the_envelopes_and_a_diffuse_fields_coherence() -> None:
    envelopes = np.ones((len(OCTAVES_HZ), 2, 8 * SAMPLE_RATE))
    envelopes[5:] = 0.1  # 4 kHz and above
    noise = shaped_noise(np.random.default_rng(0), envelopes, SAMPLE_RATE, 0.2)
    frequencies, power = signal.welch(noise[0], SAMPLE_RATE, nperseg=4096)
    level_db = 10 * np.log10(power[np.searchsorted(frequencies, [500, 8000])])
    assert level_db[0] - level_db[1] == pytest.approx(20.0, abs=1.5)
    frequencies, cross = signal.csd(noise[0], noise[1], SAMPLE_RATE, nperseg=1024)
    auto = [signal.welch(channel, SAMPLE_RATE, nperseg=1024)[1] for channel in noise]
    coherence = cross.real / np.sqrt(auto[0] * auto[1])
    band = (frequencies > 100) & (frequencies < 3000)
    np.testing.assert_allclose(coherence[band], np.sinc(2 * frequencies[band] * 0.2 / 343), atol=0.15)


@pytest.mark.slow
def test_a_hall_rings_alike_at_all_its_microphones() -> None:
    responses = simulate(np.random.default_rng(0), SAMPLE_RATE)
    assert responses.shape[:2] == (2, 4) and np.isfinite(responses).all()
    decays_s = [
        t20_s(each.astype(np.float64), SAMPLE_RATE)
        for each in tidy(responses.reshape(8, -1), SAMPLE_RATE, SAMPLE_RATE)
    ]
    assert max(decays_s) / min(decays_s) < 1.6 and 0.2 < np.median(decays_s) < 6
    np.testing.assert_array_equal(responses, simulate(np.random.default_rng(0), SAMPLE_RATE))
