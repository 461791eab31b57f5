"""decode.py: what becomes of files that are broken, joined, mislabelled or merely unusual. Each name says it."""

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import av
import broken_files
import numpy as np
import pytest
import scipy.signal
import soundfile
from hostile import RATE, encoded, music, stereo, wav, with_av

from pipeline_aud2studio import files
from pipeline_aud2studio.alignment.clock import Recording
from pipeline_aud2studio.audio import AudioNotice
from pipeline_aud2studio.decode import AudioError, AudioStream

H = np.sqrt(0.5)


def decoded(path: Path, content: bytes, **options: object) -> tuple[np.ndarray, list[str], AudioStream]:
    """Samples, what was said, and the stream, which is closed."""
    path.write_bytes(content)
    with AudioStream(path, **options) as stream:
        pieces = [stream.read(30_000)]
        while (piece := stream.read(7_000)).shape[1]:
            pieces.append(piece)
        return np.concatenate(pieces, axis=1), stream.notices, stream


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


@pytest.mark.parametrize("kind", ["wav16", "wav24", "wav32f", "flac16", "flac24", "ogg", "mp3", "m4a"])
def test_files_and_recordings_are_decoded_alike(tmp_path: Path, kind: str) -> None:
    waveform = stereo()
    (tmp_path / "a.bin").write_bytes(encoded(waveform, kind))
    read, recording = files.read(tmp_path / "a.bin").waveform, Recording(tmp_path / "a.bin")
    assert read.shape == waveform.shape
    np.testing.assert_array_equal(recording.read(0, recording.num_samples), read)
    with AudioStream(tmp_path / "a.bin") as stream:
        stream.seek(30_011)
        np.testing.assert_array_equal(stream.read(500), read[:, 30_011:30_511])
    soundfile.write(tmp_path / "slow.wav", np.zeros(100), 4000)
    for reader in (files.read, Recording):
        with pytest.raises(AudioError, match="sampling rate of 4000 Hz"):
            reader(tmp_path / "slow.wav")


@pytest.mark.parametrize("kind", ["wav16", "flac16", "mp3", "ogg", "m4a"])
def test_a_file_that_ends_early_gives_what_is_there_and_says_how_much_is_missing(tmp_path: Path, kind: str) -> None:
    content = encoded(stereo(4 * RATE), kind)
    if kind == "m4a":  # with its index first, or nothing could be decoded
        content = fast_start(content)
    whole = decoded(tmp_path / "whole.bin", content)[0]
    found, notices, _ = decoded(tmp_path / "cut.bin", content[: 6 * len(content) // 10])
    assert 0.5 * whole.shape[1] < found.shape[1] < 0.7 * whole.shape[1]
    same = slice(0, found.shape[1] - (2304 if kind in ("ogg", "mp3", "m4a") else 0))
    np.testing.assert_allclose(found[:, same], whole[:, same], atol=1e-6)
    if kind != "ogg":  # whose header does not say how long it is
        missing = (whole.shape[1] - found.shape[1]) / RATE
        assert f"{missing:.2f} s more" in notices[0] or kind == "mp3" and "s more" in notices[0]
    if kind != "ogg":
        with pytest.raises(AudioError, match="which --strict refuses"):
            decoded(tmp_path / "cut.bin", content[: 6 * len(content) // 10], strict=True)


def fast_start(content: bytes) -> bytes:
    """An MP4 with its index in front, as FFmpeg's `faststart` writes it."""
    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(content)) as source,
        av.open(buffer, "w", format="mp4", options={"movflags": "frag_keyframe+empty_moov"}) as out,
    ):
        stream = out.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["mp3", "ogg", "opus", "flac16", "wav16"])
def test_joined_files_are_read_to_the_end_of_the_last(tmp_path: Path, kind: str) -> None:
    rate = 48000 if kind == "opus" else RATE
    first, second = stereo(RATE), stereo(RATE // 2, 3)
    content = encoded(first, kind, rate) + encoded(second, kind, rate)
    found, notices, _ = decoded(tmp_path / "a.bin", content)
    assert found.shape[1] == RATE + RATE // 2
    assert correlation(found, np.concatenate([first, second], axis=1)) > 0.99
    assert notices == ["is 2 files that were joined: all of them are read"]


@pytest.mark.parametrize("kind", ["mp3", "flac16", "ogg"])
def test_a_change_of_rate_and_channels_in_mid_file_is_brought_to_the_first_form(tmp_path: Path, kind: str) -> None:
    first, second = stereo(RATE), stereo(RATE // 2, 3)
    content = encoded(first, kind) + encoded(second[:1], kind, 22050)
    found, notices, stream = decoded(tmp_path / "a.bin", content)
    assert (stream.sample_rate, found.shape) == (RATE, (2, 2 * RATE))
    assert correlation(found[:, :RATE], first) > 0.99
    resampled = scipy.signal.resample_poly(second[0], 2, 1)
    assert correlation(found[0, RATE:], resampled) > 0.99 and np.array_equal(found[0, RATE:], found[1, RATE:])
    assert any("to 22050 Hz and 1 channels: it is brought to the 44100 Hz and 2" in notice for notice in notices)


@pytest.mark.parametrize("count", [1, 40, 100_000])
def test_an_mp3_with_a_wrong_xing_header_is_read_to_its_end(tmp_path: Path, count: int) -> None:
    waveform = stereo(2 * RATE)
    content = bytearray(encoded(waveform, "mp3"))
    place = max(content.find(b"Xing"), content.find(b"Info"))
    assert struct.unpack(">I", content[place + 8 : place + 12])[0] > 70
    content[place + 8 : place + 12] = struct.pack(">I", count)
    found, notices, _ = decoded(tmp_path / "a.mp3", bytes(content))
    assert 0 <= found.shape[1] - 2 * RATE < 2 * 1152
    assert correlation(found[:, : 2 * RATE], waveform) > 0.99
    assert any(("promised" if count > 1000 else "longer than its header says") in notice for notice in notices)


def test_a_wav_of_a_recorder_that_lost_power_is_read_to_its_end(tmp_path: Path) -> None:
    samples = np.rint(32767 * music()[0]).astype("<i2")
    for fields in ({"riff": 0, "data": 0}, {"data": 0}, {"riff": 0xFFFFFFFF, "data": 0xFFFFFFFF}):
        found, notices, _ = decoded(tmp_path / "a.wav", wav(fields, samples.tobytes()))
        np.testing.assert_array_equal(found[0], samples / np.float32(32768))
        assert notices == ["has a header that does not know its length"]


@pytest.mark.parametrize("kind", ["wrapped", "RF64", "BW64", "W64"])
def test_a_wav_beyond_4_gb_is_as_long_as_it_is(tmp_path: Path, kind: str) -> None:
    """Sparse files: a mark at the end is where it belongs."""
    frames, path = 2**30 + 1000, tmp_path / "long.wav"
    size, mark = 4 * frames, np.array([[0.5, -0.25]], np.float32)
    fmt = struct.pack("<HHIIHH", 1, 2, RATE, 4 * RATE, 4, 16)
    if kind == "W64":
        guids = {
            name: name.encode() + b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
            for name in ("wave", "fmt ", "data")
        }
        riff = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
        header = guids["wave"] + guids["fmt "] + struct.pack("<Q", 24 + len(fmt)) + fmt + guids["data"]
        header = riff + struct.pack("<Q", 24 + len(header) + 8 + size) + header + struct.pack("<Q", 24 + size)
    elif kind == "wrapped":
        header = b"RIFF" + struct.pack("<I", (size + 36) % 2**32) + b"WAVEfmt " + struct.pack("<I", 16) + fmt
        header += b"data" + struct.pack("<I", size % 2**32)
    else:
        ds64 = struct.pack("<QQQI", size + 72, size, frames, 0)
        header = kind.encode() + b"\xff\xff\xff\xffWAVEds64" + struct.pack("<I", 28) + ds64
        header += b"fmt " + struct.pack("<I", 16) + fmt + b"data\xff\xff\xff\xff"
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
        file.seek(len(header) + size - 4)
        file.write(np.rint(32768 * mark).astype("<i2").tobytes())
    with AudioStream(path) as stream:
        assert stream.frames == frames
        stream.seek(frames - 2)
        np.testing.assert_array_equal(stream.read(10), np.concatenate([np.zeros((1, 2)), mark]).T)
        assert bool(stream.notices) == (kind == "wrapped")


def test_damaged_flac_is_silent_where_it_is_damaged_and_nowhere_else(tmp_path: Path) -> None:
    waveform = stereo(6 * RATE)
    content = bytearray(encoded(waveform, "flac16"))
    whole = decoded(tmp_path / "whole.flac", bytes(content))[0]
    for place in (len(content) // 4, len(content) // 2):
        content[place : place + 3000] = bytes(3000)
    content[3 * len(content) // 4] ^= 0x10
    found, notices, _ = decoded(tmp_path / "a.flac", bytes(content))
    assert found.shape == whole.shape
    same = (found == whole).all(axis=0)
    assert 3 * 4096 <= np.count_nonzero(~same) <= 12 * 4096
    assert np.abs(found[:, ~same]).max() == 0
    first_s = np.argmin(same) / RATE
    assert notices[0].startswith(f"is damaged: {first_s:.2f} to ") and notices[0].count(" to ") == 3
    with pytest.raises(AudioError, match="--strict refuses"):
        decoded(tmp_path / "a.flac", bytes(content), strict=True)


LAYOUTS = {
    "5.1": [(1, 0), (0, 1), (H, H), (0, 0), (H, 0), (0, H)],
    "4.0": [(1, 0), (0, 1), (H, H), (0.5, 0.5)],
    "3.1": [(1, 0), (0, 1), (H, H), (0, 0)],
    "5.1(side)": [(1, 0), (0, 1), (H, H), (0, 0), (H, 0), (0, H)],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "codec", ["libopus in ogg", "aac in mp4", "aac in adts", "aac in matroska", "flac in flac", "pcm_s24le in wav"]
)
def test_surround_is_mixed_down_from_the_named_channels(tmp_path: Path, codec: str, layout: str) -> None:
    """A tone of its own in every channel: its level on both sides is what ITU-R BS.775 says."""
    gains = LAYOUTS[layout]
    codec, container = codec.split(" in ")
    if codec == "libopus" and layout != "5.1":
        pytest.skip("Opus knows neither")
    times = np.arange(48000) / 48000
    hertz = [60 if gain == (0, 0) else 400 + 150 * number for number, gain in enumerate(gains)]
    tones = np.stack([0.1 * np.sin(2 * np.pi * pitch * times) for pitch in hertz]).astype(np.float32)
    content = with_av(tones, codec, container, layout, 48000)
    with pytest.raises(AudioError, match="pass --downmix"):
        decoded(tmp_path / "a.bin", content)
    found = decoded(tmp_path / "a.bin", content, downmix=True)[0]
    middle = found[:, 9600:38400].astype(np.float64)
    waves = np.exp(2j * np.pi * np.outer(hertz, np.arange(middle.shape[1]) / 48000))
    levels = 20 * np.abs(middle @ waves.T).T / middle.shape[1]
    np.testing.assert_allclose(levels, gains, atol=0.02)


@pytest.mark.parametrize("subtype", ["GSM610", "IMA_ADPCM", "MS_ADPCM", "ALAW", "ULAW", "PCM_U8", "DOUBLE"])
def test_wav_codecs(tmp_path: Path, subtype: str) -> None:
    waveform, buffer = music(1, 8000, 8000), io.BytesIO()
    soundfile.write(buffer, waveform.T, 8000, subtype, format="WAV")
    found, notices, stream = decoded(tmp_path / "a.wav", buffer.getvalue())
    assert correlation(found[:, :8000], waveform) > (0.9 if subtype == "GSM610" else 0.98)
    assert (stream.subtype, notices) == (subtype, [])


def test_mp3_in_a_wav(tmp_path: Path) -> None:
    found = decoded(tmp_path / "a.wav", with_av(stereo(), "libmp3lame", "wav"))[0]
    lag = np.argmax(scipy.signal.correlate(found[0], stereo()[0], "valid"))
    assert correlation(found[:, lag : lag + RATE], stereo()) > 0.99


def test_the_default_track_of_a_container_and_another_with_track_n(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        streams = [out.add_stream("flac", rate=RATE, layout="mono") for _ in range(3)]
        for stream in streams:
            stream.disposition = av.stream.Disposition.default if stream is streams[1] else 0
        for number, stream in enumerate(streams):
            frame = av.AudioFrame.from_ndarray(np.full((1, 4096), 1000 * (number + 1), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = RATE, 0
            out.mux([*stream.encode(frame), *stream.encode(None)])
    for track, value in ((None, 2000), (1, 1000), (3, 3000)):
        found = decoded(tmp_path / "a.mkv", buffer.getvalue(), track=track)[0]
        np.testing.assert_array_equal(found, np.full((1, 4096), value / 32768))
    with pytest.raises(AudioError, match="has 3 audio tracks: --track 4 is not there"):
        decoded(tmp_path / "a.mkv", buffer.getvalue(), track=4)


@pytest.mark.parametrize("kind", ["mp3", "ogg", "opus", "m4a", "flac16"])
def test_two_tracks_of_one_concert_join_without_a_step(tmp_path: Path, kind: str) -> None:
    rate = 48000 if kind == "opus" else RATE
    whole = stereo(2 * RATE)
    parts = [decoded(tmp_path / "a.bin", encoded(half, kind, rate))[0] for half in np.split(whole, [50_003], axis=1)]
    tolerance = 45 if kind == "m4a" else 0  # whose container counts in milliseconds
    assert abs(parts[0].shape[1] - 50_003) <= tolerance and abs(parts[1].shape[1] - 2 * RATE + 50_003) <= tolerance
    found = np.concatenate(parts, axis=1)
    assert correlation(found[:, 49_000:50_000], whole[:, 49_000:50_000]) > 0.97
    after = slice(parts[0].shape[1], parts[0].shape[1] + 1000)
    assert correlation(found[:, after], whole[:, 50_003:51_003]) > 0.9


def test_float_above_full_scale_keeps_its_level(tmp_path: Path) -> None:
    waveform = 4 * stereo()
    np.testing.assert_array_equal(decoded(tmp_path / "a.wav", encoded(waveform, "wav32f"))[0], waveform)


# Twelve further kinds, see tests/README.md.
def playlist(content: bytes) -> bytes:
    return b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://192.0.2.1/a.ts\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (playlist, "is not audio"),
        (lambda content: content[:12] + b"\0" * 4000, "is not audio|holds no audio|cannot be read"),
        (lambda content: b"\0" * len(content), "is not audio"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(AudioError, match=message):
        decoded(tmp_path / "a.mp3", change(encoded(stereo(), "wav16")))


def test_an_mp3_after_a_large_tag_with_a_cover_begins_where_it_begins(tmp_path: Path) -> None:
    content, size = encoded(stereo(), "mp3"), 300_000
    synchsafe = bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    picture = bytes(np.random.default_rng(0).integers(256, size=size, dtype=np.uint8)).replace(b"\xff", b"\xfe")
    found, notices, _ = decoded(tmp_path / "a.mp3", b"ID3\3\0\0" + synchsafe + picture + content)
    assert found.shape[1] == RATE and correlation(found, stereo()) > 0.99 and not notices


def test_tags_between_and_after_joined_mp3s_are_no_sound(tmp_path: Path) -> None:
    content = encoded(stereo(), "mp3")
    tag = b"TAG" + b"a title".ljust(125, b"\0")
    found = decoded(tmp_path / "a.mp3", content + tag + b"ID3\3\0\0\0\0\0\x7f" + bytes(127) + content + tag)[0]
    assert found.shape[1] == 2 * RATE and correlation(found[:, RATE:], stereo()) > 0.99


def test_an_mp3_with_zeros_in_its_middle_keeps_both_sides(tmp_path: Path) -> None:
    content = bytearray(encoded(stereo(4 * RATE), "mp3"))
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    found = decoded(tmp_path / "a.mp3", bytes(content))[0]
    assert abs(found.shape[1] - 4 * RATE) < 0.5 * RATE
    assert correlation(found[:, : 3 * RATE // 2], stereo(4 * RATE)[:, : 3 * RATE // 2]) > 0.99


def test_an_odd_number_of_bytes_is_a_whole_number_of_samples(tmp_path: Path) -> None:
    data = np.rint(32767 * stereo()).astype("<i2").T.tobytes()
    content = wav({"channels": 2}, data)
    found = decoded(tmp_path / "a.wav", content[:-3])[0]
    assert found.shape[1] == RATE - 1


def test_chunks_after_the_samples_are_no_samples(tmp_path: Path) -> None:
    data = np.rint(32767 * music()[0]).astype("<i2").tobytes()
    content = (
        wav({}, data) + b"LIST" + struct.pack("<I", 26) + b"INFOINAM" + struct.pack("<I", 14) + b"Live at noon\0\0"
    )
    found, notices, stream = decoded(tmp_path / "a.wav", content)
    assert found.shape[1] == len(data) // 2 and notices == [] and stream.tags == {"title": "Live at noon"}


def test_a_flac_after_an_id3_tag(tmp_path: Path) -> None:
    found = decoded(tmp_path / "a.flac", b"ID3\3\0\0\0\0\0\x7f" + bytes(127) + encoded(stereo(), "flac24"))[0]
    assert np.abs(found - stereo()).max() < 2**-23


def test_a_flac_that_does_not_know_its_length(tmp_path: Path) -> None:
    content = bytearray(encoded(stereo(), "flac16"))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    found, notices, stream = decoded(tmp_path / "a.flac", bytes(content))
    assert found.shape[1] == RATE and stream.frames is None and not notices


def test_raw_aac_of_a_broadcast(tmp_path: Path) -> None:
    found = decoded(tmp_path / "a.aac", with_av(stereo(2 * RATE), "aac", "adts"))[0]
    assert abs(found.shape[1] - 2 * RATE) < 4096
    assert correlation(found[:, 1024 : 2 * RATE], stereo(2 * RATE)[:, : 2 * RATE - 1024]) > 0.99


def test_big_endian_wav_and_aiff(tmp_path: Path) -> None:
    for container, endian in (("WAV", "BIG"), ("AIFF", "FILE"), ("AU", "FILE"), ("CAF", "FILE")):
        buffer = io.BytesIO()
        soundfile.write(buffer, stereo().T, RATE, "PCM_24", endian, container)
        found = decoded(tmp_path / "a.bin", buffer.getvalue())[0]
        assert np.abs(found - stereo()).max() < 2**-22, container


def test_a_wrong_suffix_and_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp3"))
    found = decoded(path, encoded(stereo(), "flac16"))[0]
    assert found.shape[1] == RATE


def test_what_is_wrong_is_said_once_after_the_last_block(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encoded(stereo(), "wav16")[:50_000])
    with pytest.warns(AudioNotice, match=r"a\.wav ends at 0\.28 s: its header promised 1\.00 s, 0\.72 s more") as said:
        files.read(tmp_path / "a.wav")
    assert len(said) == 1


def test_the_page_about_broken_files_is_made_from_these_names() -> None:
    assert (broken_files.ROOT / "docs" / "broken-files.md").read_text(encoding="utf-8") == broken_files.table()
