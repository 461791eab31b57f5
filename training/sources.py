"""Reading excerpts of music, responses and noise at the sample rate that is wanted, deterministic to the sample."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import soundfile
import soxr

DIRECT_S = 0.0025  # the direct path: the first 2.5 ms of a response, as in the usual definition of the DRR
LOOP_FADE_S = 0.02


@dataclass(frozen=True)
class Roots:
    """The folders that the paths of a manifest are relative to."""

    clean_music_dir: Path
    rir_dir: Path
    noise_dir: Path
    pairs_dir: Path | None = None  # recordings of real and of rendered pairs


def inside(root: Path | None, relative: str) -> Path:
    """A manifest's path below its root; ValueError if it is absolute, leaves the root or names no file."""
    path = PurePosixPath(relative)
    if not relative or path.is_absolute() or ".." in path.parts or "\\" in relative or ":" in path.parts[0]:
        raise ValueError(f"path {relative!r} is not a plain path relative to the data folder")
    if root is None:
        raise ValueError(f"path {relative!r} belongs to a pair of recordings, but no folder of pairs was given")
    if not (root / path).is_file():
        raise ValueError(f"{root / path} does not exist: prepare the data, or point to the folder that holds it")
    return root / path


def read_span(path: Path, start_s: float, seconds: float, sample_rate: int) -> np.ndarray:
    """`seconds` of a file from `start_s`, zero-padded past either end -> (channels, round(seconds * sample_rate))."""
    samples = round(seconds * sample_rate)
    with soundfile.SoundFile(path) as file:
        first = round(start_s * file.samplerate)
        wanted = -(-samples * file.samplerate // sample_rate)
        file.seek(min(max(first, 0), file.frames))
        waveform = file.read(max(wanted + min(first, 0), 0), dtype="float32", always_2d=True)
        waveform = np.pad(waveform, ((max(-first, 0), 0), (0, 0)))
        if file.samplerate != sample_rate:
            waveform = soxr.resample(waveform, file.samplerate, sample_rate)
    waveform = waveform[:samples].T
    return np.pad(waveform, ((0, 0), (0, samples - waveform.shape[-1])))


def read_music(row: Mapping[str, Any], roots: Roots) -> np.ndarray:
    """The clean excerpt of a manifest row with its lead-in -> (row's channels, lead-in + samples) float32."""
    start_s = row["music_offset_s"] - row["lead_in_s"]
    seconds = row["lead_in_s"] + row["seconds"]
    paths = row["music_stems"] or [row["music_path"]]
    stems = [read_span(inside(roots.clean_music_dir, path), start_s, seconds, row["sample_rate"]) for path in paths]
    channels = max(len(stem) for stem in stems)
    mix = np.sum([np.broadcast_to(stem, (channels, stem.shape[-1])) for stem in stems], axis=0)
    if row["channels"] == 1:
        return mix.mean(axis=0, keepdims=True)
    return np.ascontiguousarray(np.broadcast_to(mix[:2], (2, mix.shape[-1])))


def read_responses(path: Path, sample_rate: int) -> np.ndarray:
    """All responses of a venue's file -> (channels, samples), direct path at sample 0, positive and of unit energy."""
    responses, file_rate = soundfile.read(path, dtype="float32", always_2d=True)
    if file_rate != sample_rate:
        guard_s = 0.01  # a multiple of a sample at every usual rate, so that the direct path stays on the grid
        padded = np.pad(responses, ((round(guard_s * file_rate), 0), (0, 0)))
        responses = soxr.resample(padded, file_rate, sample_rate)[round(guard_s * sample_rate) :]
    responses = responses.T
    energy = np.square(responses[:, : round(DIRECT_S * sample_rate)]).sum(axis=1, keepdims=True)
    if not np.all(energy > 0.0):
        raise ValueError(f"{path} has a response without a direct path in its first 2.5 ms")
    return responses * np.sign(responses[:, :1] + 1e-20) / np.sqrt(energy)


class NoiseBed:
    """A noise recording as an endless loop of unit RMS, of which takes and channels get equal or different pieces."""

    def __init__(self, path: Path, offset_s: float, samples: int, sample_rate: int) -> None:
        """Reads up to twice the `samples` that are needed, from `offset_s` (wrapped into the file)."""
        with soundfile.SoundFile(path) as file:
            seconds = file.frames / file.samplerate
        wanted_s = 2.0 * samples / sample_rate
        offset_s = offset_s % seconds if seconds <= wanted_s else offset_s % (seconds - wanted_s)
        if seconds <= wanted_s:
            loop = np.roll(read_span(path, 0.0, seconds, sample_rate), -round(offset_s * sample_rate), axis=-1)
        else:
            loop = read_span(path, offset_s, wanted_s, sample_rate)
        fade = min(round(LOOP_FADE_S * sample_rate), loop.shape[-1] // 4)
        ramp = np.sqrt(np.linspace(0.0, 1.0, fade, dtype=np.float32))
        head = loop[:, :fade] * ramp + loop[:, loop.shape[-1] - fade :] * ramp[::-1]
        joined = np.concatenate([head, loop[:, fade : loop.shape[-1] - fade]], axis=-1)
        self.loop = joined / (np.sqrt(np.mean(np.square(joined))) + 1e-12)
        self.samples = samples

    def piece(self, channel: int, turn: float) -> np.ndarray:
        """(samples,) of one channel (wrapped), begun at the fraction `turn` of the loop."""
        loop = self.loop[channel % len(self.loop)]
        start = round((turn % 1.0) * len(loop))
        return np.resize(np.roll(loop, -start), self.samples)
