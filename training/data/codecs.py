"""Lossy audio codecs as phones and video sites use them, in memory, with their delay undone to the sample."""

import functools
import io
from dataclasses import dataclass

import av
import numpy as np
import soxr
from scipy.signal import correlate


@dataclass(frozen=True)
class Codec:
    """One FFmpeg encoder, its container, sample format and options, and, if it is bound to one, its rate in Hz."""

    encoder: str
    container: str
    sample_format: str
    sample_rate: int | None = None
    options: tuple[tuple[str, str], ...] = ()


CODECS = {
    "aac": Codec("aac", "mp4", "fltp"),
    "mp3": Codec("libmp3lame", "mp3", "fltp"),
    # "lowdelay" keeps to the transform codec: the speech codec, chosen by content below 64 kbps, is 4 samples later.
    "opus": Codec("libopus", "ogg", "flt", sample_rate=48_000, options=(("application", "lowdelay"),)),
}


def _round_trip(waveform: np.ndarray, sample_rate: int, codec: Codec, bitrate_kbps: int) -> np.ndarray:
    """Encode and decode (channels, samples) float32 -> (channels, any number of samples), with whatever delay."""
    layout = "mono" if len(waveform) == 1 else "stereo"
    planar = codec.sample_format.endswith("p")
    samples = np.ascontiguousarray(waveform) if planar else np.ascontiguousarray(waveform.T).reshape(1, -1)
    file = io.BytesIO()
    with av.open(file, "w", format=codec.container) as container:
        stream = container.add_stream(codec.encoder, rate=sample_rate, layout=layout, options=dict(codec.options))
        stream.bit_rate = bitrate_kbps * 1000
        stream.format = codec.sample_format
        frame = av.AudioFrame.from_ndarray(samples, format=codec.sample_format, layout=layout)
        frame.sample_rate = sample_rate
        frame.pts = 0
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    file.seek(0)
    with av.open(file) as container:
        decoded = [
            array if frame.format.is_planar else array.reshape(-1, len(waveform)).T
            for frame in container.decode(audio=0)
            for array in (frame.to_ndarray(),)
        ]
    return np.concatenate(decoded, axis=1).astype(np.float32)


@functools.lru_cache(maxsize=64)
def _delay(name: str, sample_rate: int, channels: int, bitrate_kbps: int) -> int:
    """Samples by which a codec delays its input: where a second of noise correlates best with what comes back."""
    noise = np.random.default_rng(0).standard_normal(sample_rate)
    probe = np.tile(0.1 * noise, (channels, 1)).astype(np.float32)
    decoded = _round_trip(probe, sample_rate, CODECS[name], bitrate_kbps)
    return int(np.argmax(correlate(decoded[0], probe[0], method="fft"))) - (sample_rate - 1)


def transcode(waveform: np.ndarray, sample_rate: int, name: str, bitrate_kbps: int) -> np.ndarray:
    """Encodes and decodes a waveform (1 or 2 channels, samples) by a lossy codec; same shape, same time, float32."""
    if name not in CODECS:
        raise ValueError(f"unknown codec {name!r}: choose one of {', '.join(CODECS)}")
    codec_rate = CODECS[name].sample_rate or sample_rate
    coded_input = waveform.astype(np.float32)
    if codec_rate != sample_rate:
        coded_input = soxr.resample(coded_input.T, sample_rate, codec_rate).T
    delay = _delay(name, codec_rate, len(waveform), bitrate_kbps)
    decoded = _round_trip(coded_input, codec_rate, CODECS[name], bitrate_kbps)
    decoded = decoded[:, delay:] if delay >= 0 else np.pad(decoded, ((0, 0), (-delay, 0)))
    if codec_rate != sample_rate:
        decoded = soxr.resample(decoded.T, codec_rate, sample_rate).T
    samples = waveform.shape[-1]
    decoded = decoded[:, :samples]
    return np.ascontiguousarray(np.pad(decoded, ((0, 0), (0, samples - decoded.shape[-1]))), dtype=np.float32)
