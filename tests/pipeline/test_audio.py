"""audio.py against scipy, pyloudnorm and plain formulas."""

import warnings

import numpy as np
import pyloudnorm
import pytest
import scipy.signal

from pipeline_aud2studio import audio
from pipeline_aud2studio.audio import LoudnessWarning

RATE = 44100


def tilt(waveform: np.ndarray, *settings: float) -> np.ndarray:
    """The tilt of a signal in one piece."""
    return np.concatenate([*audio.tilted([waveform], *settings)], axis=1)


def limiter(waveform: np.ndarray, rate: int, **settings: float) -> np.ndarray:
    """The limiter on a signal in one piece."""
    return np.concatenate([*audio.limited([waveform], rate, **settings)], axis=1)


def noise(channels: int, samples: int, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal((channels, samples))).astype(np.float32)


@pytest.mark.parametrize(("source", "target"), [(8000, 44100), (48000, 44100), (44100, 192000), (192000, 44100)])
def test_resample_gives_the_same_sine_in_place(source: int, target: int) -> None:
    frequency = 997.0
    samples = source // 2
    sine = np.sin(2 * np.pi * frequency * np.arange(samples) / source).astype(np.float32)
    expected = np.sin(2 * np.pi * frequency * np.arange(round(samples * target / source)) / target)

    resampled = audio.resample(np.stack([sine, -sine]), source, target)

    assert resampled.shape == (2, len(expected))
    assert resampled.dtype == np.float32
    inner = slice(target // 20, -target // 20)
    assert np.abs(resampled[0] - expected)[inner].max() < 1e-4
    assert np.array_equal(resampled[0], -resampled[1])


def test_resample_agrees_with_scipy_and_returns_to_the_exact_length() -> None:
    waveform = scipy.signal.lfilter(*scipy.signal.butter(6, 0.5), noise(1, 40001)).astype(np.float32)
    there = audio.resample(waveform, 48000, 44100)
    reference = scipy.signal.resample_poly(waveform, 147, 160, axis=1, window=("kaiser", 14.0))
    shared = slice(500, 36000)
    assert np.abs(there - reference[:, : there.shape[1]])[:, shared].max() < 1e-3
    back = audio.resample(there, 44100, 48000, length=40001)
    assert back.shape == (1, 40001)
    assert np.abs(back - waveform)[:, 500:-500].max() < 1e-3
    assert audio.resample(waveform, 48000, 48000, length=40005).shape == (1, 40005)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("rate", "seconds"), [(8000, 0.4), (44100, 0.77), (48000, 30.0), (96000, 1.23456)])
def test_loudness_is_pyloudnorms(channels: int, rate: int, seconds: float) -> None:
    """Loud and quiet passages, so that both gates close on some blocks."""
    waveform = noise(channels, round(seconds * rate))
    times = np.arange(waveform.shape[1]) / rate
    waveform *= np.interp(times, seconds * np.array([0, 0.5, 0.55, 0.7, 0.75]), [1, 1, 0.15, 0.15, 1e-5]).astype(
        np.float32
    )
    expected = pyloudnorm.Meter(rate).integrated_loudness(waveform.T)
    assert audio.loudness_lufs(waveform, rate) == pytest.approx(expected, abs=1e-4)


def test_loudness_of_the_standards_sine() -> None:
    """BS.1770: a full-scale 997 Hz sine in one channel reads -3.01 LUFS; short signals read their level."""
    sine = np.sin(2 * np.pi * 997 * np.arange(48000) / 48000)[None].astype(np.float32)
    assert audio.loudness_lufs(sine, 48000) == pytest.approx(-3.01, abs=0.06)
    assert audio.loudness_lufs(sine[:, :9600], 48000) == pytest.approx(-3.01 - 0.691, abs=0.06)
    assert audio.loudness_lufs(1e-5 * sine, 48000) == pytest.approx(-103.01 - 0.691, abs=0.06)
    assert audio.loudness_lufs(np.zeros((2, 48000), np.float32), 48000) == -np.inf


def test_match_loudness() -> None:
    restored, reference = noise(2, RATE, 0.02), noise(2, RATE, 0.1, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matched = audio.match_loudness(restored, reference, RATE)
    meter = pyloudnorm.Meter(RATE)
    assert meter.integrated_loudness(matched.T) == pytest.approx(meter.integrated_loudness(reference.T), abs=0.05)
    silence = np.zeros_like(restored)
    assert np.array_equal(audio.match_loudness(silence, reference, RATE), silence)
    assert np.array_equal(audio.match_loudness(restored, silence, RATE), restored)


@pytest.mark.parametrize("gain_db", [-60, -35, -12, 0, 12])
def test_matching_loudness_scales_with_the_input(gain_db: float) -> None:
    """Loud and quiet passages, some of which the standard's gate would drop at one level and not at the other."""
    swell = np.interp(np.arange(3 * RATE), [0, RATE, RATE + 10, 3 * RATE], [1, 1, 0.002, 0.05]).astype(np.float32)
    restored, reference = noise(2, 3 * RATE, 0.06) * swell, noise(2, 3 * RATE, 0.1, seed=1) * swell
    gain = np.float32(10 ** (gain_db / 20))
    expected = gain * audio.match_loudness(restored, reference, RATE)
    warnings.simplefilter("error")
    network_gain = float(1 / gain)
    found = audio.match_loudness(restored, gain * reference, RATE, network_gain)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(audio.match_loudness(gain * restored, gain * reference, RATE), expected, rtol=1e-5)


def test_match_loudness_does_not_lift_next_to_nothing() -> None:
    restored = noise(1, RATE, 1e-4)
    with pytest.warns(LoudnessWarning, match="raised by 20 dB only"):
        matched = audio.match_loudness(restored, noise(1, RATE, 0.1), RATE)
    assert np.allclose(matched, 10 * restored)


@pytest.mark.parametrize("rate", [8000, 44100, 96000])
@pytest.mark.parametrize("tilt_db", [6.0, -4.0])
def test_tilt_follows_its_line_with_zero_phase(rate: int, tilt_db: float) -> None:
    impulse = np.zeros((1, rate), np.float32)
    impulse[0, rate // 2] = 1
    tilted = tilt(impulse, rate, tilt_db)
    response = np.fft.rfft(np.roll(tilted[0].astype(np.float64), -(rate // 2)))  # a bin is 1 Hz
    for frequency in [100, 300, 1000, 2500, 3500, *([15000] if rate > 40000 else [])]:
        expected_db = tilt_db / 2 * np.log(frequency / 1000) / np.log(20)
        assert 20 * np.log10(abs(response[frequency])) == pytest.approx(expected_db, abs=0.1)
        assert abs(np.angle(response[frequency])) < 1e-5
    assert tilt(noise(2, 100), rate, 3.0).shape == (2, 100)


def test_limiter_holds_the_ceiling_and_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    waveform = noise(2, 2 * RATE, 0.1)
    waveform[0, RATE] = 3.0
    limited = limiter(waveform, RATE, ceiling_db=-1.0)
    ceiling = 10 ** (-1 / 20)
    assert np.abs(limited).max() <= ceiling
    assert limited[0, RATE] == pytest.approx(ceiling, rel=1e-3)
    assert np.array_equal(limited[:, : RATE - 500], waveform[:, : RATE - 500])
    assert np.array_equal(limited[:, RATE + RATE // 4 :], waveform[:, RATE + RATE // 4 :])
    loud = np.abs(waveform) > 0.01
    gains = np.where(loud, limited / np.where(loud, waveform, 1), np.nan)
    assert np.nanmax(np.abs(gains[0] - gains[1])) < 1e-5  # both channels by the same gain
    assert limiter(0.1 * noise(1, 100), RATE).shape == (1, 100)
    (released,) = audio._released([np.array([[0, 6, 0, 0, 5, 0, 0, 0, 0, 0.0]])], 2.0)
    assert released[0].tolist() == [0, 6, 4, 2, 5, 3, 1, 0, 0, 0]
    monkeypatch.setattr(audio, "_BLOCK_FRAMES", 1000)
    assert np.allclose(limiter(waveform, RATE, ceiling_db=-1.0), limited, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.abs(limiter(noise(1, 5000, 2.0), RATE, ceiling_db=-6.0)).max() <= 10 ** (-6 / 20)


def test_the_limiter_sees_peaks_between_samples() -> None:
    """A quarter of the rate at 45 degrees: samples at -3 dB of the peak, which scipy's resampling shows."""
    sine = np.sin(np.pi / 2 * np.arange(4000) + np.pi / 4)[None].astype(np.float32)
    limited = limiter(sine, RATE, ceiling_db=-1.0)
    assert np.abs(sine).max() < 10 ** (-1 / 20)
    peak = np.abs(scipy.signal.resample(limited[0, 1000:3000], 32000))[4000:-4000].max()
    assert 20 * np.log10(peak) == pytest.approx(-1.0, abs=0.05)


def pieces(waveform: np.ndarray, seed: int) -> list[np.ndarray]:
    """Cut at random places, some of them close together."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(np.r_[rng.integers(waveform.shape[1], size=12), rng.integers(200, size=2)])
    return np.split(waveform, cuts, axis=1)


@pytest.mark.parametrize(("source", "target"), [(44100, 48000), (48000, 44100), (8000, 44100), (96000, 96000)])
def test_resampling_in_blocks_is_resampling_at_once(source: int, target: int) -> None:
    waveform = noise(2, 3 * source // 2)
    expected = audio.resample(waveform, source, target)
    for seed in range(3):
        found = np.concatenate([*audio.resampled(pieces(waveform, seed), source, target)], axis=1)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=2e-6)
    for length in (1000, expected.shape[1] - 7, expected.shape[1] + 7):
        found = np.concatenate([*audio.resampled(pieces(waveform, 0), source, target, length)], axis=1)
        np.testing.assert_allclose(found, audio.resample(waveform, source, target, length), atol=2e-6)
    assert [*audio.resampled([], source, target)] == []


@pytest.mark.parametrize(("rate", "seconds"), [(44100, 7.3), (11025, 2.05), (48000, 0.41), (48000, 0.3)])
def test_the_meter_does_not_care_about_blocks(rate: int, seconds: float) -> None:
    waveform = noise(2, round(seconds * rate)) * np.linspace(0.01, 1, round(seconds * rate), dtype=np.float32)
    meter = audio.LoudnessMeter(2, rate)
    for piece in pieces(waveform, 1):
        meter.push(piece)
    if seconds >= 0.4:
        assert meter.lufs == pytest.approx(pyloudnorm.Meter(rate).integrated_loudness(waveform.T), abs=0.05)
    assert meter.lufs == pytest.approx(audio.loudness_lufs(waveform, rate), abs=1e-9)
    assert meter.rms_db == pytest.approx(audio.rms_db(waveform), abs=1e-5)
    assert meter.peak == np.abs(waveform).max()


def test_finishing_in_blocks_is_finishing_at_once() -> None:
    waveform = noise(2, 2 * RATE)
    waveform[:, RATE : RATE + 300] *= 8
    for seed in range(3):
        tilted = np.concatenate([*audio.tilted(pieces(waveform, seed), RATE, 6.0)], axis=1)
        np.testing.assert_allclose(tilted, tilt(waveform, RATE, 6.0), atol=1e-5)
        limited = np.concatenate([*audio.limited(pieces(waveform, seed), RATE)], axis=1)
        np.testing.assert_allclose(limited, limiter(waveform, RATE), atol=1e-6)
    for samples in (1, 100, 5000):
        short = noise(1, samples)
        assert tilt(short, RATE, 3.0).shape == limiter(3 * short, RATE).shape == (1, samples)
