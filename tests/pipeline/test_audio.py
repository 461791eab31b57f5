"""audio.py against libsndfile's own reading, scipy, pyloudnorm and plain formulas."""

import os
import warnings
from pathlib import Path

import av
import numpy as np
import pyloudnorm
import pytest
import scipy.signal
import soundfile

from pipeline_aud2studio import audio
from pipeline_aud2studio.audio import AudioError, LoudnessWarning

RATE = 44100


def noise(channels: int, samples: int, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal((channels, samples))).astype(np.float32)


def sweep(samples: int, rate: int = RATE) -> np.ndarray:
    """A chirp with a little noise (samples): its place in time can be told to the sample."""
    seconds = np.arange(samples) / rate
    return (0.3 * scipy.signal.chirp(seconds, 200, seconds[-1], 3000) + noise(1, samples, 0.01)[0]).astype(np.float32)


def encode_with_av(path: Path, waveform: np.ndarray, codec: str, rate: int, tags: dict[str, str]) -> None:
    layout = "mono" if len(waveform) == 1 else "stereo"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        container.metadata.update(tags)
        for first in range(0, waveform.shape[1], 1024):
            block = np.ascontiguousarray(waveform[:, first : first + 1024])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, first
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("name", "subtype"),
    [("a.wav", "PCM_16"), ("a.wav", "PCM_24"), ("a.wav", "FLOAT"), ("a.flac", "PCM_16"), ("a.flac", "PCM_24")],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_written_file_reads_back(tmp_path: Path, name: str, subtype: str, channels: int) -> None:
    waveform = np.clip(noise(channels, 3001, 0.3), -0.99, 0.99)
    tags = {"title": "Größer", "artist": "Someone", "date": "1999", "genre": "Rock"}
    audio.write(tmp_path / name, waveform, 48000, subtype, tags)

    again = audio.read(tmp_path / name)

    half_step = {"PCM_16": 2**-16, "PCM_24": 2**-24, "FLOAT": 0.0}[subtype]
    assert again.waveform.dtype == np.float32
    assert np.abs(again.waveform - waveform).max() <= half_step * 1.001
    assert (again.sample_rate, again.subtype, again.tags) == (48000, subtype, tags)
    assert os.listdir(tmp_path) == [name]  # no temporary file is left behind


@pytest.mark.parametrize("rate", [8000, 22050, 192000])
def test_every_rate_from_8_to_192_khz(tmp_path: Path, rate: int) -> None:
    audio.write(tmp_path / "a.flac", noise(2, 1234), rate)
    again = audio.read(tmp_path / "a.flac")
    assert (again.sample_rate, again.waveform.shape) == (rate, (2, 1234))


def test_full_scale_is_clipped_and_does_not_wrap(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", np.array([[1.5, 1.0, -1.0, -1.5]], np.float32), RATE, "PCM_16")
    integers, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert integers.tolist() == [32767, 32767, -32768, -32768]


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3"])
def test_lossy_formats_keep_length_and_place(tmp_path: Path, name: str) -> None:
    waveform = sweep(30001)
    soundfile.write(tmp_path / name, waveform, RATE)

    decoded = audio.read(tmp_path / name).waveform

    assert decoded.shape == (1, 30001)
    lag = np.argmax(scipy.signal.correlate(decoded[0], waveform, "full")) - 30000
    assert lag == 0
    assert np.corrcoef(decoded[0], waveform)[0, 1] > 0.99


@pytest.mark.parametrize(
    ("name", "codec", "tolerance"), [("a.m4a", "aac", 45), ("a.mov", "aac", 45), ("a.mp4", "alac", 0)]
)
@pytest.mark.parametrize("channels", [1, 2])
def test_what_phones_write(tmp_path: Path, name: str, codec: str, tolerance: int, channels: int) -> None:
    """The MP4 edit list is in milliseconds, so that lossy files end within 45 samples of the original."""
    waveform = np.stack([sweep(30001), -0.5 * sweep(30001)])[:channels]
    encode_with_av(tmp_path / name, waveform, codec, RATE, {"title": "Größer", "artist": "Someone", "track": "7"})

    decoded = audio.read(tmp_path / name)

    assert decoded.sample_rate == RATE
    assert abs(decoded.waveform.shape[1] - 30001) <= tolerance
    length = min(decoded.waveform.shape[1], 30001)
    lag = np.argmax(scipy.signal.correlate(decoded.waveform[0], waveform[0], "full")) - 30000
    assert lag == 0
    for channel in range(channels):
        assert np.corrcoef(decoded.waveform[channel, :length], waveform[channel, :length])[0, 1] > 0.99
    expected = {"title": "Größer", "artist": "Someone"} | ({} if name == "a.mov" else {"tracknumber": "7"})
    assert expected.items() <= decoded.tags.items()


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.m4a"])
def test_an_excerpt_is_a_part_of_the_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.m4a":
        encode_with_av(path, sweep(60000)[None], "aac", RATE, {})
    else:
        soundfile.write(path, sweep(60000), RATE)
    whole = audio.read(path).waveform
    first, last = round(0.3 * RATE), round(0.8 * RATE)
    assert np.array_equal(audio.read(path, 0.3, 0.8).waveform, whole[:, first:last])
    assert np.array_equal(audio.read(path, start_s=0.3).waveform, whole[:, first:])
    assert np.array_equal(audio.read(path, end_s=100).waveform, whole)
    with pytest.raises(AudioError, match="ends before the start"):
        audio.read(path, start_s=5)


def test_unreadable_input_says_why(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("this is not audio")
    (tmp_path / "empty.mp3").touch()
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 1)), RATE)
    soundfile.write(tmp_path / "six.wav", np.zeros((10, 6)), RATE)
    soundfile.write(tmp_path / "slow.wav", np.zeros(10), 4000)
    broken = np.zeros((1, RATE), np.float32)
    broken[0, 11025] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken.T, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "inf.wav", np.where(np.isnan(broken), -np.inf, 0).T, RATE, subtype="FLOAT")
    for name, message in {
        "missing.wav": "does not exist",
        ".": "is a folder",
        "text.wav": "is not audio",
        "empty.mp3": "is empty",
        "none.wav": "holds no audio",
        "six.wav": "has 6 channels: mix it down",
        "slow.wav": "sampling rate of 4000 Hz",
        "nan.wav": r"NaN or infinite samples \(the first at 0.250 s\)",
        "inf.wav": "NaN or infinite",
    }.items():
        with pytest.raises(AudioError, match=message):
            audio.read(tmp_path / name)
    for start_s, end_s in [(-1.0, None), (2.0, 1.0), (float("nan"), None), (0.0, float("nan"))]:
        with pytest.raises(AudioError, match="excerpt has to start"):
            audio.read(tmp_path / "none.wav", start_s, end_s)


def test_a_truncated_file_gives_what_is_there(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "whole.wav", noise(1, 10000).T, RATE, subtype="PCM_16")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:10000])
    assert np.array_equal(
        audio.read(tmp_path / "cut.wav").waveform, audio.read(tmp_path / "whole.wav").waveform[:, :4978]
    )


def test_output_is_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "there.wav").touch()
    for name, message in {
        "a.mp3": "has to end in .wav or .flac",
        "none/a.wav": "does not exist: create it",
        "there.wav": "exists already: pass --overwrite",
        "there.wav/a.wav": "does not exist",
    }.items():
        with pytest.raises(AudioError, match=message):
            audio.check_output(tmp_path / name)
    audio.check_output(tmp_path / "there.wav", overwrite=True)
    audio.check_output(tmp_path / "new.FLAC")
    with pytest.raises(AudioError, match="MB left"):
        audio.check_output(tmp_path / "new.wav", num_bytes=2**60)
    assert os.listdir(tmp_path) == ["there.wav"]
    with pytest.raises(AudioError, match="cannot hold FLOAT"):
        audio.write(tmp_path / "a.flac", noise(1, 10), RATE, "FLOAT")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(AudioError, match="Permission denied"):
        audio.check_output(tmp_path / "a.wav")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audio.write(tmp_path / "a.wav", noise(1, 100), RATE)
    before = (tmp_path / "a.wav").read_bytes()

    def full_disk(*_: object) -> None:
        raise soundfile.LibsndfileError(2, "No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "write", full_disk)
    with pytest.raises(OSError, match="could not be written"):
        audio.write(tmp_path / "a.wav", noise(1, 100), RATE)
    assert (tmp_path / "a.wav").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.wav"]


def test_output_subtype_keeps_what_the_input_holds() -> None:
    wanted = {
        (".wav", "PCM_16"): "PCM_16",
        (".wav", "DOUBLE"): "FLOAT",
        (".flac", "FLOAT"): "PCM_24",
        (".FLAC", "PCM_16"): "PCM_16",
        (".wav", "PCM_U8"): "PCM_16",
        (".wav", "MPEG_LAYER_III"): "PCM_24",
        (".wav", None): "PCM_24",
    }
    assert {key: audio.output_subtype(*key) for key in wanted} == wanted


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


def test_match_loudness_guards_the_peak() -> None:
    restored = noise(1, RATE, 0.01)
    restored[0, 1000] = 0.9
    with pytest.warns(LoudnessWarning, match=r"is \d+\.\d dB quieter than it should be"):
        matched = audio.match_loudness(restored, noise(1, RATE, 0.1), RATE)
    assert 20 * np.log10(np.abs(matched).max()) == pytest.approx(-0.1, abs=1e-3)


def test_match_loudness_does_not_lift_next_to_nothing() -> None:
    restored = noise(1, RATE, 1e-4)
    with pytest.warns(LoudnessWarning, match="raised by 20 dB only"):
        matched = audio.match_loudness(restored, noise(1, RATE, 0.1), RATE)
    assert np.allclose(matched, 10 * restored)


def test_normalise_rms() -> None:
    scaled, gain = audio.normalise_rms(noise(2, 10000, 0.3))
    assert 20 * np.log10(np.sqrt(np.mean(scaled.astype(np.float64) ** 2))) == pytest.approx(-23, abs=1e-4)
    assert np.allclose(scaled, gain * noise(2, 10000, 0.3))
    assert audio.normalise_rms(np.zeros((1, 10), np.float32))[1] == 1.0


@pytest.mark.parametrize("rate", [8000, 44100, 96000])
@pytest.mark.parametrize("tilt_db", [6.0, -4.0])
def test_tilt_follows_its_line_with_zero_phase(rate: int, tilt_db: float) -> None:
    impulse = np.zeros((1, rate), np.float32)
    impulse[0, rate // 2] = 1
    tilted = audio.tilt(impulse, rate, tilt_db)
    response = np.fft.rfft(np.roll(tilted[0].astype(np.float64), -(rate // 2)))  # a bin is 1 Hz
    for frequency in [100, 300, 1000, 2500, 3500, *([15000] if rate > 40000 else [])]:
        expected_db = tilt_db / 2 * np.log(frequency / 1000) / np.log(20)
        assert 20 * np.log10(abs(response[frequency])) == pytest.approx(expected_db, abs=0.1)
        assert abs(np.angle(response[frequency])) < 1e-5
    assert audio.tilt(noise(2, 100), rate, 3.0).shape == (2, 100)


def test_limiter_holds_the_ceiling_and_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    waveform = noise(2, 2 * RATE, 0.1)
    waveform[0, RATE] = 3.0
    limited = audio.limiter(waveform, RATE, ceiling_db=-1.0)
    ceiling = 10 ** (-1 / 20)
    assert np.abs(limited).max() <= ceiling
    assert limited[0, RATE] == pytest.approx(ceiling, rel=1e-3)
    assert np.array_equal(limited[:, : RATE - 500], waveform[:, : RATE - 500])
    assert np.array_equal(limited[:, RATE + RATE // 4 :], waveform[:, RATE + RATE // 4 :])
    loud = np.abs(waveform) > 0.01
    gains = np.where(loud, limited / np.where(loud, waveform, 1), np.nan)
    assert np.nanmax(np.abs(gains[0] - gains[1])) < 1e-5  # both channels by the same gain
    assert audio.limiter(0.1 * noise(1, 100), RATE).shape == (1, 100)
    released = audio._released(np.array([0, 6, 0, 0, 5, 0, 0, 0, 0, 0.0]), 2.0)
    assert released.tolist() == [0, 6, 4, 2, 5, 3, 1, 0, 0, 0]
    monkeypatch.setattr(audio, "_BLOCK_FRAMES", 1000)
    assert np.allclose(audio.limiter(waveform, RATE, ceiling_db=-1.0), limited, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.abs(audio.limiter(noise(1, 5000, 2.0), RATE, ceiling_db=-6.0)).max() <= 10 ** (-6 / 20)
