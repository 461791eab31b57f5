"""One microphone and its recorder: everything between the air at a seat in the audience and the file on the phone."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from training import equaliser
from training.codecs import transcode

AGC_HOP = 64  # samples between two values of the automatic gain
AGC_RANGE_DB = 12.0
BITRATES_KBPS = (48, 64, 96, 128)


@dataclass(frozen=True)
class Device:
    """Parameters of one recording device; the defaults change nothing. 0 switches a stage off."""

    rolloff_hz: float = 0.0  # distance and air: a high shelf of rolloff_db
    rolloff_db: float = 0.0
    low_cut_hz: float = 0.0  # Butterworth high-pass
    low_cut_order: int = 2
    presence_hz: float = 3500.0  # peak of a small capsule
    presence_db: float = 0.0
    presence_octaves: float = 0.7
    tilt_db_per_octave: float = 0.0
    stop_hz: float = 1000.0  # band-stop: a seat, a pocket, a hand over the capsule
    stop_db: float = 0.0
    stop_octaves: float = 0.3
    band_limit_hz: float = 0.0  # zero-phase low-pass of the converter
    agc_ratio: float = 1.0  # 1 leaves the dynamics alone, 4 turns 12 dB into 3
    agc_attack_s: float = 0.02
    agc_release_s: float = 0.5
    drive_db: float = 0.0  # soft saturation: how far the peaks are above the knee; 0 is off
    clip_db: float = 0.0  # hard clipping: how much of the peaks is cut off; 0 is off
    resample_hz: int = 0  # a careless conversion to this rate and back, aliasing included
    bits: int = 0  # coarse quantisation without dither
    codec: str = ""  # "aac", "mp3", "opus"
    bitrate_kbps: int = 0
    level_db: float = 0.0  # gain of this recording against the others

    @classmethod
    def from_row(cls, row: Any, take: int) -> "Device":
        """The device of one take from a manifest row, where every parameter is a list with one value per take."""
        return cls(**{field.name: field.type(row[field.name][take]) for field in fields(cls)})  # type: ignore[operator]


def draw(rng: np.random.Generator) -> dict[str, Any]:
    """A random phone or hand-held recorder, as the keyword arguments of `Device`."""

    def often(probability: float) -> bool:
        return bool(rng.random() < probability)

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    device: dict[str, Any] = asdict(Device())
    if often(0.7):
        device |= {"rolloff_hz": log_uniform(2500.0, 10_000.0), "rolloff_db": float(rng.uniform(-12.0, -1.0))}
    if often(0.8):
        device |= {"low_cut_hz": log_uniform(30.0, 200.0), "low_cut_order": int(rng.integers(1, 4))}
    if often(0.6):
        device |= {
            "presence_hz": log_uniform(2000.0, 8000.0),
            "presence_db": float(rng.uniform(1.0, 8.0)),
            "presence_octaves": float(rng.uniform(0.3, 1.0)),
        }
    if often(0.7):
        device["tilt_db_per_octave"] = float(rng.uniform(-1.2, 1.2))
    if often(0.2):
        device |= {
            "stop_hz": log_uniform(200.0, 8000.0),
            "stop_db": float(rng.uniform(-18.0, -4.0)),
            "stop_octaves": float(rng.uniform(0.05, 0.4)),
        }
    if often(0.6):
        device["band_limit_hz"] = float(rng.uniform(8000.0, 18_000.0))
    if often(0.5):
        device |= {
            "agc_ratio": float(rng.uniform(1.2, 4.0)),
            "agc_attack_s": log_uniform(0.005, 0.05),
            "agc_release_s": log_uniform(0.15, 1.5),
        }
    if often(0.4):
        device["drive_db"] = float(rng.uniform(0.5, 9.0))
    if often(0.2):
        device["clip_db"] = float(rng.uniform(0.5, 6.0))
    if often(0.1):
        device["resample_hz"] = int(rng.choice([22_050, 24_000, 32_000]))
    if often(0.08):
        device["bits"] = int(rng.integers(8, 11))
    if often(0.6):
        device |= {"codec": str(rng.choice(["aac", "mp3", "opus"])), "bitrate_kbps": int(rng.choice(BITRATES_KBPS))}
    return device


def equalisation(device: Device, sample_rate: int) -> np.ndarray | None:
    """Impulse response of all linear stages together, as `equaliser.design` gives it; None if they are all off."""
    frequencies = equaliser.frequencies(sample_rate)
    gain_db = equaliser.tilt(frequencies, device.tilt_db_per_octave)
    if device.rolloff_hz > 0.0:
        gain_db = gain_db + equaliser.high_shelf(frequencies, device.rolloff_hz, device.rolloff_db)
    if device.low_cut_hz > 0.0:
        gain_db = gain_db + equaliser.low_cut(frequencies, device.low_cut_hz, device.low_cut_order)
    gain_db = gain_db + equaliser.bell(frequencies, device.presence_hz, device.presence_db, device.presence_octaves)
    gain_db = gain_db + equaliser.bell(frequencies, device.stop_hz, device.stop_db, device.stop_octaves)
    if device.band_limit_hz == 0.0 and not np.any(gain_db):
        return None
    return equaliser.design(gain_db, sample_rate, device.band_limit_hz)


def automatic_gain(
    waveform: np.ndarray, sample_rate: int, ratio: float, attack_s: float, release_s: float
) -> np.ndarray:
    """Feed-forward compressor on the linked channels of (channels, samples); the RMS level stays as it was."""
    samples = waveform.shape[-1]
    frames = -(-samples // AGC_HOP)
    padded = np.pad(waveform, ((0, 0), (0, frames * AGC_HOP - samples)))
    power = np.square(padded, dtype=np.float64).reshape(len(waveform), frames, AGC_HOP).mean(axis=(0, 2))
    mean_power = float(power.mean())
    if mean_power == 0.0:
        return waveform
    attack, release = (float(np.exp(-AGC_HOP / (sample_rate * time_s))) for time_s in (attack_s, release_s))
    envelope = np.empty(frames)
    level = mean_power
    for frame, now in enumerate(power.tolist()):
        memory = attack if now > level else release
        level = memory * level + (1.0 - memory) * now
        envelope[frame] = level
    level_db = 10.0 * np.log10(envelope / mean_power + 1e-9)
    gain_db = np.clip(-(1.0 - 1.0 / ratio) * level_db, -AGC_RANGE_DB, AGC_RANGE_DB)
    centres = (np.arange(frames) + 0.5) * AGC_HOP
    gain = np.interp(np.arange(samples), centres, np.power(10.0, gain_db / 20.0))
    controlled = waveform * gain
    controlled *= np.sqrt(np.mean(np.square(waveform, dtype=np.float64)) / np.mean(np.square(controlled)))
    return controlled.astype(np.float32)


def saturate(waveform: np.ndarray, drive_db: float) -> np.ndarray:
    """Soft saturation with unit gain for quiet sounds; the peak lies `drive_db` above the knee of the tanh."""
    knee = float(np.abs(waveform).max()) * 10.0 ** (-drive_db / 20.0)
    return knee * np.tanh(waveform / knee) if knee > 0.0 else waveform


def clip(waveform: np.ndarray, clip_db: float) -> np.ndarray:
    """Cut everything that is louder than `clip_db` below the peak."""
    limit = float(np.abs(waveform).max()) * 10.0 ** (-clip_db / 20.0)
    return np.clip(waveform, -limit, limit)


def resample_carelessly(waveform: np.ndarray, sample_rate: int, rate: int) -> np.ndarray:
    """To a lower rate and back with linear interpolation and no anti-alias filter; time is kept."""
    samples = waveform.shape[-1]
    times = np.arange(samples) / sample_rate
    coarse_times = np.arange(int(np.ceil(times[-1] * rate)) + 1) / rate
    coarse = np.stack([np.interp(coarse_times, times, channel) for channel in waveform])
    return np.stack([np.interp(times, coarse_times, channel) for channel in coarse]).astype(np.float32)


def quantise(waveform: np.ndarray, bits: int) -> np.ndarray:
    """Round to 2^bits steps between the negative and the positive peak."""
    step = float(np.abs(waveform).max()) / 2.0 ** (bits - 1)
    return (np.round(waveform / step) * step).astype(np.float32) if step > 0.0 else waveform


def record(waveform: np.ndarray, sample_rate: int, device: Device) -> np.ndarray:
    """What `device` makes of the sound (1 or 2 channels, samples) at its place; same shape, aligned to the sample."""
    response = equalisation(device, sample_rate)
    if response is not None:
        waveform = equaliser.apply(waveform, response)
    if device.agc_ratio > 1.0:
        waveform = automatic_gain(waveform, sample_rate, device.agc_ratio, device.agc_attack_s, device.agc_release_s)
    if device.drive_db > 0.0:
        waveform = saturate(waveform, device.drive_db)
    if device.clip_db > 0.0:
        waveform = clip(waveform, device.clip_db)
    if device.resample_hz > 0:
        waveform = resample_carelessly(waveform, sample_rate, device.resample_hz)
    if device.bits > 0:
        waveform = quantise(waveform, device.bits)
    if device.codec:
        # Recorders leave headroom; encoders clip beyond full scale.
        headroom = max(1.0, float(np.abs(waveform).max()) / 0.9)
        waveform = headroom * transcode(waveform / headroom, sample_rate, device.codec, device.bitrate_kbps)
    return (waveform * 10.0 ** (device.level_db / 20.0)).astype(np.float32)
