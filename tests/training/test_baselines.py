"""Controls and peers: no delay, the right spectrum, and they do what they are known for."""

import numpy as np
import pytest
import torch
from scipy import signal

from training.baselines import PEERS, equalised, low_passed
from training.metrics import si_sdr

SAMPLE_RATE = 44_100


def noise(seed: int, seconds: float, channels: int = 2) -> np.ndarray:
    samples = round(seconds * SAMPLE_RATE)
    return 0.1 * np.random.default_rng(seed).standard_normal((channels, samples)).astype(np.float32)


def lag_samples(result: np.ndarray, reference: np.ndarray) -> float:
    """By how much the result is late: the maximum of the cross-correlation, to a 32nd of a sample."""
    size = 2 * reference.shape[-1]
    cross = (np.fft.rfft(result, size) * np.conj(np.fft.rfft(reference, size))).sum(axis=0)
    correlation = np.fft.irfft(cross, 32 * size)
    peak = int(np.argmax(correlation))
    return (peak if peak < 16 * size else peak - 32 * size) / 32


def dulled(waveform: np.ndarray) -> np.ndarray:
    """Without the treble, by a first-order slope above 3 kHz and zero phase."""
    frequencies = np.fft.rfftfreq(waveform.shape[-1], 1 / SAMPLE_RATE)
    return np.fft.irfft(np.fft.rfft(waveform) / np.sqrt(1 + (frequencies / 3000) ** 2)).astype(np.float32)


def test_lag_of_a_known_shift() -> None:
    probe = noise(0, 0.3)
    assert lag_samples(np.pad(probe, ((0, 0), (5, 0)))[:, :-5], probe) == 5.0
    assert lag_samples(np.pad(probe[:, 3:], ((0, 0), (0, 3))), probe) == -3.0


@pytest.mark.parametrize("name", sorted(PEERS))
def test_peers_come_without_delay(name: str) -> None:
    peer = PEERS[name]
    pytest.importorskip(peer.packages[0].replace("-", "_"), reason=f"{name} has no wheel for this Python")
    probe = noise(1, 1.0, channels=1)
    result = peer.run(probe, SAMPLE_RATE, **peer.settings[-1])
    assert result.shape == probe.shape and result.dtype == np.float32
    assert lag_samples(result, probe) == 0.0


def test_controls_come_without_delay() -> None:
    probe = noise(2, 1.0)
    # A recording that is duller than the original, by a filter without delay.
    dull = dulled(probe)
    for result in (low_passed(probe, SAMPLE_RATE), equalised(dull, probe, SAMPLE_RATE)):
        assert result.shape == probe.shape and result.dtype == np.float32
        assert lag_samples(result, probe) == 0.0


def test_low_pass_keeps_what_is_below_4_khz_only() -> None:
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    low, high = (np.sin(2 * np.pi * hertz * time).astype(np.float32) for hertz in (1000, 8000))
    result = low_passed((low + high)[None], SAMPLE_RATE)
    np.testing.assert_allclose(result[0, 2000:-2000], low[2000:-2000], atol=1e-3)


def test_equaliser_control_undoes_a_tilt_and_nothing_else() -> None:
    clean = noise(3, 4.0)
    dull = dulled(clean)
    flattened = equalised(0.3 * dull, clean, SAMPLE_RATE)
    ratios = []
    for waveform in (flattened, clean):
        frequencies, power = signal.welch(waveform, SAMPLE_RATE, nperseg=4096)
        ratios.append(10 * np.log10(power[:, (frequencies > 100) & (frequencies < 20_000)]))
    assert np.abs(ratios[0] - ratios[1]).max() < 0.5
    assert si_sdr(torch.from_numpy(flattened), torch.from_numpy(clean)).min() > 20.0
    # Noise of the clean spectrum is left alone: equalisation is no restoration.
    other = noise(4, 4.0)
    assert si_sdr(torch.from_numpy(equalised(other, clean, SAMPLE_RATE)), torch.from_numpy(other)).min() > 20.0


def test_wpe_removes_late_reverberation() -> None:
    """Bursts of noise in a room of exponential decay, RT60 1 s: the tail between the bursts gets weaker."""
    rng = np.random.default_rng(5)
    samples = 4 * SAMPLE_RATE
    bursts = np.zeros((1, samples), np.float32)
    for start in range(0, samples, SAMPLE_RATE // 2):
        bursts[0, start : start + SAMPLE_RATE // 10] = 0.1 * rng.standard_normal(SAMPLE_RATE // 10)
    decay = np.exp(-3 * np.log(10) / SAMPLE_RATE * np.arange(SAMPLE_RATE))
    responses = 0.02 * decay * rng.standard_normal((2, SAMPLE_RATE))
    responses[:, 0] = 1.0
    wet = signal.oaconvolve(bursts, responses, axes=-1)[:, :samples].astype(np.float32)
    dry = PEERS["nara_wpe"].run(wet, SAMPLE_RATE, **PEERS["nara_wpe"].settings[-1])
    target = np.broadcast_to(bursts, wet.shape).copy()
    gain = si_sdr(torch.from_numpy(dry), torch.from_numpy(target)) - si_sdr(
        torch.from_numpy(wet), torch.from_numpy(target)
    )
    assert gain.mean() > 1.0
    silent = np.arange(samples) % (SAMPLE_RATE // 2) > 0.3 * SAMPLE_RATE
    assert np.square(dry[:, silent]).sum() < 0.5 * np.square(wet[:, silent]).sum()


def test_every_peer_has_three_settings() -> None:
    assert {name: len(peer.settings) for name, peer in PEERS.items()} == {
        "noisereduce": 3,
        "nara_wpe": 3,
        "deepfilternet": 3,
    }
