"""Room measures against formulas, trimming against known responses."""

import numpy as np
import pytest

from training.data.rooms import decay_end, energy_ratio_db, from_direct_path, onset, t20_s, tidy

RATE = 44100


def decaying(rt60_s: float, seconds: float, seed: int = 0) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return np.random.default_rng(seed).standard_normal(len(time)) * 10 ** (-3 * time / rt60_s)


@pytest.mark.parametrize("rt60_s", [0.3, 1.0, 3.0])
def test_t20_of_an_exponential_decay(rt60_s: float) -> None:
    time = np.arange(round(1.5 * rt60_s * RATE)) / RATE
    # Without noise the measure is exact but for the truncation at -90 dB.
    assert t20_s(10 ** (-3 * time / rt60_s), RATE) == pytest.approx(rt60_s, rel=1e-3)
    assert t20_s(decaying(rt60_s, 1.5 * rt60_s), RATE) == pytest.approx(rt60_s, rel=0.05)


def test_t20_refuses_what_does_not_decay() -> None:
    with pytest.raises(ValueError, match="silent"):
        t20_s(np.zeros(1000), RATE)
    with pytest.raises(ValueError, match="does not decay"):
        t20_s(np.eye(1, 1000)[0], RATE)


def test_energy_ratios_of_a_handmade_response() -> None:
    response = np.zeros(RATE)
    response[0], response[round(0.02 * RATE)], response[round(0.3 * RATE)] = 1.0, 0.5, 0.25
    assert energy_ratio_db(response, RATE, 0.0025) == pytest.approx(10 * np.log10(1 / (0.25 + 0.0625)))
    assert energy_ratio_db(response, RATE, 0.05) == pytest.approx(10 * np.log10(1.25 / 0.0625))
    assert energy_ratio_db(np.eye(1, 1000)[0], RATE, 0.0025) == 99.0


def test_onset_finds_the_direct_path_before_a_stronger_reflection() -> None:
    response = 0.05 * decaying(0.5, 0.5)
    response[:500] = 0.001
    response[500], response[700] = 0.8, -1.0
    assert onset(response, RATE) == 500


def test_direct_path_between_two_samples_is_moved_onto_one() -> None:
    """A band-limited pulse at 200.5 keeps its whole energy in one sample instead of half a ringing sinc."""
    response = np.sinc(np.arange(4000) - 2000.5) * np.hanning(4000)
    trimmed = from_direct_path(response, RATE)
    assert trimmed[0] / np.sqrt(np.square(response).sum()) > 0.97
    assert np.square(trimmed[1:]).sum() < 0.05 * trimmed[0] ** 2


def test_decay_end_stops_at_the_noise_floor() -> None:
    response = decaying(1.0, 3.0) + 1e-2 * decaying(1e9, 3.0, seed=1)
    # 40 dB down after 40/60 s; the margin of 6 dB is reached 0.1 s earlier.
    assert decay_end(response, RATE) / RATE == pytest.approx(0.6, abs=0.1)
    assert decay_end(decaying(0.5, 3.0), RATE) / RATE == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("rate", [44100, 48000, 96000])
def test_tidy_aligns_normalises_and_turns(rate: int) -> None:
    responses = np.zeros((2, rate))
    for channel, (delay_s, sign) in enumerate(((0.011, 1.0), (0.017, -1.0))):
        time = np.arange(rate) / rate - delay_s
        tail = np.random.default_rng(channel).standard_normal(rate) * 10 ** (-3 * time / 0.4) * (time > 0.003)
        responses[channel] = sign * (np.eye(1, rate, round(delay_s * rate))[0] + 0.02 * tail)
    tidied = tidy(responses, rate, RATE)
    assert tidied.dtype == np.float32
    energy = np.square(tidied[:, : round(0.0025 * RATE)]).sum(axis=1)
    np.testing.assert_allclose(energy, 1.0, rtol=1e-5)
    assert np.all(tidied[:, 0] > 0.9)
    assert tidied.shape[1] / RATE == pytest.approx(0.4, abs=0.1)


def test_tidy_refuses_nan() -> None:
    with pytest.raises(ValueError, match="NaN"):
        tidy(np.full((1, 1000), np.nan), RATE, RATE)
