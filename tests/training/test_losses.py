import numpy as np
import pytest
import torch

from training.losses import WINDOWS, band_energy_loss, compressed_stft_loss, si_sdr_loss


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(4, 20000, generator=generator)
    return target, torch.randn(4, 20000, generator=generator)


def mixture(snr_db: float) -> tuple[torch.Tensor, torch.Tensor]:
    """An estimate whose SI-SDR is `snr_db`: noise orthogonal to the target, at another level."""
    target, noise = pair()
    noise = noise - (noise * target).sum(-1, keepdim=True) / target.square().sum(-1, keepdim=True) * target
    noise = noise * target.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    return 3 * (target + noise * 10 ** (-snr_db / 20)), target


@pytest.mark.parametrize("snr_db", [6.0, 16.0, 24.0])
def test_si_sdr_of_a_good_estimate_is_si_sdr(snr_db: float) -> None:
    estimate, target = mixture(snr_db)
    assert float(si_sdr_loss(estimate, target, ceiling_db=80)) == pytest.approx(-snr_db, abs=0.6)


def test_si_sdr_against_its_formula_at_either_polarity() -> None:
    estimate, target = mixture(-7.0)
    for sign in (1, -1):
        rho = np.array([np.corrcoef(e, t)[0, 1] for e, t in zip(sign * estimate, target, strict=True)])
        signal = ((rho + np.hypot(rho, 0.3)) / (1 + np.hypot(1, 0.3))) ** 2
        expected = -10 * np.mean(np.log10(signal / (1 - signal)))
        assert float(si_sdr_loss(sign * estimate, target, 80.0, 0.3)) == pytest.approx(expected, abs=0.1)


def test_the_gradient_always_asks_for_the_right_polarity() -> None:
    """A little more of the target helps at any correlation, and at zero by the stated slope."""
    target, noise = pair()
    target, noise = target[:1].double(), noise[:1].double()
    noise = noise - (noise * target).sum() / target.square().sum() * target
    rho = torch.linspace(-0.95, 0.95, 39, dtype=torch.float64)[:, None].requires_grad_()
    estimates = rho * target / target.norm() + (1 - rho.square()).sqrt() * noise / noise.norm()
    (39 * si_sdr_loss(estimates, target.expand(39, -1))).backward()
    assert (rho.grad < 0).all()
    assert float(rho.grad[19]) == pytest.approx(-20 / np.log(10) / 0.4, rel=0.1)


def test_si_sdr_of_a_perfect_estimate_is_the_ceiling():
    target, _ = pair()
    assert float(si_sdr_loss(0.2 * target, target, ceiling_db=25)) == pytest.approx(-25, abs=0.01)


def test_compressed_loss_against_its_formula():
    rng = np.random.default_rng(1)
    estimate, target = rng.standard_normal((2, 2, 12000))
    expected = []
    for window in WINDOWS:
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
        spectra = []
        for waveform in (estimate, target):
            padded = np.pad(waveform, ((0, 0), (window // 2, window // 2)), mode="reflect")
            frames = np.lib.stride_tricks.sliding_window_view(padded, window, axis=-1)[:, :: window // 2]
            spectra.append(np.fft.rfft(frames * hann) * 2 / hann.sum())
        x, y = spectra
        # the floor of 1e-10 in the power is part of the definition
        mx, my = (np.sqrt(np.abs(each) ** 2 + 1e-10) for each in spectra)
        complex_distance = np.mean(np.abs(x * mx**-0.7 - y * my**-0.7) ** 2)
        expected.append(0.3 * complex_distance + 0.7 * np.mean((mx**0.3 - my**0.3) ** 2))
    found = compressed_stft_loss(torch.from_numpy(estimate).float(), torch.from_numpy(target).float())
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-4)


def test_band_energies_count_in_nats_down_to_the_floor():
    target = torch.full((1, 2, 3), 1.0)
    target[0, 1] = 1e-9  # 10 log10 of it is below the floor of -70 dB
    estimate = target.clone()
    estimate[0, 0] *= np.e
    assert float(band_energy_loss(estimate, target)) == pytest.approx(0.5, abs=1e-4)
    estimate[0, 0] /= np.e
    estimate[0, 1] = 0.0
    assert float(band_energy_loss(estimate, target)) < 0.02


def test_gradients_are_finite_at_silence():
    waveform = torch.zeros(1, 9000, requires_grad=True)
    compressed_stft_loss(waveform, torch.zeros(1, 9000)).backward()
    si_sdr_loss(waveform, torch.zeros(1, 9000)).backward()
    energy = torch.zeros(1, 4, 5, requires_grad=True)
    band_energy_loss(energy, torch.zeros(1, 4, 5)).backward()
    assert torch.isfinite(waveform.grad).all() and torch.isfinite(energy.grad).all()
