"""files.py: what comes in, what goes out, and what is refused."""

import os
from pathlib import Path

import av
import numpy as np
import pytest
import scipy.signal
import soundfile

from pipeline_aud2studio import files
from pipeline_aud2studio.files import AudioError

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
    files.write(tmp_path / name, waveform, 48000, subtype, tags)

    again = files.read(tmp_path / name)

    half_step = {"PCM_16": 2**-16, "PCM_24": 2**-24, "FLOAT": 0.0}[subtype]
    assert again.waveform.dtype == np.float32
    assert np.abs(again.waveform - waveform).max() <= half_step * 1.001
    assert (again.sample_rate, again.subtype, again.tags) == (48000, subtype, tags)
    assert os.listdir(tmp_path) == [name]  # no temporary file is left behind


@pytest.mark.parametrize("rate", [8000, 22050, 192000])
def test_every_rate_from_8_to_192_khz(tmp_path: Path, rate: int) -> None:
    files.write(tmp_path / "a.flac", noise(2, 1234), rate)
    again = files.read(tmp_path / "a.flac")
    assert (again.sample_rate, again.waveform.shape) == (rate, (2, 1234))


def test_full_scale_is_clipped_and_does_not_wrap(tmp_path: Path) -> None:
    files.write(tmp_path / "a.wav", np.array([[1.5, 1.0, -1.0, -1.5]], np.float32), RATE, "PCM_16")
    integers, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert integers.tolist() == [32767, 32767, -32768, -32768]


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3"])
def test_lossy_formats_keep_length_and_place(tmp_path: Path, name: str) -> None:
    waveform = sweep(30001)
    soundfile.write(tmp_path / name, waveform, RATE)

    decoded = files.read(tmp_path / name).waveform

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

    decoded = files.read(tmp_path / name)

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
    whole = files.read(path).waveform
    first, last = round(0.3 * RATE), round(0.8 * RATE)
    assert np.array_equal(files.read(path, 0.3, 0.8).waveform, whole[:, first:last])
    assert np.array_equal(files.read(path, start_s=0.3).waveform, whole[:, first:])
    assert np.array_equal(files.read(path, end_s=100).waveform, whole)
    with pytest.raises(AudioError, match="ends before the start"):
        files.read(path, start_s=5)


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
        "six.wav": "has 6 channels: pass --downmix",
        "slow.wav": "sampling rate of 4000 Hz",
        "nan.wav": r"NaN or infinite samples \(the first at 0.250 s\)",
        "inf.wav": "NaN or infinite",
    }.items():
        with pytest.raises(AudioError, match=message):
            files.read(tmp_path / name)
    for start_s, end_s in [(-1.0, None), (2.0, 1.0), (float("nan"), None), (0.0, float("nan"))]:
        with pytest.raises(AudioError, match="excerpt has to start"):
            files.read(tmp_path / "none.wav", start_s, end_s)


def test_a_truncated_file_gives_what_is_there(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "whole.wav", noise(1, 10000).T, RATE, subtype="PCM_16")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:10000])
    assert np.array_equal(
        files.read(tmp_path / "cut.wav").waveform, files.read(tmp_path / "whole.wav").waveform[:, :4978]
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
            files.check_output(tmp_path / name)
    files.check_output(tmp_path / "there.wav", overwrite=True)
    files.check_output(tmp_path / "new.FLAC")
    with pytest.raises(AudioError, match="MB left"):
        files.check_output(tmp_path / "new.wav", num_bytes=2**60)
    assert os.listdir(tmp_path) == ["there.wav"]
    with pytest.raises(AudioError, match="cannot hold FLOAT"):
        files.write(tmp_path / "a.flac", noise(1, 10), RATE, "FLOAT")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(AudioError, match="Permission denied"):
        files.check_output(tmp_path / "a.wav")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write(tmp_path / "a.wav", noise(1, 100), RATE)
    before = (tmp_path / "a.wav").read_bytes()

    def full_disk(*_: object) -> None:
        raise soundfile.LibsndfileError(2, "No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "write", full_disk)
    with pytest.raises(OSError, match="could not be written"):
        files.write(tmp_path / "a.wav", noise(1, 100), RATE)
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
    assert {key: files.output_subtype(*key) for key in wanted} == wanted


def test_surround_sound_is_mixed_down_where_that_is_asked_for(tmp_path: Path) -> None:
    """By ITU-R BS.775: centre and surrounds at -3 dB, each side's own, no subwoofer."""
    front_left, front_right, centre, subwoofer, left, right = noise(6, 3000, 0.1)
    surround = np.stack([front_left, front_right, centre, subwoofer, left, right])
    soundfile.write(tmp_path / "six.wav", surround.T, 48000, subtype="FLOAT")
    mixed = files.read(tmp_path / "six.wav", downmix=True)
    expected = [front_left + (centre + left) / np.sqrt(2), front_right + (centre + right) / np.sqrt(2)]
    np.testing.assert_allclose(mixed.waveform, expected, atol=1e-6)
    excerpt = files.read(tmp_path / "six.wav", 0.01, 0.02, downmix=True)
    np.testing.assert_array_equal(excerpt.waveform, mixed.waveform[:, 480:960])
    soundfile.write(tmp_path / "nine.wav", noise(9, 3000, 0.1).T, 48000)
    with pytest.raises(files.AudioError, match="has 9 channels without places that could be mixed"):
        files.read(tmp_path / "nine.wav", downmix=True)
