"""Recordings whose alignment is known: several microphones in one hall, and other performances of the same piece.

A case is a concert of test music in a simulated test venue, heard by two to four recorders with their own position,
crowd, device, clock, polarity, start and stop. The truth is the arrival of the nearer loudspeaker's direct sound, on
which the responses under `rir_dir` are trimmed. An impostor pair is two such recordings of different performances:
of different pieces, or of one piece played faster or slower, transposed, or from the same score by other hands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from scipy.signal import oaconvolve

from training import device
from training.jsonl import read_rows
from training.rooms import DIRECT_S
from training.score import perform
from training.sources import Roots, inside

SAMPLE_RATE = 44100
CROWD_KINDS = ("applause", "cheering", "whistles", "babble", "chatter", "crowd")
FILE_RATES = (44100, 48000)
REPLAYS = ("other tempo", "transposed", "same score")
VENUES = 100  # the test venues among the first 1000 that are simulated: further ones change no case
MAX_TAKES = 4
BLOCK = 2**21
PAUSE_S = (2.0, 10.0)


@dataclass(frozen=True)
class Take:
    """One recorder.

    Attributes:
        start_s: when it is started on the concert's clock.
        drift_ppm: how much faster than the concert's its clock runs.
        sample_rate: of its file, in Hz.
    """

    start_s: float
    seconds: float
    drift_ppm: float
    polarity: int
    snr_db: float
    sample_rate: int
    device: device.Device


@dataclass(frozen=True)
class Library:
    """Rows of the test split under the data roots."""

    roots: Roots
    music: Sequence[Mapping[str, Any]]
    venues: Sequence[Mapping[str, Any]]
    crowds: Sequence[Mapping[str, Any]]

    @classmethod
    def load(cls, data: Path) -> Library:
        """The test split under `data`: at least two pieces, a venue of two microphones, a crowd for every recorder.

        Raises:
            ValueError: something is missing; the message names the command that prepares it.
        """
        roots = Roots(data / "clean", data / "rirs", data / "noise")
        music = [row for row in read_rows(data / "clean" / "inventory.jsonl") if row["split"] == "test"]
        venues = [
            row
            for row in read_rows(data / "rirs" / "index.jsonl")
            if row["split"] == "test" and row["kind"] == "simulated" and row["num_mics"] >= 2
        ]
        venues = sorted(venues, key=lambda row: row["path"])[:VENUES]
        crowds = [row for row in read_rows(data / "noise" / "index.jsonl") if row["kind"] in CROWD_KINDS]
        for name, rows, least, command in (
            ("pieces of test music", music, 2, "training.corpora"),
            ("simulated test venues", venues, 1, "training.prepare_rirs"),
            ("beds of crowd noise", crowds, MAX_TAKES, "training.crowd"),
        ):
            if len(rows) < least:
                raise ValueError(f"too few {name} under {data} ({len(rows)}): run python -m {command} first")
        return cls(roots, music, venues, crowds)


@cache
def read_resampled(path: Path, mono: bool) -> np.ndarray:
    """A file at `SAMPLE_RATE`, float32 (samples,) if mono, (channels, samples) else; kept, as all cases share them."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(axis=1) if mono else samples, rate, SAMPLE_RATE).T


def read_track(library: Library, row: Mapping[str, Any]) -> np.ndarray:
    """A piece as both loudspeakers play it: the mean of its channels, its stems summed, (samples,) of unit RMS."""
    mix = np.zeros(0, dtype=np.float32)
    for path in row.get("stems") or [row["path"]]:
        mono = read_resampled(inside(library.roots.clean_music_dir, path), True)
        mix = np.pad(mix, (0, max(len(mono) - len(mix), 0)))
        mix[: len(mono)] += mono
    return mix / (np.sqrt(np.mean(np.square(mix))) + 1e-9)


def programme(rng: np.random.Generator, library: Library, seconds: float) -> np.ndarray:
    """A concert: pieces in random order with pauses, (samples,) of `seconds`."""
    pieces: list[np.ndarray] = []
    missing = round(seconds * SAMPLE_RATE)
    while missing > 0:
        for index in rng.permutation(len(library.music)):
            pause = np.zeros(round(rng.uniform(*PAUSE_S) * SAMPLE_RATE), dtype=np.float32)
            pieces += [read_track(library, library.music[int(index)]), pause]
            missing -= len(pieces[-2]) + len(pause)
            if missing <= 0:
                break
    return np.concatenate(pieces)[: round(seconds * SAMPLE_RATE)]


def draw_take(rng: np.random.Generator, start_s: float, seconds: float, drift_ppm: float) -> Take:
    return Take(
        start_s=start_s,
        seconds=seconds,
        drift_ppm=drift_ppm,
        polarity=int(rng.choice((-1, 1))),
        snr_db=float(rng.uniform(5.0, 20.0)),
        sample_rate=int(rng.choice(FILE_RATES)),
        device=device.Device(**device.draw(rng)),
    )


def responses_of(library: Library, venue: Mapping[str, Any]) -> list[np.ndarray]:
    """Responses of a venue's microphones, (channels, samples) each, from the direct sound on."""
    samples, rate = soundfile.read(inside(library.roots.rir_dir, venue["path"]), dtype="float32", always_2d=True)
    if rate != SAMPLE_RATE:
        raise ValueError(f"{venue['path']} has {rate} Hz, the cases are made at {SAMPLE_RATE} Hz")
    return list(samples.T.reshape(venue["num_mics"], venue["mic_channels"], -1))


def direct_to_reverberant_db(response: np.ndarray) -> float:
    energy = np.square(response.astype(np.float64)).sum(axis=0)
    split = round(DIRECT_S * SAMPLE_RATE)
    return float(10 * np.log10(energy[:split].sum() / energy[split:].sum()))


def record(
    rng: np.random.Generator, library: Library, concert: np.ndarray, response: np.ndarray, take: Take
) -> np.ndarray:
    """What the recorder's file holds, (channels, samples) at its sample rate.

    Args:
        concert: (samples,) what the loudspeakers play, from the concert's time 0 on.
        response: (channels, samples) of the room, sample 0 is the direct sound.
    """
    start = round(take.start_s * SAMPLE_RATE)
    stop = start + round(take.seconds * SAMPLE_RATE)
    heard = convolve(concert[start:stop], response)
    crowd = crowd_around(rng, library, heard.shape)
    level = np.sqrt(np.mean(np.square(heard))) / np.sqrt(np.mean(np.square(crowd)))
    crowd *= level * 10 ** (-take.snr_db / 20)
    heard += crowd
    recorded = device.record(heard, SAMPLE_RATE, take.device)
    rate = take.sample_rate * (1 + take.drift_ppm * 1e-6)
    recorded = soxr.resample(recorded.T, SAMPLE_RATE, rate, quality="VHQ").T
    recorded *= take.polarity * 0.5 / np.abs(recorded).max()
    return recorded


def convolve(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """(samples,) with (channels, taps) -> (channels, samples) float32, in blocks, as concerts are long."""
    out = np.zeros((len(response), len(waveform)), dtype=np.float32)
    for start in range(0, len(waveform), BLOCK):
        piece = oaconvolve(waveform[None, start : start + BLOCK], response, axes=-1)
        out[:, start : start + piece.shape[-1]] += piece[:, : len(waveform) - start]
    return out


def crowds_apart(library: Library, count: int) -> list[Library]:
    """The library with the crowds of each of several recorders: a bed that two of them drew would be a match of its
    own, at another lag than the music's."""
    return [replace(library, crowds=library.crowds[number::count]) for number in range(count)]


def crowd_around(rng: np.random.Generator, library: Library, shape: tuple[int, int]) -> np.ndarray:
    """The people next to a recorder: one bed after the other, each at its own level, (channels, samples)."""
    channels, samples = shape
    out = np.zeros(shape, dtype=np.float32)
    start, fade = 0, SAMPLE_RATE // 2
    while start < samples:
        row = library.crowds[int(rng.integers(len(library.crowds)))]
        bed = read_resampled(inside(library.roots.noise_dir, row["path"]), False)
        bed = bed[np.arange(channels) % len(bed)]
        bed *= 10 ** (rng.uniform(-6.0, 6.0) / 20) / (np.sqrt(np.mean(np.square(bed))) + 1e-9)
        ramp = np.minimum(1.0, np.arange(1, bed.shape[1] + 1) / fade)
        bed *= np.sqrt(ramp * ramp[::-1])
        piece = out[:, start : start + bed.shape[1]]
        piece += bed[:, : piece.shape[1]]
        start += max(bed.shape[1] - fade, fade)
    return out


def make_case(
    seed: int, library: Library, minutes: tuple[float, float], max_offset_min: float, max_drift_ppm: float
) -> tuple[list[Take], list[np.ndarray], dict[str, Any]]:
    """A concert heard by two to four recorders. The first one's clock is the concert's.

    Returns:
        The takes, their files' samples (channels, samples), and what else describes the case.
    """
    rng = np.random.default_rng([seed, 1])
    venue = library.venues[int(rng.integers(len(library.venues)))]
    responses = responses_of(library, venue)
    chosen = rng.permutation(len(responses))[: rng.integers(2, min(len(responses), MAX_TAKES) + 1)]
    lengths_s = 60 * rng.uniform(*minutes, len(chosen))
    # Two minutes at least are shared with the first recording, or half of what the shortest has.
    shared_s = min(120.0, 0.5 * float(lengths_s.min()))
    offsets_s = [0.0] + [
        float(
            np.clip(rng.uniform(-60 * max_offset_min, 60 * max_offset_min), shared_s - length, lengths_s[0] - shared_s)
        )
        for length in lengths_s[1:]
    ]
    origin_s = min(offsets_s)
    drifts = [0.0, *rng.uniform(-max_drift_ppm, max_drift_ppm, len(chosen) - 1).tolist()]
    takes = [
        draw_take(rng, offset - origin_s, float(length), drift)
        for offset, length, drift in zip(offsets_s, lengths_s, drifts, strict=True)
    ]
    concert = programme(rng, library, max(take.start_s + take.seconds for take in takes) + 1.0)
    files = [
        record(np.random.default_rng([seed, 2, number]), crowd, concert, responses[mic], take)
        for number, (mic, take, crowd) in enumerate(zip(chosen, takes, crowds_apart(library, len(takes)), strict=True))
    ]
    ratios = [direct_to_reverberant_db(responses[mic]) for mic in chosen]
    return takes, files, {"venue": venue["venue"], "t20_s": venue["t20_s"], "drr_db": ratios}


def make_impostors(
    seed: int, library: Library, minutes: tuple[float, float]
) -> tuple[list[np.ndarray], list[int], dict[str, Any]]:
    """Recordings of two different performances; of one piece for odd seeds, of two for even ones.

    Returns:
        Both files' samples (channels, samples), their sample rates, and what describes the pair.
    """
    rng = np.random.default_rng([seed, 3])
    seconds = 60 * float(rng.uniform(*minutes))
    if seed % 2 == 0:
        kind = "other piece"
        first, second = rng.permutation(len(library.music))[:2]
        concerts = [read_track(library, library.music[int(index)]) for index in (first, second)]
    else:
        kind = REPLAYS[seed // 2 % len(REPLAYS)]
        concerts = replay(rng, library, kind, seconds)
    # On tour, or two nights in one hall.
    first_venue = library.venues[int(rng.integers(len(library.venues)))]
    venues = [
        first_venue,
        first_venue if rng.random() < 0.5 else library.venues[int(rng.integers(len(library.venues)))],
    ]
    files, rates = [], []
    nights = zip(concerts, venues, crowds_apart(library, len(concerts)), strict=True)
    for number, (concert, venue, crowd) in enumerate(nights):
        responses = responses_of(library, venue)
        take = draw_take(rng, 0.0, min(seconds, len(concert) / SAMPLE_RATE), float(rng.uniform(-150, 150)))
        response = responses[rng.integers(len(responses))]
        files.append(record(np.random.default_rng([seed, 4, number]), crowd, concert, response, take))
        rates.append(take.sample_rate)
    return files, rates, {"played": kind, "same_hall": venues[0] is venues[1]}


def replay(rng: np.random.Generator, library: Library, kind: str, seconds: float) -> list[np.ndarray]:
    """Two performances of one piece, (samples,) each."""
    if kind == "same score":
        score_seed = int(rng.integers(2**31))
        return [perform(score_seed, int(rng.integers(2**31)), seconds, SAMPLE_RATE) for _ in range(2)]
    from librosa.effects import pitch_shift, time_stretch

    piece = read_track(library, library.music[int(rng.integers(len(library.music)))])[: round(seconds * SAMPLE_RATE)]
    if kind == "other tempo":
        rate = 1 + float(rng.choice((-1, 1)) * rng.uniform(0.005, 0.08))
        return [piece, time_stretch(piece, rate=rate)]
    steps = float(rng.choice((-1, 1)) * rng.integers(1, 4))
    return [piece, pitch_shift(piece, sr=SAMPLE_RATE, n_steps=steps)]
