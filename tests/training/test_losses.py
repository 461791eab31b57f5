import numpy as np
import pytest
import torch

from training.losses import compressed_stft_loss, si_sdr_loss


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(4, 20000, generator=generator)
    return target, torch.randn(4, 20000, generator=generator)


def test_si_sdr_of_a_known_mixture():
    target, noise = pair()
    noise = noise - (noise * target).sum(-1, keepdim=True) / target.square().sum(-1, keepdim=True) * target
    estimate = 3 * (target + noise * target.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True) * 0.1)
    expected = -10 * np.log10((1 + 0.1 * 0.1**2) / (0.1**2 + 1e-3))  # 20 dB, bounded softly at 30 and -10 dB
    assert float(si_sdr_loss(estimate, target)) == pytest.approx(expected, abs=1e-3)


def test_si_sdr_without_correlation_is_the_floor():
    target, noise = pair()
    noise = noise - (noise * target).sum(-1, keepdim=True) / target.square().sum(-1, keepdim=True) * target
    assert float(si_sdr_loss(noise, target, floor_db=-12)) == pytest.approx(12, abs=1e-3)


def test_si_sdr_of_a_perfect_estimate_is_the_ceiling():
    target, _ = pair()
    assert float(si_sdr_loss(0.2 * target, target, ceiling_db=25)) == pytest.approx(-25, abs=1e-3)


def test_compressed_loss_against_its_formula():
    generator = torch.Generator().manual_seed(1)
    estimate, target = torch.randn(2, 3, 8, 9, dtype=torch.complex128, generator=generator)
    x, y = estimate.numpy(), target.numpy()
    # the floor of 1e-5 in the power is part of the definition
    mx, my = np.sqrt(np.abs(x) ** 2 + 1e-5), np.sqrt(np.abs(y) ** 2 + 1e-5)
    complex_distance = np.mean(np.abs(x * mx**-0.7 - y * my**-0.7) ** 2)
    expected = 0.3 * complex_distance + 0.7 * np.mean((mx**0.3 - my**0.3) ** 2)
    assert float(compressed_stft_loss(estimate, target)) == pytest.approx(expected, rel=1e-9)


def test_gradients_are_finite_at_silence():
    silence = torch.zeros(1, 8, 9, dtype=torch.complex64, requires_grad=True)
    target = torch.zeros(1, 8, 9, dtype=torch.complex64)
    compressed_stft_loss(silence, target).backward()
    waveform = torch.zeros(1, 100, requires_grad=True)
    si_sdr_loss(waveform, torch.zeros(1, 100)).backward()
    assert torch.isfinite(torch.view_as_real(silence.grad)).all() and torch.isfinite(waveform.grad).all()
