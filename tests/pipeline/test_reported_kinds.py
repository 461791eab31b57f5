"""Kinds of files that people report to other programs; tests/README.md has the reports."""

import io
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hostile import RATE, encoded, stereo, with_av

from pipeline_aud2studio.decode import AudioError, AudioStream

WAVEFORM = stereo()
SAMPLES = np.rint(32767 * WAVEFORM).astype("<i2")  # (2, samples)
EXACT = SAMPLES / np.float32(32768)
LITTLE, BIG = SAMPLES.T.tobytes(), SAMPLES.T.astype(">i2").tobytes()
WIDE = np.ascontiguousarray(np.rint(WAVEFORM.T.astype(np.float64) * 2**23), "<i4")  # (samples, 2), 24 bits of 32
PCM_GUID = bytes.fromhex("0000 0000 1000 8000 00aa 0038 9b71")
B_FORMAT_GUID = bytes.fromhex("0000 2107 d311 8644 c8c1 ca00 0000")


def decoded(folder: Path, content: bytes, **options: object) -> tuple[np.ndarray, list[str], AudioStream]:
    """Samples, what was said, and the stream, which is closed."""
    path = folder / "a.bin"
    path.write_bytes(content)
    with AudioStream(path, **options) as stream:
        return stream.read(10_000_000), stream.notices, stream


def chunk(name: bytes, body: bytes, is_padded: bool = True) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2 and is_padded)


def riff(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def fmt(channels: int = 2, bits: int = 16) -> bytes:
    block = channels * bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", 1, channels, RATE, RATE * block, block, bits))


def extensible(data: bytes, bits: int, valid: int, mask: int = 3, channels: int = 2, guid: bytes = PCM_GUID) -> bytes:
    block = channels * bits // 8
    body = struct.pack("<HHIIHHHHI", 0xFFFE, channels, RATE, RATE * block, block, bits, 22, valid, mask)
    return riff(chunk(b"fmt ", body + b"\1\0" + guid), chunk(b"data", data))


def aiff(codec: bytes, bits: int, data: bytes, *chunks: bytes, promised: int = RATE) -> bytes:
    """AIFF-C with further chunks after the samples."""
    exponent = int(math.log2(RATE))
    rate = struct.pack(">HQ", 16383 + exponent, RATE << (63 - exponent))
    body = b"AIFC" + big(b"COMM", struct.pack(">hIh", 2, promised, bits) + rate + codec + b"\0\0")
    body += big(b"SSND", bytes(8) + data) + b"".join(chunks)
    return b"FORM" + struct.pack(">I", len(body)) + body


def big(name: bytes, body: bytes) -> bytes:
    return name + struct.pack(">I", len(body)) + body + b"\0" * (len(body) % 2)


def au(size: int, description: bytes = bytes(4)) -> bytes:
    return b".snd" + struct.pack(">5I", 24 + len(description), size, 3, RATE, 2) + description + BIG


def caf(before: bytes = b"", after: bytes = b"", size: int | None = None) -> bytes:
    """CAF of 16-bit samples with chunks before and after them, and a size of its own."""
    buffer = io.BytesIO()
    soundfile.write(buffer, SAMPLES.T, RATE, "PCM_16", format="CAF")
    content = buffer.getvalue()
    at = content.index(b"data")
    own = struct.unpack(">q", content[at + 4 : at + 12])[0] if size is None else size
    return content[:at] + before + b"data" + struct.pack(">q", own) + content[at + 12 :] + after


APE_TAG = b"APETAGEX" + struct.pack("<IIII", 2000, 32, 0, 0) + bytes(8)
LYRICS = b"LYRICSBEGININD0000300LYR00020[00:01]hello hello he000055LYRICS200"


@pytest.mark.parametrize("before", ["zeros", "an APEv2 tag", "garbage"])
def test_an_mp3_begins_where_its_first_frame_is(tmp_path: Path, before: str) -> None:
    garbage = np.random.default_rng(1).integers(0, 256, 3000, dtype=np.uint8).tobytes()
    lead = {"zeros": bytes(5000), "an APEv2 tag": APE_TAG, "garbage": garbage}[before]
    whole = decoded(tmp_path, encoded(WAVEFORM, "mp3"))[0]
    found, notices, _ = decoded(tmp_path, lead + encoded(WAVEFORM, "mp3"))
    assert found.shape == WAVEFORM.shape and notices == []
    np.testing.assert_allclose(found[:, 2000:], whole[:, 2000:], atol=1e-6)


def test_apev2_and_lyrics3_tags_after_an_mp3_are_no_sound(tmp_path: Path) -> None:
    whole = decoded(tmp_path, encoded(WAVEFORM, "mp3"))[0]
    for tag in (APE_TAG, LYRICS + b"TAG" + bytes(125)):
        found, notices, _ = decoded(tmp_path, encoded(WAVEFORM, "mp3") + tag)
        np.testing.assert_allclose(found, whole, atol=1e-6)
        assert notices == []


def test_an_id3v1_tag_after_a_flac_is_no_damage(tmp_path: Path) -> None:
    found, notices, _ = decoded(tmp_path, encoded(WAVEFORM, "flac24") + b"TAG" + bytes(125))
    assert np.abs(found - WAVEFORM).max() < 2**-23 and notices == []


def test_id3_tags_around_a_wav_are_no_sound(tmp_path: Path) -> None:
    plain = riff(fmt(), chunk(b"data", LITTLE))
    tag = b"ID3\3\0\0\0\0\0\x7f" + bytes(127)
    for content in (tag + plain, plain + b"TAG" + b"a title".ljust(125, b"\0"), plain + tag):
        found, notices, _ = decoded(tmp_path, content)
        np.testing.assert_array_equal(found, EXACT)
        assert notices == []


def test_odd_chunks_without_their_padding(tmp_path: Path) -> None:
    odd = chunk(b"bext", b"x" * 603, is_padded=False)
    for chunks in ([odd, fmt()], [fmt(), odd], [fmt(), chunk(b"axml", b"<" * 495)]):
        found, notices, _ = decoded(tmp_path, riff(*chunks, chunk(b"data", LITTLE)))
        np.testing.assert_array_equal(found, EXACT)
        assert notices == []
    mono = WIDE[:101, :1].copy().view(np.uint8)[:, :3]
    found, notices, _ = decoded(tmp_path, riff(fmt(1, 24), chunk(b"data", mono.tobytes(), is_padded=False)))
    np.testing.assert_array_equal(found[0], WIDE[:101, 0] / np.float32(2**23))
    assert notices == []


@pytest.mark.parametrize("size", [0x7FFFFFFF, 0x7FFFFFFF - 36])
def test_a_size_that_a_recorder_never_filled_in_promises_nothing(tmp_path: Path, size: int) -> None:
    found, notices, stream = decoded(tmp_path, riff(fmt(), b"data" + struct.pack("<I", size) + LITTLE))
    np.testing.assert_array_equal(found, EXACT)
    assert notices == ["has a header that does not know its length"] and stream.frames == RATE


def test_large_chunks_before_the_samples(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 393_156, dtype=np.uint8).tobytes()
    for extra in (chunk(b"LIST", b"ab\xff\xfe" + noise), chunk(b"JUNK", bytes(700_001)), chunk(b"fact", b"")):
        found, notices, _ = decoded(tmp_path, riff(fmt(), extra, chunk(b"data", LITTLE)))
        np.testing.assert_array_equal(found, EXACT)
        assert notices == []
    found = decoded(tmp_path, riff(chunk(b"data", LITTLE), fmt()))[0]
    np.testing.assert_array_equal(found, EXACT)


def test_all_data_chunks_of_a_wav_are_read(tmp_path: Path) -> None:
    halves = [chunk(b"data", LITTLE[:80_000]), chunk(b"data", LITTLE[80_000:])]
    found, notices, _ = decoded(tmp_path, riff(fmt(), *halves))
    np.testing.assert_array_equal(found, EXACT)
    assert notices == ["is 2 files that were joined: all of them are read"]


def test_fewer_valid_bits_than_a_sample_has_do_not_change_its_level(tmp_path: Path) -> None:
    found = decoded(tmp_path, extensible((WIDE * 256).tobytes(), 32, 24))[0]
    np.testing.assert_array_equal(found, WIDE.T / np.float32(2**23))
    found = decoded(tmp_path, extensible(LITTLE, 16, 0))[0]
    np.testing.assert_array_equal(found, EXACT)


def test_channels_that_are_no_loudspeakers_are_not_mixed(tmp_path: Path) -> None:
    data = np.concatenate([SAMPLES, SAMPLES]).T.tobytes()
    with pytest.raises(AudioError, match="4 channels without places that could be mixed to stereo"):
        decoded(tmp_path, extensible(data, 16, 16, 0, 4, B_FORMAT_GUID), downmix=True)
    with pytest.raises(AudioError, match="4 channels without places"):  # two of them hang from the ceiling
        decoded(tmp_path, extensible(data, 16, 16, 0x5003, 4), downmix=True)


def test_a_mask_of_more_loudspeakers_than_channels_is_not_believed(tmp_path: Path) -> None:
    np.testing.assert_array_equal(decoded(tmp_path, extensible(LITTLE, 16, 16, 0x1FF))[0], EXACT)
    np.testing.assert_array_equal(decoded(tmp_path, extensible(LITTLE, 16, 16, 0))[0], EXACT)


@pytest.mark.parametrize("codec", ["sowt", "42ni", "in24", "23ni", "fl32"])
def test_aiff_c_in_either_byte_order(tmp_path: Path, codec: str) -> None:
    low = WIDE.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    high = WIDE.astype(">i4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    bits, data = {
        "sowt": (16, LITTLE),
        "42ni": (24, low),
        "in24": (24, high),
        "23ni": (32, (WIDE * 256).tobytes()),
        "fl32": (32, WAVEFORM.T.astype(">f4").tobytes()),
    }[codec]
    expected = EXACT if codec == "sowt" else WAVEFORM
    tag = big(b"ID3 ", b"ID3\3\0\0\0\0\0\x21" + bytes(33))
    found, notices, _ = decoded(tmp_path, aiff(codec.encode(), bits, data, tag))
    assert found.shape == WAVEFORM.shape and notices == []
    np.testing.assert_allclose(found, expected, atol=2**-23)


def test_a_caf_with_chunks_around_its_samples_or_without_their_size(tmp_path: Path) -> None:
    free = b"free" + struct.pack(">q", 600_000) + bytes(600_000)
    info = b"info" + struct.pack(">q", 2000) + bytes(2000)
    for content in (caf(free), caf(after=info), caf(size=-1)):
        found, notices, _ = decoded(tmp_path, content)
        np.testing.assert_array_equal(found, EXACT)
        assert notices == []


def test_an_au_with_a_description_or_without_its_size(tmp_path: Path) -> None:
    for content in (au(len(BIG), b"a description".ljust(1028, b"\0")), au(0xFFFFFFFF)):
        found, notices, _ = decoded(tmp_path, content)
        np.testing.assert_array_equal(found, EXACT)
        assert notices == []


@pytest.mark.parametrize("kind", ["AIFF", "AU", "W64", "CAF"])
def test_a_cut_file_of_whatever_container_says_how_much_is_missing(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, SAMPLES.T, RATE, "PCM_16", format=kind)
    whole, notices, _ = decoded(tmp_path, buffer.getvalue())
    np.testing.assert_array_equal(whole, EXACT)
    assert notices == []
    content = buffer.getvalue()[: -len(LITTLE) // 2]
    found, notices, _ = decoded(tmp_path, content)
    assert abs(found.shape[1] - RATE // 2) < 20
    np.testing.assert_array_equal(found, EXACT[:, : found.shape[1]])
    assert notices == ["ends at 0.50 s: its header promised 1.00 s, 0.50 s more"]
    with pytest.raises(AudioError, match="--strict refuses"):
        decoded(tmp_path, content, strict=True)


def test_the_gain_in_an_opus_header_is_applied(tmp_path: Path) -> None:
    content = bytearray(with_av(stereo(48000), "libopus", "ogg", rate=48000))
    plain = decoded(tmp_path, bytes(content))[0]
    at = content.index(b"OpusHead") + 16
    content[at : at + 2] = struct.pack("<h", -6 * 256)
    size = 27 + content[26] + sum(content[27 : 27 + content[26]])
    content[22:26] = bytes(4)
    content[22:26] = struct.pack("<I", ogg_checksum(content[:size]))
    found = decoded(tmp_path, bytes(content))[0]
    np.testing.assert_allclose(found, plain * 10 ** (-6 / 20), atol=1e-5)


def ogg_checksum(page: bytes) -> int:
    found = 0
    for byte in page:
        found ^= byte << 24
        for _ in range(8):
            found = (found << 1 ^ (0x04C11DB7 if found & 0x80000000 else 0)) & 0xFFFFFFFF
    return found


@pytest.mark.parametrize(
    "kind", ["pcm_s24le in mov", "pcm_s16be in mov", "pcm_s24be in mp4", "alac in ipod", "alac in caf", "flac in mp4"]
)
def test_lossless_sound_of_cameras_and_telephones_is_whole(tmp_path: Path, kind: str) -> None:
    found, notices, _ = decoded(tmp_path, with_av(WAVEFORM, *kind.split(" in ")))
    assert found.shape == WAVEFORM.shape and notices == []
    assert np.abs(found - WAVEFORM).max() < (2**-22 if "24" in kind or "alac" in kind else 2**-15)


def test_a_cover_that_is_a_film_of_one_picture(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        film = out.add_stream("mjpeg", rate=1)
        film.width = film.height = 64
        film.pix_fmt = "yuvj420p"
        sound = out.add_stream("alac", rate=RATE, layout="stereo")
        picture = av.VideoFrame(64, 64, "yuvj420p")
        picture.pts = 0
        out.mux([*film.encode(picture), *film.encode(None)])
        for frame in frames_of(SAMPLES, sound.codec_context.frame_size):
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    found, notices, stream = decoded(tmp_path, buffer.getvalue())
    np.testing.assert_array_equal(found, EXACT)
    assert stream.has_cover and notices == []


def frames_of(samples: np.ndarray, size: int) -> Iterator[av.AudioFrame]:
    for start in range(0, samples.shape[1], size):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[:, start : start + size]), "s16p", "stereo")
        frame.sample_rate, frame.pts = RATE, start
        yield frame


def test_a_webm_of_a_browser_that_does_not_know_its_length(tmp_path: Path) -> None:
    waveform, buffer = stereo(48000), io.BytesIO()
    with av.open(buffer, "w", format="webm", options={"live": "1"}) as out:
        stream = out.add_stream("libopus", rate=48000, layout="stereo")
        resampler = av.AudioResampler(stream.format, "stereo", 48000, stream.codec_context.frame_size)
        frame = av.AudioFrame.from_ndarray(waveform, "fltp", "stereo")
        frame.sample_rate, frame.pts = 48000, 0
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    found, notices, opened = decoded(tmp_path, buffer.getvalue())
    assert opened.frames is None and notices == []
    assert 0 <= found.shape[1] - 48000 < 960
    assert np.corrcoef(found[:, :47000].ravel(), waveform[:, :47000].ravel())[0, 1] > 0.98
