"""The journey of sound: loudspeakers, room, crowd, microphone. `draw` chooses every parameter, `render` applies them.

A row is flat: strings, numbers, and lists of them. Lists named after a stage hold one value per take of the
performance; take 0 is the reference, whose direct path the clean target is aligned with, to the sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.signal import oaconvolve

from training import device, equaliser
from training.device import Device
from training.sources import DIRECT_S, NoiseBed, Roots, inside, read_music, read_responses

CONDITIONS = ("crowd", "room", "room_crowd", "phone")
# Who never saw clean music will "restore" it, and make music of an audience that is alone: both stay as they are.
TRAINING_CONDITIONS = (*CONDITIONS, "clean", "audience")
EARLY_S = 0.05
MAX_LEAD_IN_S = 2.0  # music before the excerpt, so that the room already rings when it starts
OFF_DB = -120.0  # level of a leak that is not there
TAIL_FLOOR = 1e-6  # responses end where 60 dB less energy than the whole is left
LONG_KINDS = ("applause", "cheering", "crowd", "babble", "chatter")  # kinds that can fill a bed on their own
CROWD_KINDS = (*LONG_KINDS, "whistles")
# Noises at the microphone: how often in the condition `phone`, and how far below the music, in dB.
LOCAL_NOISES = {
    "hum": (0.3, (20.0, 50.0)),
    "hiss": (0.5, (25.0, 50.0)),
    "wind": (0.12, (5.0, 30.0)),
    "handling": (0.15, (8.0, 30.0)),
}


@dataclass(frozen=True)
class Ranges:
    """What a drawn condition spans: signal-to-crowd ratio, direct-to-reverberant ratio, reverberation time."""

    snr_db: tuple[float, float]
    drr_db: tuple[float, float]
    rt60_s: tuple[float, float]


RANGES = {
    "train": Ranges(snr_db=(-3.0, 15.0), drr_db=(-10.0, 10.0), rt60_s=(0.2, 3.5)),
    "benchmark": Ranges(snr_db=(0.0, 12.0), drr_db=(-10.0, 6.0), rt60_s=(0.4, 3.0)),
}


def rms(waveform: np.ndarray, axis: tuple[int, ...] | None = None) -> np.ndarray:
    """Root mean square over `axis`, or over all."""
    return np.sqrt(np.mean(np.square(waveform, dtype=np.float64), axis=axis))


@dataclass(frozen=True)
class RenderedPair:
    """One training or test pair, float32, all of the same length and on one clock."""

    recordings: np.ndarray  # (takes, channels, samples)
    clean: np.ndarray  # (channels, samples), at the level of the direct path in recordings[0]
    early: np.ndarray  # (channels, samples), clean through the first 50 ms of the reference's response
    early_response: np.ndarray  # (channels, 50 ms), that response
    sample_rate: int

    def levels(self) -> tuple[np.ndarray, float]:
        """RMS of every recording (takes,) and of the clean excerpt, over all channels and samples."""
        return rms(self.recordings, (1, 2)), float(rms(self.clean))

    def crop(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Recordings (takes, channels, stop - start), clean and early (channels, stop - start)."""
        return self.recordings[..., start:stop], self.clean[:, start:stop], self.early[:, start:stop]


def draw(
    rng: np.random.Generator,
    condition: str,
    music_row: Mapping[str, Any],
    rir_row: Mapping[str, Any],
    noise_rows: Sequence[Mapping[str, Any]],
    *,
    offset_s: float,
    seconds: float,
    sample_rate: int = 44_100,
    channels: int = 1,
    num_takes: int = 1,
    ranges: str = "train",
) -> dict[str, Any]:
    """Choose every parameter of one degraded pair.

    Args:
        condition: one of TRAINING_CONDITIONS; `crowd` has no room, `room` nothing else, `phone` everything, `clean`
            nothing, `audience` no music.
        music_row, rir_row, noise_rows: rows of the indexes; all noise that may be used, of one split.
        offset_s: where the excerpt of `seconds` starts in the music.
        channels: 1 (the music's downmix) or 2.
        num_takes: recordings of the same performance; at most the venue's number of microphones.
        ranges: a key of RANGES.

    Returns:
        A flat row for `render`, without `row_id`, `seed` and `split`.
    """
    if condition not in TRAINING_CONDITIONS:
        raise ValueError(f"unknown condition {condition!r}: choose one of {', '.join(TRAINING_CONDITIONS)}")
    if ranges not in RANGES:
        raise ValueError(f"unknown ranges {ranges!r}: choose one of {', '.join(RANGES)}")
    if not 1 <= num_takes <= rir_row["num_mics"]:
        raise ValueError(f"{rir_row['path']} has {rir_row['num_mics']} microphones, not {num_takes} takes")
    everything = condition == "phone"
    row: dict[str, Any] = {
        "kind": "synthetic",
        "condition": condition,
        "ranges": ranges,
        "sample_rate": sample_rate,
        "seconds": float(seconds),
        "channels": channels,
        "num_takes": num_takes,
        "music_path": music_row["path"],
        "music_stems": list(music_row.get("stems") or []),
        "music_offset_s": float(offset_s),
    }
    row |= _draw_loudspeakers(rng, everything, channels)
    row |= _draw_room(rng, condition not in ("crowd", "clean"), rir_row, RANGES[ranges], channels, num_takes)
    if condition == "audience":
        row["music_in_room"] = 0
    row["lead_in_s"] = float(min(offset_s, MAX_LEAD_IN_S, row["rt60_s"]))
    row |= _draw_crowd(rng, condition not in ("room", "clean"), noise_rows, RANGES[ranges], num_takes)
    row |= _draw_local_noises(rng, everything, noise_rows, num_takes)
    devices = [device.draw(rng) if everything else asdict(Device()) for _ in range(num_takes)]
    for take in range(1, num_takes):
        devices[take]["level_db"] = float(rng.uniform(-3.0, 3.0))
    row |= {name: [parameters[name] for parameters in devices] for name in devices[0]}
    row["misalignment_s"] = [0.0] + [_draw_misalignment(rng) for _ in range(1, num_takes)]
    return row


def _draw_loudspeakers(rng: np.random.Generator, active: bool, channels: int) -> dict[str, Any]:
    """PA equalisation and cabinets, leakage between the sides, and a second, later arrival (monitors, delay line)."""
    coloured, cabinet = active and rng.random() < 0.8, active and rng.random() < 0.4
    crossed, spilled = active and channels == 2 and rng.random() < 0.3, active and rng.random() < 0.3
    return {
        "pa_low_hz": float(rng.uniform(60.0, 250.0)),
        "pa_low_db": float(rng.uniform(-4.0, 5.0)) if coloured else 0.0,
        "pa_mid_hz": float(np.exp(rng.uniform(np.log(200.0), np.log(4000.0)))),
        "pa_mid_db": float(rng.uniform(-4.0, 4.0)) if coloured else 0.0,
        "pa_high_hz": float(rng.uniform(4000.0, 10_000.0)),
        "pa_high_db": float(rng.uniform(-5.0, 3.0)) if coloured else 0.0,
        "pa_cut_hz": float(rng.uniform(30.0, 70.0)) if cabinet else 0.0,
        "pa_limit_hz": float(rng.uniform(13_000.0, 18_000.0)) if cabinet else 0.0,
        "crosstalk_db": float(rng.uniform(-30.0, -8.0)) if crossed else OFF_DB,
        "spill_db": float(rng.uniform(-22.0, -8.0)) if spilled else OFF_DB,
        "spill_delay_s": float(rng.uniform(0.003, 0.04)),
    }


def _draw_room(
    rng: np.random.Generator,
    active: bool,
    rir_row: Mapping[str, Any],
    ranges: Ranges,
    channels: int,
    num_takes: int,
) -> dict[str, Any]:
    """Microphones of one venue, a direct-to-reverberant ratio for each take, and a reverberation time for all."""
    shortest, longest = ranges.rt60_s
    measured = float(rir_row["t20_s"])
    if measured < shortest:
        raise ValueError(f"{rir_row['path']} rings for {measured} s, less than the range {ranges.rt60_s} wants")
    upper = min(measured, longest)
    rt60_s = upper
    if measured > longest or rng.random() < 0.3:
        rt60_s = float(rng.uniform(max(shortest, 0.4 * upper), upper))
    # An exponential window turns one exponential decay into another: 60 dB are 3 ln 10 in amplitude.
    decay_per_s = 3.0 * np.log(10.0) * (1.0 / rt60_s - 1.0 / measured)
    mics = [int(mic) for mic in rng.permutation(rir_row["num_mics"])]
    if channels == 2 and rir_row["mic_channels"] == 2:
        sides = [(2 * mic, 2 * mic + 1) for mic in mics[:num_takes]]
    elif channels == 2 and len(mics) >= 2 * num_takes:
        sides = list(zip(mics[:num_takes], mics[num_takes : 2 * num_takes], strict=True))
    else:
        side = int(rng.integers(rir_row["mic_channels"]))
        sides = [(rir_row["mic_channels"] * mic + side,) * 2 for mic in mics[:num_takes]]
    return {
        "rir_path": rir_row["path"],
        "venue": rir_row["venue"],
        "music_in_room": int(active),
        "rir_left": [left for left, _ in sides],
        "rir_right": [right for _, right in sides],
        "drr_db": [float(rng.uniform(*ranges.drr_db)) for _ in range(num_takes)],
        "rt60_s": float(rt60_s),
        "decay_per_s": float(decay_per_s),
    }


def _draw_crowd(
    rng: np.random.Generator, active: bool, noise_rows: Sequence[Mapping[str, Any]], ranges: Ranges, num_takes: int
) -> dict[str, Any]:
    """Several beds of audience noise, their levels against each other and, per take, against the music."""
    beds: list[Mapping[str, Any]] = []
    if active:
        for kinds in [LONG_KINDS] + [CROWD_KINDS] * int(rng.choice(4, p=[0.35, 0.35, 0.2, 0.1])):
            beds.append(_choose_noise(rng, noise_rows, kinds))
    return {
        "bed_path": [bed["path"] for bed in beds],
        "bed_offset_s": [float(rng.uniform(0.0, bed["seconds"])) for bed in beds],
        "bed_db": [float(rng.uniform(-12.0, 0.0)) if number else 0.0 for number in range(len(beds))],
        "snr_db": [float(rng.uniform(*ranges.snr_db)) for _ in range(num_takes)],
        "crowd_in_room": float(rng.uniform(0.2, 1.0)) if rng.random() < 0.6 else 0.0,
        "crowd_own": float(rng.uniform(0.2, 1.0)),
    }


def _draw_local_noises(
    rng: np.random.Generator, active: bool, noise_rows: Sequence[Mapping[str, Any]], num_takes: int
) -> dict[str, Any]:
    """Hum, hiss, wind and handling, each take its own; an empty path where there is none."""
    row: dict[str, Any] = {}
    for kind, (probability, range_db) in LOCAL_NOISES.items():
        chosen = [
            _choose_noise(rng, noise_rows, (kind,)) if active and rng.random() < probability else None
            for _ in range(num_takes)
        ]
        row[f"{kind}_path"] = [noise["path"] if noise else "" for noise in chosen]
        row[f"{kind}_offset_s"] = [float(rng.uniform(0.0, noise["seconds"])) if noise else 0.0 for noise in chosen]
        row[f"{kind}_snr_db"] = [float(rng.uniform(*range_db)) for _ in chosen]
    return row


def _choose_noise(
    rng: np.random.Generator, noise_rows: Sequence[Mapping[str, Any]], kinds: Sequence[str]
) -> Mapping[str, Any]:
    """A kind with equal chances, then one of its files."""
    by_kind = {kind: [row for row in noise_rows if row["kind"] == kind] for kind in kinds}
    present = [kind for kind in kinds if by_kind[kind]]
    if not present:
        raise ValueError(f"the noise index has no {' or '.join(kinds)} for this split")
    rows = by_kind[str(rng.choice(present))]
    return rows[int(rng.integers(len(rows)))]


def _draw_misalignment(rng: np.random.Generator) -> float:
    """What an alignment leaves over, in seconds: mostly less than 0.1 ms, rarely up to 1 ms."""
    largest = 1e-3 if rng.random() < 0.05 else 1e-4
    return float(rng.uniform(-largest, largest)) if rng.random() < 0.75 else 0.0


def render(row: Mapping[str, Any], roots: Roots) -> RenderedPair:
    """Make the recordings that a row describes, and their target. The same row gives the same bits.

    The clean target is the clean excerpt itself: responses have a direct path of unit energy, and no stage changes
    the level or the time of the direct path beyond its equalisation. Of an audience alone it is the first recording.
    """
    sample_rate: int = row["sample_rate"]
    clean = read_music(row, roots)
    lead_in = clean.shape[-1] - round(row["seconds"] * sample_rate)
    feed = loudspeakers(row, clean)
    responses = None
    if row["music_in_room"] or row["crowd_in_room"]:
        responses = read_responses(inside(roots.rir_dir, row["rir_path"]), sample_rate)

    def bed(path: str, offset_s: float) -> NoiseBed:
        return NoiseBed(inside(roots.noise_dir, path), offset_s, clean.shape[-1], sample_rate)

    beds = [bed(path, offset_s) for path, offset_s in zip(row["bed_path"], row["bed_offset_s"], strict=True)]
    takes = []
    for take in range(row["num_takes"]):
        response = None if responses is None else take_response(row, responses, take)
        music = convolve(feed, response) if row["music_in_room"] and response is not None else feed
        sound, music_power = music, _power(music[:, lead_in:])
        if row["condition"] == "audience":
            sound = np.zeros_like(music)
        if beds:
            crowd = crowd_at(row, beds, response, take)
            sound = sound + _level(crowd, lead_in, music_power, row["snr_db"][take])
        for kind in LOCAL_NOISES:
            if path := row[f"{kind}_path"][take]:
                local = bed(path, row[f"{kind}_offset_s"][take])
                noise = np.stack([local.piece(channel, 0.0) for channel in range(len(clean))])
                sound = sound + _level(noise, lead_in, music_power, row[f"{kind}_snr_db"][take])
        recording = device.record(sound, sample_rate, Device.from_row(row, take))
        if row["misalignment_s"][take]:
            recording = equaliser.shift(recording, row["misalignment_s"][take], sample_rate)
        takes.append(recording[:, lead_in:])
    if row["condition"] == "audience":
        clean = np.pad(takes[0], ((0, 0), (lead_in, 0)))
    early_response = np.zeros((len(clean), round(EARLY_S * sample_rate)), dtype=np.float32)
    early_response[:, 0] = 1.0
    if row["music_in_room"] and responses is not None:
        reference = take_response(row, responses, 0)[:, : early_response.shape[-1]]
        early_response[:, : reference.shape[-1]] = reference
    return RenderedPair(
        recordings=np.stack(takes).astype(np.float32),
        clean=clean[:, lead_in:],
        early=convolve(clean, early_response)[:, lead_in:] if row["music_in_room"] else clean[:, lead_in:],
        early_response=early_response,
        sample_rate=sample_rate,
    )


def loudspeakers(row: Mapping[str, Any], clean: np.ndarray) -> np.ndarray:
    """What the PA makes of the clean mix: (channels, samples) -> the same shape."""
    feed = clean
    if row["crosstalk_db"] > OFF_DB:
        feed = feed + _gain(row["crosstalk_db"]) * feed[::-1]
    if row["spill_db"] > OFF_DB:
        delay = round(row["spill_delay_s"] * row["sample_rate"])
        feed = feed + _gain(row["spill_db"]) * np.pad(feed, ((0, 0), (delay, 0)))[:, : feed.shape[-1]]
    frequencies = equaliser.frequencies(row["sample_rate"])
    gain_db = (
        equaliser.low_shelf(frequencies, row["pa_low_hz"], row["pa_low_db"])
        + equaliser.bell(frequencies, row["pa_mid_hz"], row["pa_mid_db"], 0.6)
        + equaliser.high_shelf(frequencies, row["pa_high_hz"], row["pa_high_db"])
    )
    if row["pa_cut_hz"] > 0.0:
        gain_db = gain_db + equaliser.low_cut(frequencies, row["pa_cut_hz"], 3)
    if not np.any(gain_db) and row["pa_limit_hz"] == 0.0:
        return feed
    return equaliser.apply(feed, equaliser.design(gain_db, row["sample_rate"], row["pa_limit_hz"]))


def take_response(row: Mapping[str, Any], responses: np.ndarray, take: int) -> np.ndarray:
    """The response of one take's microphone with the drawn decay and direct-to-reverberant ratio.

    Args:
        responses: (microphone channels, samples) of the venue, direct path at sample 0.

    Returns:
        (channels, samples) float32; energy up to 2.5 ms over energy after it is 10^(drr_db / 10), channels together.
    """
    sides = [row["rir_left"][take], row["rir_right"][take]][: row["channels"]]
    if max(sides) >= len(responses):
        raise ValueError(f"{row['rir_path']} has {len(responses)} responses, but the row asks for number {max(sides)}")
    response = responses[sides].astype(np.float64)
    response *= np.exp(-row["decay_per_s"] / row["sample_rate"] * np.arange(response.shape[-1]))
    direct = round(DIRECT_S * row["sample_rate"])
    direct_energy = np.square(response[:, :direct]).sum()
    late_energy = np.square(response[:, direct:]).sum()
    if late_energy == 0.0:
        raise ValueError(f"{row['rir_path']} has nothing after its direct path")
    response[:, direct:] *= np.sqrt(direct_energy / late_energy / 10.0 ** (row["drr_db"][take] / 10.0))
    remaining = np.cumsum(np.square(response).sum(axis=0)[::-1])[::-1]
    length = int(np.searchsorted(-remaining, -TAIL_FLOOR * remaining[0]))
    return response[:, : max(length, direct + 1)].astype(np.float32)


def crowd_at(row: Mapping[str, Any], beds: Sequence[NoiseBed], response: np.ndarray | None, take: int) -> np.ndarray:
    """The audience as one take hears it: a part that all takes and channels share, a part of its own -> as the music.

    A part of it comes through the room's late response, since most of the audience is far from the microphone.
    """
    channels = []
    own = 0.5 * np.pi * row["crowd_own"]
    for channel in range(row["channels"]):
        # Multiples of the golden ratio never come close to each other on the loop.
        turn = 0.618034 * (1 + 2 * take + channel)
        channels.append(
            sum(
                _gain(level_db) * (np.cos(own) * bed.piece(0, 0.0) + np.sin(own) * bed.piece(channel, turn))
                for bed, level_db in zip(beds, row["bed_db"], strict=True)
            )
        )
    crowd = np.stack(channels).astype(np.float32)
    if response is None or row["crowd_in_room"] == 0.0:
        return crowd
    late = response.copy()
    late[:, : round(DIRECT_S * row["sample_rate"])] = 0.0
    late /= np.sqrt(np.square(late).sum(axis=-1, keepdims=True)) + 1e-20
    share = row["crowd_in_room"]
    return np.sqrt(1.0 - share) * crowd + np.sqrt(share) * convolve(crowd, late)


def convolve(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Each channel of (channels, samples) with its own response (channels, taps), cut to the input's length."""
    return oaconvolve(waveform, response, axes=-1)[:, : waveform.shape[-1]].astype(np.float32)


def _gain(level_db: float) -> float:
    return float(10.0 ** (level_db / 20.0))


def _power(waveform: np.ndarray) -> float:
    return float(np.mean(np.square(waveform, dtype=np.float64)))


def _level(noise: np.ndarray, lead_in: int, music_power: float, snr_db: float) -> np.ndarray:
    """`noise` at `snr_db` below the music, measured over the excerpt (after the lead-in) and all channels."""
    noise_power = _power(noise[:, lead_in:])
    if noise_power == 0.0:
        return noise
    return noise * np.float32(np.sqrt(music_power / noise_power) * _gain(-snr_db))
