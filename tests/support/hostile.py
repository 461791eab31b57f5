"""Broken, lying and merely unusual audio files, the same for the same seed."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
import scipy.signal
import soundfile

RATE = 44100
ENCODED = ("wav16", "wav24", "wav32f", "wav64f", "wav8", "flac16", "flac24", "ogg", "opus", "mp3", "m4a")
FORMATS = {
    "wav16": ("WAV", "PCM_16"),
    "wav24": ("WAV", "PCM_24"),
    "wav32f": ("WAV", "FLOAT"),
    "wav64f": ("WAV", "DOUBLE"),
    "wav8": ("WAV", "PCM_U8"),
    "flac16": ("FLAC", "PCM_16"),
    "flac24": ("FLAC", "PCM_24"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


@dataclass(frozen=True)
class Case:
    """A file's content and what has to become of it.

    Attributes:
        name: of the file.
        outcome: "restored", "refused", or "either" where a decoder may or may not find sound in the wreck.
        words: what the refusal has to say.
        shape: (channels, samples) of a restored file where it is known.
    """

    name: str
    content: bytes
    outcome: str
    words: str = ""
    shape: tuple[int, int] | None = None
    rate: int = RATE


def music(channels: int = 1, samples: int = RATE // 2, rate: int = RATE) -> np.ndarray:
    """A chord that comes and goes, with a little noise (channels, samples)."""
    times = np.arange(samples) / rate
    chord = sum(np.sin(2 * np.pi * pitch * times) for pitch in (220.0, 277.2, 329.6))
    noise = np.random.default_rng(0).standard_normal((channels, samples))
    return (0.1 * chord * (1.2 + np.sin(9 * times)) + 0.01 * noise).astype(np.float32)


def encoded(waveform: np.ndarray, kind: str = "wav16", rate: int = RATE) -> bytes:
    """(channels, samples) as a file of this kind."""
    buffer = io.BytesIO()
    if kind == "m4a":
        with av.open(buffer, "w", format="mp4") as container:
            stream = container.add_stream("aac", rate=rate, layout="mono" if len(waveform) == 1 else "stereo")
            frame = av.AudioFrame.from_ndarray(waveform, format="fltp", layout=stream.layout.name)
            frame.sample_rate, frame.pts = rate, 0
            for packet in (*stream.encode(frame), *stream.encode(None)):
                container.mux(packet)
    else:
        container_name, subtype = FORMATS[kind]
        soundfile.write(buffer, waveform.T, rate, format=container_name, subtype=subtype)
    return buffer.getvalue()


def stereo(samples: int = RATE, seed: int = 0) -> np.ndarray:
    """A sweep and noise (2, samples), of which every piece can be told."""
    times = np.arange(samples) / RATE
    sweep = 0.3 * scipy.signal.chirp(times, 100 * (seed + 1), times[-1], 5000)
    noise = 0.02 * np.random.default_rng(seed).standard_normal((2, samples))
    return np.stack([sweep, -0.5 * sweep] + noise).astype(np.float32)


def with_av(waveform: np.ndarray, codec: str, container: str, layout: str = "stereo", rate: int = RATE) -> bytes:
    """(channels, samples) as PyAV encodes it."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        resampler = av.AudioResampler(stream.format, layout, rate, stream.codec_context.frame_size or 4096)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def cases(seed: int = 0) -> Iterator[Case]:
    """All of them, more than 200."""
    yield from whole()
    yield from truncated()
    yield from corrupted(np.random.default_rng(seed))
    yield from lying_headers()
    yield from short()
    yield from odd_rates()
    yield from odd_signals()
    yield from too_many_channels()
    yield from not_audio(np.random.default_rng(seed))


def whole() -> Iterator[Case]:
    for kind in ENCODED:
        rate = 48000 if kind == "opus" else RATE
        for channels in (1, 2):
            waveform = music(channels, rate // 2, rate)
            content = encoded(waveform, kind, rate)
            shape = None if kind in ("mp3", "m4a") else waveform.shape
            yield Case(f"whole-{kind}-{channels}.bin", content, "restored", shape=shape, rate=rate)


def truncated() -> Iterator[Case]:
    for kind in ENCODED:
        content = encoded(music(2, 48000 // 2, 48000), kind, 48000)
        for percent in (2, 20, 50, 80, 97):
            cut = content[: len(content) * percent // 100]
            yield Case(f"truncated-{kind}-{percent}.bin", cut, "either", rate=48000)


def corrupted(rng: np.random.Generator) -> Iterator[Case]:
    for kind in ENCODED:
        content = encoded(music(2, 48000 // 2, 48000), kind, 48000)
        for number, count in enumerate((1, 8, 64, 512)):
            broken = bytearray(content)
            # The first of them hits the header, where the most harm is done.
            places = rng.integers(60 if number == 0 else len(content), size=count)
            for place in places:
                broken[place] = int(rng.integers(256))
            yield Case(f"corrupted-{kind}-{count}.bin", bytes(broken), "either", rate=48000)


def wav(fields: dict[str, int], data: bytes) -> bytes:
    """A PCM WAV with whatever its header is made to say."""
    plain = {"riff": 36 + len(data), "format": 1, "channels": 1, "rate": RATE, "bits": 16, "data": len(data)}
    said = {**plain, **fields}
    block = said.get("block", said["channels"] * said["bits"] // 8)
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        said["riff"],
        b"WAVE",
        b"fmt ",
        16,
        said["format"],
        said["channels"],
        said["rate"],
        said["rate"] * block & 0xFFFFFFFF,
        block & 0xFFFF,
        said["bits"],
        b"data",
        said["data"],
    )
    return header + data


def lying_headers() -> Iterator[Case]:
    data = np.rint(32767 * music()[0]).astype("<i2").tobytes()
    lies: dict[str, dict[str, int]] = {
        "data-0": {"data": 0},
        "data-odd": {"data": len(data) - 1},
        "data-huge": {"data": 0xFFFFFFFF, "riff": 0xFFFFFFFF},
        "data-2gb": {"data": 2**31},
        "riff-0": {"riff": 0},
        "riff-short": {"riff": 100},
        "rate-0": {"rate": 0},
        "rate-1": {"rate": 1},
        "rate-huge": {"rate": 2**32 - 1},
        "channels-0": {"channels": 0, "block": 2},
        "channels-3": {"channels": 3},
        "channels-65535": {"channels": 65535, "block": 2},
        "bits-0": {"bits": 0, "block": 2},
        "bits-1": {"bits": 1, "block": 2},
        "bits-64": {"bits": 64},
        "block-0": {"block": 0},
        "block-7": {"block": 7},
        "format-0": {"format": 0},
        "format-mp3": {"format": 0x55},
        "format-extensible": {"format": 0xFFFE},
    }
    for name, fields in lies.items():
        yield Case(f"lie-{name}.wav", wav(fields, data), "either")
    # The 36 bits of FLAC's number of samples, at the end of STREAMINFO's 18th byte.
    flac = bytearray(encoded(music(2), "flac16"))
    for name, top, rest in (("huge", 0x0F, b"\xff\xff\xff\xff"), ("zero", 0, bytes(4)), ("ten", 0, b"\0\0\0\x0a")):
        lie = bytearray(flac)
        lie[21] = (lie[21] & 0xF0) | top
        lie[22:26] = rest
        yield Case(f"lie-flac-{name}.flac", bytes(lie), "either")


def short() -> Iterator[Case]:
    for samples in (1, 2, 3, 63, 255, 256, 257, 1023, 1024, 1025, 4000):
        for channels in (1, 2):
            name, waveform = f"short-{samples}-{channels}.wav", music(channels, samples) + np.float32(0.05)
            yield Case(name, encoded(waveform, "wav32f"), "restored", shape=(channels, samples))
    for kind in ("wav16", "flac16", "ogg"):
        yield Case(f"no-samples-{kind}.bin", encoded(np.zeros((1, 0), np.float32), kind), "refused")


def odd_rates() -> Iterator[Case]:
    for rate in (8000, 11025, 16000, 22050, 32000, 37800, 48000, 88200, 96000, 176400, 192000):
        waveform = music(1, rate // 2, rate)
        yield Case(f"rate-{rate}.wav", encoded(waveform, rate=rate), "restored", shape=waveform.shape, rate=rate)
    for rate in (1, 100, 7999, 192001, 384000, 768000):
        yield Case(
            f"rate-{rate}.wav", encoded(music(), rate=rate), "refused", f"sampling rate of {rate} Hz", rate=rate
        )


def odd_signals() -> Iterator[Case]:
    samples = RATE // 2
    plain = music(2)
    click = np.zeros((2, samples), np.float32)
    click[:, 100] = 1.0
    one_sided = plain * np.array([[1.0], [0.0]], np.float32)
    holes = plain.copy()
    holes[:, 5000:15000] = 0
    signals = {
        "dc": np.full((2, samples), 0.5, np.float32),
        "dc-under-music": plain + 0.5,
        "square": np.sign(np.sin(np.arange(samples) / 20))[None].repeat(2, 0).astype(np.float32),
        "clipped": np.clip(20 * plain, -1, 1),
        "beyond-full-scale": 30 * plain,
        "enormous": 1e20 * plain,
        "denormals": np.full((2, samples), 1e-40, np.float32),
        "minus-90-dbfs": plain * np.float32(10 ** (-90 / 20) / np.sqrt(np.mean(plain**2))),
        "one-bit": (np.sign(plain) / 32768).astype(np.float32),
        "silence": np.zeros((2, samples), np.float32),
        "click": click,
        "one-side-silent": one_sided,
        "anti-phase": plain[:1] * np.array([[1.0], [-1.0]], np.float32),
        "holes": holes,
        "white-noise": np.random.default_rng(1).uniform(-1, 1, (2, samples)).astype(np.float32),
        "nyquist": np.tile(np.float32([0.5, -0.5]), (2, samples // 2)),
    }
    for name, waveform in signals.items():
        yield Case(f"signal-{name}.wav", encoded(waveform, "wav32f"), "restored", shape=waveform.shape)
        if np.abs(waveform).max() <= 1:
            yield Case(f"signal-{name}.flac", encoded(waveform, "flac24"), "restored", shape=waveform.shape)
    for name, value in (("nan", np.nan), ("inf", np.inf), ("minus-inf", -np.inf)):
        for place in (0, samples // 2, samples - 1):
            waveform = plain.copy()
            waveform[1, place] = value
            words = f"NaN or infinite samples (the first at {place / RATE:.3f} s)"
            yield Case(f"signal-{name}-{place}.wav", encoded(waveform, "wav32f"), "refused", words)


def too_many_channels() -> Iterator[Case]:
    for channels in (3, 4, 6, 8):
        for kind in ("wav16", "flac16"):
            words = f"has {channels} channels"
            yield Case(f"channels-{channels}-{kind}.bin", encoded(music(channels), kind), "refused", words)


def not_audio(rng: np.random.Generator) -> Iterator[Case]:
    contents = {
        "empty.wav": b"",
        "one-byte.wav": b"R",
        "zeros.wav": bytes(4096),
        "noise.mp3": rng.bytes(4096),
        "text.wav": b"I was there, and it was loud.\n" * 50,
        "picture.mp3": b"\x89PNG\r\n\x1a\n" + rng.bytes(2000),
        "archive.flac": b"PK\x03\x04" + rng.bytes(2000),
        "page.m4a": b"<!doctype html><title>404</title>" * 20,
        "riff-only.wav": b"RIFF\x24\0\0\0WAVE",
        "flac-only.flac": b"fLaC",
        "ogg-only.ogg": b"OggS" + bytes(100),
        "id3-only.mp3": b"ID3\x04\0\0\0\0\x0f\x76" + bytes(2038),
    }
    for name, content in contents.items():
        yield Case(name, content, "refused")
