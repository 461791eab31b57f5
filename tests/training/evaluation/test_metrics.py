"""Metrics against their formulas, worked out by hand or by another library."""

import math

import numpy as np
import pyloudnorm
import pytest
import torch

from training.evaluation.metrics import (
    level_change_lu,
    level_matched,
    log_spectral_distance,
    multi_resolution_stft,
    sdr,
    si_sdr,
)

SAMPLE_RATE = 44_100


def noise(seed: int, seconds: float = 1.0, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(channels, round(seconds * SAMPLE_RATE), generator=generator, dtype=torch.float64)


def orthogonal(waveform: torch.Tensor, seed: int) -> torch.Tensor:
    """Noise with the waveform's energy that is orthogonal to it, channel by channel."""
    other = noise(seed, waveform.shape[-1] / SAMPLE_RATE, len(waveform))
    other = other - (other * waveform).sum(-1, keepdim=True) / waveform.square().sum(-1, keepdim=True) * waveform
    return other * (waveform.square().sum(-1, keepdim=True) / other.square().sum(-1, keepdim=True)).sqrt()


def test_si_sdr_of_a_known_mixture() -> None:
    clean = noise(0, channels=2)
    ratio = torch.tensor([[0.1], [0.5]], dtype=torch.float64)
    mixture = clean + ratio * orthogonal(clean, 1)
    torch.testing.assert_close(si_sdr(mixture, clean), -20 * torch.log10(ratio[:, 0]))  # 20 and 6.02 dB
    torch.testing.assert_close(si_sdr(-3.0 * mixture, clean), si_sdr(mixture, clean))


def test_sdr_counts_the_level() -> None:
    clean = noise(0)
    assert sdr(0.9 * clean, clean).item() == pytest.approx(20.0, abs=1e-9)
    mixture = clean + 0.1 * orthogonal(clean, 1)
    assert sdr(mixture, clean).item() == pytest.approx(20.0, abs=1e-9)
    # Half the level: half the target is missing, and a twentieth of it is noise.
    assert sdr(0.5 * mixture, clean).item() == pytest.approx(-10 * math.log10(0.5**2 + 0.05**2), abs=1e-9)


def test_a_delay_costs_what_the_autocorrelation_says() -> None:
    """SI-SDR of a signal against itself delayed is rho^2 / (1 - rho^2)."""
    clean = noise(0, 2.0)
    clean = (clean + torch.roll(clean, 1, -1))[:, :-5]
    delayed = torch.roll(clean, 1, -1)
    rho = float((clean * delayed).sum() / clean.square().sum())
    assert si_sdr(delayed, clean).item() == pytest.approx(10 * math.log10(rho**2 / (1 - rho**2)), abs=1e-6)


def test_log_spectral_distance_ignores_the_level_and_measures_a_tilt() -> None:
    clean = noise(0, 4.0)
    assert log_spectral_distance(7.0 * clean, clean).item() == pytest.approx(0.0, abs=1e-9)
    # 6 dB more in the upper half of the spectrum: two values, g and g + 6.02 dB, each in half of the bins.
    spectrum = torch.fft.rfft(clean)
    edge = spectrum.shape[-1] // 2
    spectrum[:, edge:] *= 2.0
    boosted = torch.fft.irfft(spectrum, clean.shape[-1])
    gain = (1 + 2) / (1 + 4)  # least squares over as many bins of ratio 1 as of ratio 2, of white noise
    expected = math.sqrt((20 * math.log10(gain)) ** 2 / 2 + (20 * math.log10(2 * gain)) ** 2 / 2)
    assert log_spectral_distance(boosted, clean).item() == pytest.approx(expected, abs=0.05)


def test_log_spectral_distance_has_a_floor() -> None:
    """Energy more than 60 dB below the target's strongest bin does not count; just above it does."""
    time = torch.arange(SAMPLE_RATE, dtype=torch.float64) / SAMPLE_RATE
    clean = torch.sin(2 * math.pi * 1000 * time)[None]
    quiet = torch.sin(2 * math.pi * 5000 * time)[None]
    assert log_spectral_distance(clean + 10 ** (-70 / 20) * quiet, clean).item() < 0.01
    assert log_spectral_distance(clean + 10 ** (-40 / 20) * quiet, clean).item() > 0.5


def test_level_matching_is_least_squares_on_magnitudes() -> None:
    clean, estimate = noise(0), noise(1)
    magnitudes = [
        torch.stft(x, 2048, 512, window=torch.hann_window(2048, dtype=torch.float64), return_complex=True).abs()
        for x in (estimate, clean)
    ]
    gain = torch.linalg.lstsq(magnitudes[0].reshape(-1, 1), magnitudes[1].reshape(-1, 1)).solution.item()
    torch.testing.assert_close(level_matched(estimate, clean), gain * estimate)


def test_multi_resolution_stft_against_its_formula() -> None:
    clean = noise(0, channels=2)
    estimate = clean + 0.3 * noise(1, channels=2)
    normal = 10 ** (-23 / 20) / clean.square().mean(-1, keepdim=True).sqrt()
    pair = [(level_matched(estimate, clean) * normal).numpy(), (clean * normal).numpy()]
    expected = np.zeros(2)
    for fft_size, hop, length in ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)):
        window = np.zeros(fft_size)
        left = (fft_size - length) // 2
        window[left : left + length] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
        magnitudes = []
        for waveform in pair:
            padded = np.pad(waveform, ((0, 0), (fft_size // 2, fft_size // 2)), mode="reflect")
            frames = np.lib.stride_tricks.sliding_window_view(padded, fft_size, axis=-1)[:, ::hop] * window
            magnitudes.append(np.maximum(np.abs(np.fft.rfft(frames)), 1e-4))
        estimated, wanted = magnitudes
        expected += np.sqrt(np.square(estimated - wanted).sum((1, 2)) / np.square(wanted).sum((1, 2)))
        expected += np.abs(np.log(estimated / wanted)).mean((1, 2))
    np.testing.assert_allclose(multi_resolution_stft(estimate, clean), expected / 3, rtol=1e-4)
    np.testing.assert_allclose(multi_resolution_stft(5.0 * clean, clean), 0.0, atol=1e-5)


def test_level_change_is_a_gain_in_loudness_units() -> None:
    recording = noise(0, 3.0, channels=2).float()
    assert level_change_lu(recording * 10 ** (-4.5 / 20), recording, SAMPLE_RATE) == pytest.approx(-4.5, abs=1e-3)
    # A change of the spectrum is weighted: against pyloudnorm itself.
    duller = torch.cumsum(recording, -1)
    duller = duller - duller.mean(-1, keepdim=True)
    meter = pyloudnorm.Meter(SAMPLE_RATE)
    expected = meter.integrated_loudness(duller.numpy().T) - meter.integrated_loudness(recording.numpy().T)
    assert level_change_lu(duller, recording, SAMPLE_RATE) == pytest.approx(expected, abs=1e-6)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        si_sdr(torch.zeros(2, 100), torch.ones(1, 100))
    with pytest.raises(ValueError, match="silent"):
        log_spectral_distance(torch.ones(2, 4096), torch.stack([torch.ones(4096), torch.zeros(4096)]))
