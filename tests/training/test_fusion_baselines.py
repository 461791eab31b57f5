"""Ways to make one recording of several: against their formulas, and in cases in which the result is known."""

import numpy as np
import pytest
import torch

from training.baselines import nara_wpe
from training.fusion_baselines import (
    SMOOTHING_FRAMES,
    agreement,
    aligned_mean,
    at_one_level,
    coherence_weighted,
    wpe_together,
)
from training.metrics import si_sdr

RATE = 44_100
SETTINGS = {"taps": 4, "delay": 6, "iterations": 1}


def noise(seed: int, seconds: float = 1.0, channels: int = 2) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((channels, round(seconds * RATE))).astype(np.float32)


def ratio_db(estimate: np.ndarray, clean: np.ndarray) -> float:
    return float(si_sdr(torch.tensor(estimate), torch.tensor(clean)).mean())


def test_takes_come_to_the_level_of_the_reference() -> None:
    takes = [noise(0), 4.0 * noise(1), 0.1 * noise(2)]
    levels = np.sqrt(np.square(at_one_level(takes)).mean((1, 2)))
    np.testing.assert_allclose(levels, levels[0], rtol=1e-5)
    np.testing.assert_array_equal(at_one_level(takes)[0], takes[0])


@pytest.mark.parametrize("fuse", [aligned_mean, coherence_weighted])
@pytest.mark.parametrize("levels", [(1.0,), (1.0, 1.0), (1.0, 3.0, 0.5)])
def test_equal_takes_give_the_take(fuse, levels) -> None:
    take = noise(0)
    result = fuse([np.float32(level) * take for level in levels], RATE)
    assert result.dtype == np.float32 and result.shape == take.shape
    np.testing.assert_allclose(result, take, atol=1e-5)


@pytest.mark.parametrize(("num_takes", "gain_db"), [(2, 3.01), (4, 6.02)])
def test_the_mean_gains_3_db_for_every_doubling(num_takes, gain_db) -> None:
    clean = noise(0, 4.0)
    takes = [clean + 0.5 * noise(1 + take, 4.0) for take in range(num_takes)]
    assert ratio_db(aligned_mean(takes, RATE), clean) - ratio_db(takes[0], clean) == pytest.approx(gain_db, abs=0.1)


def test_agreement_is_the_mean_coherence_with_the_others() -> None:
    rng = np.random.default_rng(0)
    shape = (3, 2, 4, 3 * SMOOTHING_FRAMES)
    common = rng.standard_normal(shape[1:]) + 1j * rng.standard_normal(shape[1:])
    spectra = (common + rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    found = agreement(spectra)
    assert found.shape == shape
    at = 30
    frames = slice(at - SMOOTHING_FRAMES // 2, at + SMOOTHING_FRAMES // 2 + 1)
    for take in range(3):
        for channel in range(2):
            for band in range(4):
                own = spectra[take, channel, band, frames]
                coherences = []
                for other in {0, 1, 2} - {take}:
                    its = spectra[other, channel, band, frames]
                    powers = np.vdot(own, own).real * np.vdot(its, its).real
                    coherences.append(abs(np.vdot(own, its)) / np.sqrt(powers))
                assert found[take, channel, band, at] == pytest.approx(np.mean(coherences), abs=1e-5)


def test_coherence_takes_away_what_nobody_else_heard() -> None:
    """Where music and noise share no band, the mean halves the noise of two takes; its incoherence takes more."""
    time = np.arange(3 * RATE) / RATE
    clean = np.stack([np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 660 * time)]).astype(np.float32)
    takes = [clean + 3.0 * noise(take, 3.0) for take in range(2)]
    mean, weighted = (ratio_db(fuse(takes, RATE), clean) for fuse in (aligned_mean, coherence_weighted))
    assert weighted > mean + 6.0


def test_a_take_beside_which_somebody_claps_counts_less() -> None:
    clean = noise(0, 2.0)
    takes = [clean + 0.05 * noise(1 + take, 2.0) for take in range(3)]
    takes[1][:, RATE // 2 : RATE] += 10.0 * noise(9, 0.5)[:, : RATE // 2]
    spectra = np.stack(
        [
            torch.stft(torch.tensor(t), 2048, 512, window=torch.hann_window(2048), return_complex=True)
            for t in at_one_level(takes)
        ]
    )
    middle = round(0.75 * RATE / 512)
    weights = agreement(spectra)[:, :, 10:, middle].mean((1, 2))
    assert weights[1] < 0.5 < weights[0] and weights[2] == pytest.approx(weights[0], abs=0.05)
    assert ratio_db(coherence_weighted(takes, RATE), clean) > ratio_db(aligned_mean(takes, RATE), clean) + 1.0


def test_prediction_error_uses_all_takes() -> None:
    """The echo of one take is what the other one heard earlier: together it is predicted, alone not as well."""
    clean = noise(0, 2.0, channels=1)
    delay = 7 * 512
    echo = np.zeros_like(clean)
    echo[:, delay:] = 0.8 * clean[:, :-delay]
    takes = [clean + echo, clean]
    together = wpe_together(takes, RATE, **SETTINGS)
    assert together.shape == clean.shape and together.dtype == np.float32
    alone = wpe_together(takes[:1], RATE, **SETTINGS)
    np.testing.assert_array_equal(alone, nara_wpe(takes[0], RATE, **SETTINGS))
    before, one, both = (ratio_db(estimate, clean) for estimate in (takes[0], alone, together))
    assert both > before + 6.0 and both > one + 2.0
    # Another take's level does not matter.
    louder = wpe_together([takes[0], 5.0 * takes[1]], RATE, **SETTINGS)
    np.testing.assert_allclose(louder, together, atol=1e-4)
