"""Controls and peers: no delay, the right spectrum, and they do what they are known for."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy import signal

from pipeline_aud2studio.audio import resample
from training.baselines import PEERS, equalised, low_passed
from training.metrics import si_sdr

SAMPLE_RATE = 44_100
SPEECH = Path(__file__).parent / "speech.ogg"  # espeak-ng reads two sentences, 16 kHz


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


def spoken(sample_rate: int) -> np.ndarray:
    """Two seconds of speech (1, samples) with a little noise in all its band: what speech enhancers let pass."""
    speech, rate = soundfile.read(SPEECH, dtype="float32")
    waveform = resample(speech[None, : 2 * rate], rate, sample_rate)
    return waveform + noise(6, 3.0, channels=1)[:, : waveform.shape[1]] * np.abs(waveform)


@pytest.mark.parametrize("name", ["spectral_subtraction", "deepfilternet_full", "rnnoise", "afftdn"])
def test_what_is_processed_comes_without_delay(name: str) -> None:
    """At full strength, where nothing of the recording is mixed in: on speech, which all of them let pass."""
    peer = PEERS[name]
    pytest.importorskip(peer.packages[0].replace("-", "_"), reason=f"{name} has no wheel for this Python")
    rate = 48_000 if name == "rnnoise" else SAMPLE_RATE
    probe = spoken(rate)
    result = peer.run(probe, rate, **peer.settings[0])
    assert result.shape == probe.shape and result.dtype == np.float32
    # By the highs: RNNoise begins with a high-pass filter, which advances the lowest frequencies.
    assert lag_samples(np.diff(result, 3), np.diff(probe, 3)) == 0.0
    assert not np.allclose(result, probe, atol=1e-3 * np.abs(probe).max()), "it did something"


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


def hissing_tone(snr_db: float) -> tuple[np.ndarray, np.ndarray]:
    """A tone that sounds every other quarter of a second (1, samples), with and without hiss."""
    time = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    clean = (0.2 * np.sin(2 * np.pi * 1000 * time) * (time % 0.5 < 0.25)).astype(np.float32)[None]
    hiss = noise(7, 3.0, channels=1)
    return clean + hiss * clean.std() / hiss.std() * 10 ** (-snr_db / 20), clean


@pytest.mark.parametrize("name", ["spectral_subtraction", "afftdn"])
def test_classic_denoisers_take_hiss_away(name: str) -> None:
    noisy, clean = hissing_tone(10.0)
    gains = [
        float(si_sdr(torch.from_numpy(PEERS[name].run(noisy, SAMPLE_RATE, **settings)), torch.from_numpy(clean)))
        - float(si_sdr(torch.from_numpy(noisy), torch.from_numpy(clean)))
        for settings in PEERS[name].settings
    ]
    assert max(gains) > 3.0


def test_subtracted_power_follows_the_formula() -> None:
    """A stationary tone is its own noise: of its power `max(1 - oversubtraction / 0.105, floor)` stays."""
    tone = 0.1 * np.sin(2 * np.pi * 1000 / SAMPLE_RATE * np.arange(SAMPLE_RATE)).astype(np.float32)[None]
    result = PEERS["spectral_subtraction"].run(tone, SAMPLE_RATE, oversubtraction=0.05, floor=0.01)
    middle = slice(8192, -8192)
    kept = np.square(result[:, middle]).mean() / np.square(tone[:, middle]).mean()
    assert kept == pytest.approx(1 - 0.05 / -np.log(0.9), rel=0.02)


def test_every_peer_has_three_settings() -> None:
    assert {len(peer.settings) for peer in PEERS.values()} == {3}
    assert PEERS.keys() == {
        "noisereduce",
        "nara_wpe",
        "wpe_noisereduce",
        "spectral_subtraction",
        "deepfilternet",
        "deepfilternet_full",
        "deepfilternet_12db",
        "rnnoise",
        "afftdn",
    }
