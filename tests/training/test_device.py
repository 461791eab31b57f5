"""Every stage of a recording device keeps its place in time and does what its parameter says."""

from dataclasses import asdict, fields

import numpy as np
import pytest
from scipy import signal

from training import equaliser
from training.codecs import CODECS, transcode
from training.device import Device, automatic_gain, clip, draw, equalisation, quantise, record

SAMPLE_RATE = 44_100


def noise(seconds: float = 1.0, channels: int = 2, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal((channels, round(seconds * SAMPLE_RATE)))).astype("f4")


def lag(recorded: np.ndarray, played: np.ndarray) -> float:
    """Delay in samples by the peak of the cross-correlation, refined by a parabola."""
    correlation = signal.correlate(recorded.astype(float), played.astype(float), method="fft")
    peak = int(np.argmax(correlation))
    left, middle, right = correlation[peak - 1 : peak + 2]
    return peak - (len(played) - 1) + 0.5 * (left - right) / (left - 2 * middle + right)


STAGES = {
    "rolloff": Device(rolloff_hz=4000.0, rolloff_db=-12.0),
    "gentle low cut": Device(low_cut_hz=40.0, low_cut_order=1),
    "steep low cut": Device(low_cut_hz=300.0, low_cut_order=4),
    "presence": Device(presence_hz=5000.0, presence_db=8.0, presence_octaves=0.4),
    "dark": Device(tilt_db_per_octave=-1.2),
    "bright": Device(tilt_db_per_octave=1.2),
    "band-stop": Device(stop_hz=1500.0, stop_db=-18.0, stop_octaves=0.1),
    "8 kHz": Device(band_limit_hz=8000.0),
    "18 kHz": Device(band_limit_hz=18_000.0),
    "all linear": Device(rolloff_hz=3000.0, rolloff_db=-9.0, low_cut_hz=150.0, presence_db=6.0, band_limit_hz=9000.0),
    "AGC": Device(agc_ratio=4.0, agc_attack_s=0.005, agc_release_s=0.2),
    "saturation": Device(drive_db=9.0),
    "clipping": Device(clip_db=6.0),
    "resampling": Device(resample_hz=22_050),
    "8 bits": Device(bits=8),
    **{f"{codec} {kbps}": Device(codec=codec, bitrate_kbps=kbps) for codec in CODECS for kbps in (48, 128)},
}


@pytest.mark.parametrize("device", STAGES.values(), ids=STAGES.keys())
def test_stage_keeps_its_place_in_time(device: Device) -> None:
    played = noise()
    recorded = record(played, SAMPLE_RATE, device)
    assert recorded.shape == played.shape
    assert recorded.dtype == np.float32
    assert not np.array_equal(recorded, played)
    for channel in range(2):
        assert abs(lag(recorded[channel], played[channel])) < 0.5


@pytest.mark.parametrize("sample_rate", [44_100, 48_000])
@pytest.mark.parametrize("codec", CODECS)
def test_codec_delay_is_undone_for_music_too(codec: str, sample_rate: int) -> None:
    """A tonal sound at the highest rate comes back close to itself: 1 sample late would cap this at 23 dB."""
    times = np.arange(sample_rate) / sample_rate
    played = np.stack([np.sin(2 * np.pi * 440 * times) * np.exp(-3 * (times % 0.25)), np.sin(2 * np.pi * 554 * times)])
    played = (0.3 * played).astype("f4")
    decoded = transcode(played, sample_rate, codec, 128)
    inner = slice(4096, -4096)
    error = np.mean(np.square(decoded - played)[:, inner])
    assert 10 * np.log10(np.mean(np.square(played[:, inner])) / error) > 25


def test_opus_stays_with_one_codec_inside_whatever_the_sound() -> None:
    """Left to itself it takes its speech codec for a voice-like sound, which then arrives 3.6 samples later."""
    times = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    voice = sum(np.sin(2 * np.pi * 150 * k * times) / k for k in range(1, 8)) * (np.sin(2 * np.pi * 3 * times) > 0)
    played = (0.1 * voice + 0.01 * np.random.default_rng(0).standard_normal((2, len(times)))).astype("f4")
    for bitrate_kbps in (24, 48):
        decoded = transcode(played, SAMPLE_RATE, "opus", bitrate_kbps)
        assert abs(lag(decoded[0], played[0])) < 0.5


def test_mono_codec() -> None:
    played = noise(channels=1)
    assert abs(lag(transcode(played, SAMPLE_RATE, "aac", 64)[0], played[0])) < 0.5


def test_unknown_codec() -> None:
    with pytest.raises(ValueError, match="wma"):
        transcode(noise(0.1), SAMPLE_RATE, "wma", 64)


def test_neutral_device_changes_nothing() -> None:
    played = noise(0.2)
    np.testing.assert_array_equal(record(played, SAMPLE_RATE, Device()), played)


def gain_db(response: np.ndarray, frequency: float) -> float:
    _, gain = signal.freqz(response, worN=[frequency], fs=SAMPLE_RATE)
    return float(20 * np.log10(np.abs(gain[0])))


def test_low_cut_is_a_butterworth() -> None:
    response = equalisation(Device(low_cut_hz=100.0, low_cut_order=2), SAMPLE_RATE)
    assert response is not None
    sos = signal.butter(2, 100.0, "highpass", output="sos", fs=SAMPLE_RATE)
    for frequency in (40.0, 70.0, 100.0, 200.0, 1000.0):
        _, expected = signal.sosfreqz(sos, worN=[frequency], fs=SAMPLE_RATE)
        assert gain_db(response, frequency) == pytest.approx(20 * np.log10(abs(expected[0])), abs=0.1)


def test_gains_are_the_drawn_ones() -> None:
    device = Device(presence_hz=3000.0, presence_db=6.0, presence_octaves=0.5, band_limit_hz=10_000.0)
    response = equalisation(device, SAMPLE_RATE)
    assert response is not None
    assert gain_db(response, 3000.0) == pytest.approx(6.0, abs=0.1)
    assert gain_db(response, 3000.0 * 2**0.5) == pytest.approx(6.0 * np.exp(-0.5), abs=0.1)
    assert gain_db(response, 300.0) == pytest.approx(0.0, abs=0.1)
    assert gain_db(response, 11_500.0) < -60
    tilted = equalisation(Device(tilt_db_per_octave=-1.0), SAMPLE_RATE)
    assert tilted is not None
    assert gain_db(tilted, 4000.0) - gain_db(tilted, 500.0) == pytest.approx(-3.0, abs=0.1)


def test_equaliser_is_minimum_phase_apart_from_its_delay() -> None:
    """Against scipy's minimum-phase method on the same magnitude."""
    frequencies = equaliser.frequencies(SAMPLE_RATE)
    gain = equaliser.low_cut(frequencies, 200.0, 2) + equaliser.high_shelf(frequencies, 5000.0, -6.0)
    gain = np.maximum(gain, -60.0)
    response = equaliser.design(gain, SAMPLE_RATE)
    linear = np.roll(np.fft.irfft(10 ** (gain / 20)), equaliser.FFT_SIZE // 2)
    expected = signal.minimum_phase(linear, method="homomorphic", half=False, n_fft=4 * equaliser.FFT_SIZE)
    _, ours = signal.freqz(response, worN=256, fs=SAMPLE_RATE)
    _, theirs = signal.freqz(expected, worN=256, fs=SAMPLE_RATE)
    phase = np.unwrap(np.angle(ours / theirs))[8:-8]
    line = np.polyval(np.polyfit(np.arange(len(phase)), phase, 1), np.arange(len(phase)))
    assert np.abs(phase - line).max() < 0.02


@pytest.mark.parametrize("delay", [0.25, -3.5, 40.0])
def test_fractional_shift(delay: float) -> None:
    times = np.arange(8192) / SAMPLE_RATE
    envelope = signal.windows.gaussian(8192, 800)
    played = np.sin(2 * np.pi * 3000 * times) * envelope
    moved = times - delay / SAMPLE_RATE
    expected = np.sin(2 * np.pi * 3000 * moved) * np.interp(moved, times, envelope)
    shifted = equaliser.shift(played[None], delay / SAMPLE_RATE, SAMPLE_RATE)[0]
    np.testing.assert_allclose(shifted, expected, atol=1e-4)


def test_automatic_gain_narrows_the_dynamics_and_keeps_the_level() -> None:
    """A ratio of 4 turns a step of 12 dB into 3."""
    played = noise(4.0)
    played[:, : played.shape[-1] // 2] *= 10 ** (-12 / 20)
    controlled = automatic_gain(played, SAMPLE_RATE, ratio=4.0, attack_s=0.01, release_s=0.01)
    levels = [
        10 * np.log10(np.mean(np.square(controlled[:, part])))
        for part in (slice(40_000, 80_000), slice(100_000, 170_000))
    ]
    assert levels[1] - levels[0] == pytest.approx(3.0, abs=0.3)
    assert np.mean(np.square(controlled)) == pytest.approx(np.mean(np.square(played)), rel=1e-4)


def test_clipping_and_quantisation() -> None:
    played = noise(0.1)
    peak = np.abs(played).max()
    assert np.abs(clip(played, 6.0)).max() == pytest.approx(peak * 10 ** (-6 / 20), rel=1e-5)
    coarse = quantise(played, 8)
    assert np.abs(coarse - played).max() <= peak / 128 / 2 * 1.001
    assert len(np.unique(coarse)) <= 257


def test_saturation_leaves_quiet_sounds_alone() -> None:
    played = np.concatenate([1e-3 * noise(0.1), noise(0.1, seed=1)], axis=-1)
    recorded = record(played, SAMPLE_RATE, Device(drive_db=6.0))
    quiet = played.shape[-1] // 2
    np.testing.assert_allclose(recorded[:, :quiet], played[:, :quiet], rtol=1e-3)
    assert np.abs(recorded).max() < 0.6 * np.abs(played).max()


def test_silence_stays_silent() -> None:
    loud = Device(agc_ratio=3.0, drive_db=3.0, clip_db=3.0, bits=8, low_cut_hz=80.0, codec="aac", bitrate_kbps=64)
    recorded = record(np.zeros((2, 4410), dtype=np.float32), SAMPLE_RATE, loud)
    assert np.abs(recorded).max() < 1e-4


def test_draws_cover_every_stage_and_fit_the_device() -> None:
    rng = np.random.default_rng(1)
    drawn = [Device(**draw(rng)) for _ in range(400)]
    neutral = asdict(Device())
    for field in fields(Device):
        values = {getattr(device, field.name) for device in drawn}
        assert all(type(value) is type(neutral[field.name]) for value in values), field.name
        if field.name != "level_db":
            assert len(values) > 1, field.name
    limits = [device.band_limit_hz for device in drawn if device.band_limit_hz]
    assert 8000 <= min(limits) < 9000
    assert 17_000 < max(limits) <= 18_000
    assert np.mean([bool(device.codec) for device in drawn]) == pytest.approx(0.6, abs=0.08)
