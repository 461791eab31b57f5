"""One recorder: everything between the air at a seat in the audience and the file on a phone, codecs included."""

from __future__ import annotations

import functools
import io
from typing import Any, NamedTuple

import av
import numpy as np
import soxr
from scipy.signal import correlate

from .material import CURVE_HZ, SAMPLE_RATE, Material

AGC_HOP = 64  # samples between two values of the automatic gain
AGC_RANGE_DB = 12.0
LEVELLED_HZ = np.geomspace(30.0, 20000.0, 10)  # where a random equaliser has its points
GRID_HZ = np.geomspace(5.0, SAMPLE_RATE / 2, 4096)  # where gains are computed: a spectrum has a million bins


def smooth_curve_db(rng: np.random.Generator, spread_db: float) -> np.ndarray:
    """Draws a smooth equaliser, in dB at `GRID_HZ`: points a bit less than an octave apart, interpolated."""
    return np.interp(np.log(GRID_HZ), np.log(LEVELLED_HZ), rng.normal(0, spread_db, len(LEVELLED_HZ)))


def measured_curve_db(rng: np.random.Generator, material: Material, kind: str) -> tuple[np.ndarray, str]:
    """Draws a loudspeaker or a recorder of the material, wholly or in part: in dB at `GRID_HZ`, and its name."""
    curves = [curve for curve in material.curves if curve.kind == kind]
    curve = curves[int(rng.integers(len(curves)))]
    strength = rng.uniform(0.3, 0.9)
    return strength * np.interp(np.log(GRID_HZ), np.log(CURVE_HZ), curve.gain_db), curve.name


def gain_at(frequencies: np.ndarray, curve_db: np.ndarray) -> np.ndarray:
    """Turns decibels at `GRID_HZ` into a zero-phase gain at the frequencies of a spectrum, (bins) float32."""
    return np.interp(frequencies, GRID_HZ, 10 ** (np.maximum(curve_db, -80.0) / 20)).astype(np.float32)


def draw_recorder(rng: np.random.Generator, is_phone: bool) -> dict[str, Any]:
    """Draws a recorder: a taper's, or a phone, in which everything is on."""

    def often(probability: float) -> bool:
        return bool(rng.random() < (0.9 if is_phone else probability))

    recorder: dict[str, Any] = {"spread_db": float(rng.uniform(0.5, 4.0)), "tilt_db": float(rng.normal(0, 0.7))}
    if often(0.4):  # distance and air
        recorder |= {"shelf_hz": float(rng.uniform(2500, 9000)), "shelf_db": float(rng.uniform(-16, -1))}
    if often(0.6):
        recorder |= {
            "low_cut_hz": float(np.exp(rng.uniform(np.log(25), np.log(400)))),
            "order": int(rng.integers(1, 4)),
        }
    if often(0.4):
        recorder |= {"presence_hz": float(rng.uniform(1500, 7000)), "presence_db": float(rng.uniform(-4, 8))}
    if often(0.4):
        recorder["limit_hz"] = float(rng.uniform(7000, 18000))
    if often(0.2):
        recorder["agc"] = [float(rng.uniform(1.2, 4)), float(rng.uniform(0.005, 0.05)), float(rng.uniform(0.15, 1.5))]
    if often(0.2):
        recorder["drive_db"] = float(rng.uniform(0.5, 9))
    if rng.random() < (0.25 if is_phone else 0.06):
        recorder["clip_db"] = float(rng.uniform(0.5, 6))
    if often(0.3):
        recorder["hiss_db"] = float(rng.uniform(-70, -35))
    if rng.random() < 0.1:
        recorder |= {"hum_db": float(rng.uniform(-60, -30)), "mains_hz": int(rng.choice([50, 60]))}
    if rng.random() < (0.6 if is_phone else 0.08):
        recorder["codec"] = [str(rng.choice(["aac", "mp3", "opus"])), int(rng.choice([48, 64, 96, 128]))]
    return recorder


def recorder_curve_db(recorder: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
    """Draws the rest of a recorder's linear part, its smooth deviations, and returns all of it in dB at `GRID_HZ`."""
    curve_db = smooth_curve_db(rng, recorder["spread_db"])
    curve_db += recorder["tilt_db"] * np.log2(np.clip(GRID_HZ, 62.5, 16000) / 1000)
    if "shelf_hz" in recorder:
        ratio = np.square(GRID_HZ / recorder["shelf_hz"])
        curve_db += recorder["shelf_db"] * ratio / (1 + ratio)
    if "low_cut_hz" in recorder:
        curve_db -= 10 * np.log10(1 + (recorder["low_cut_hz"] / GRID_HZ) ** (2 * recorder["order"]))
    if "presence_hz" in recorder:
        away = np.log2(GRID_HZ / recorder["presence_hz"])
        curve_db += recorder["presence_db"] * np.exp(-0.5 * np.square(away / 0.6))
    if "limit_hz" in recorder:
        limit = recorder["limit_hz"]
        rest = 0.5 * (1 + np.cos(np.pi * np.clip((GRID_HZ - limit) / (0.1 * limit), 0, 1)))
        curve_db += 20 * np.log10(np.maximum(rest, 1e-4))
    return curve_db


def automatic_gain(waveform: np.ndarray, ratio: float, attack_s: float, release_s: float) -> np.ndarray:
    """The gain (samples) of a feed-forward compressor on the linked channels of (channels, samples); its mean is 1.

    Args:
        ratio: 1 leaves the dynamics alone, 4 turns 12 dB into 3.
    """
    samples = waveform.shape[-1]
    frames = -(-samples // AGC_HOP)
    padded = np.pad(waveform, ((0, 0), (0, frames * AGC_HOP - samples)))
    power = np.square(padded).reshape(len(waveform), frames, AGC_HOP).mean(axis=(0, 2), dtype=np.float64)
    mean_power = float(power.mean()) + 1e-20
    attack, release = (float(np.exp(-AGC_HOP / (SAMPLE_RATE * time_s))) for time_s in (attack_s, release_s))
    envelope, level = np.empty(frames), mean_power
    for frame, now in enumerate(power.tolist()):
        memory = attack if now > level else release
        level = memory * level + (1 - memory) * now
        envelope[frame] = level
    gain_db = np.clip(-(1 - 1 / ratio) * 10 * np.log10(envelope / mean_power + 1e-9), -AGC_RANGE_DB, AGC_RANGE_DB)
    gain = 10 ** (gain_db / 20)
    gain /= np.sqrt(np.mean(gain**2))
    return np.interp(np.arange(samples), (np.arange(frames) + 0.5) * AGC_HOP, gain).astype(np.float32)


def recorded(
    waveform: np.ndarray, recorder: dict[str, Any], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Puts equalised sound (channels, samples) on the recorder.

    Returns:
        The recording of the same shape, and the automatic gain (samples) that was in force, or None.
    """
    gain = automatic_gain(waveform, *recorder["agc"]) if "agc" in recorder else None
    recording = waveform if gain is None else waveform * gain
    level = float(np.sqrt(np.mean(np.square(recording)))) + 1e-12
    if "hiss_db" in recorder:
        hiss = rng.standard_normal(recording.shape, np.float32)
        recording = recording + np.float32(level * 10 ** (recorder["hiss_db"] / 20)) * hiss
    if "hum_db" in recorder:
        phase = 2 * np.pi * recorder["mains_hz"] / SAMPLE_RATE * np.arange(recording.shape[-1])
        hum = sum(np.sin(harmonic * phase + rng.uniform(0, 6.28)) / harmonic for harmonic in (1, 2, 3, 5))
        recording = recording + np.float32(level * 10 ** (recorder["hum_db"] / 20)) * np.float32(hum)
    if "drive_db" in recorder:
        knee = float(np.abs(recording).max()) * 10 ** (-recorder["drive_db"] / 20) + 1e-12
        recording = knee * np.tanh(recording / knee)
    if "clip_db" in recorder:
        limit = float(np.abs(recording).max()) * 10 ** (-recorder["clip_db"] / 20)
        recording = np.clip(recording, -limit, limit)
    if "codec" in recorder:
        peak = float(np.abs(recording).max()) + 1e-12
        recording = transcode(recording * (0.7 / peak), SAMPLE_RATE, *recorder["codec"]) * (peak / 0.7)
    return recording.astype(np.float32), gain


# --- Codecs ----------------------------------------------------------------------------------------------------------
#
# As phones and video sites use them, in memory, with their delay undone to the sample.


class Codec(NamedTuple):
    """One FFmpeg encoder, its container, sample format and options, and, if it is bound to one, its rate in Hz."""

    encoder: str
    container: str
    sample_format: str
    sample_rate: int | None = None
    options: dict[str, str] = {}


CODECS = {
    "aac": Codec("aac", "mp4", "fltp"),
    "mp3": Codec("libmp3lame", "mp3", "fltp"),
    # "lowdelay" keeps to the transform codec: the speech codec, chosen by content below 64 kbps, is 4 samples later.
    "opus": Codec("libopus", "ogg", "flt", 48_000, {"application": "lowdelay"}),
}


def _round_trip(waveform: np.ndarray, sample_rate: int, codec: Codec, bitrate_kbps: int) -> np.ndarray:
    """Encode and decode (channels, samples) float32 -> (channels, any number of samples), with whatever delay."""
    layout = "mono" if len(waveform) == 1 else "stereo"
    planar = codec.sample_format.endswith("p")
    samples = np.ascontiguousarray(waveform) if planar else np.ascontiguousarray(waveform.T).reshape(1, -1)
    file = io.BytesIO()
    with av.open(file, "w", format=codec.container) as container:
        stream = container.add_stream(codec.encoder, rate=sample_rate, layout=layout, options=codec.options)
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
