"""Pairs rendered once to memory-mapped 16-bit shards, so that training spends no time on rendering.

A folder holds, for every shard of rows, `shard-ROWID.npy` (tracks, samples) int16: a row's recordings, take by take
and channel by channel, then its clean channels; `shard-ROWID.early.npy` (clean channels, 50 ms) float32: the early
part of the reference's response, from which the early target is made again; and `shard-ROWID.json`, which says what is
where. The index is written last: a shard without one does not count.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from training.degrade import RenderedPair, convolve, render, rms
from training.sources import Roots

FORMAT = 1
FULL_SCALE = 32_767.0


@dataclass(frozen=True)
class StoredPair:
    """One row of a shard; nothing is read before `crop`."""

    tracks: np.ndarray  # (takes * channels + channels, samples) int16, memory-mapped
    early_response: np.ndarray  # (channels, 50 ms)
    scales: Sequence[float]  # what a track's full scale stands for
    num_takes: int
    channels: int

    @property
    def clean(self) -> np.ndarray:
        """(channels, samples) in the units of the file, for levels only."""
        return self.tracks[self.num_takes * self.channels :]

    def levels(self) -> tuple[np.ndarray, float]:
        """RMS of every recording (takes,) and of the clean excerpt, over all channels and samples."""
        power = np.square(rms(self.tracks, (1,)) * np.asarray(self.scales) / FULL_SCALE)  # of every track
        takes = power[: self.num_takes * self.channels].reshape(self.num_takes, self.channels)
        return np.sqrt(takes.mean(axis=1)), float(np.sqrt(power[self.num_takes * self.channels :].mean()))

    def crop(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Recordings (takes, channels, stop - start), clean and early (channels, stop - start), float32."""
        before = min(start, self.early_response.shape[-1])
        scales = np.asarray(self.scales, dtype=np.float32)[:, None] / np.float32(FULL_SCALE)
        span = self.tracks[:, start - before : stop] * scales
        clean = span[self.num_takes * self.channels :]
        early = convolve(clean, self.early_response)[:, before:]
        recordings = span[: self.num_takes * self.channels, before:]
        return recordings.reshape(self.num_takes, self.channels, stop - start), clean[:, before:], early


class PrerenderedPairs:
    """All rows of a folder of shards, in the order of their row ids."""

    def __init__(self, folder: Path) -> None:
        indexes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("shard-*.json"))]
        if not indexes:
            raise ValueError(f"{folder} has no rendered shards: write them with make_synth_pairs --memmap")
        if any(index["format"] != FORMAT for index in indexes):
            raise ValueError(f"{folder} was written by another version: render it again")
        if len({(index["sample_rate"], index["samples"]) for index in indexes}) > 1:
            raise ValueError(f"{folder} mixes shards of different sample rates or lengths")
        self.sample_rate: int = indexes[0]["sample_rate"]
        self.samples: int = indexes[0]["samples"]
        self.rows: list[dict[str, Any]] = [
            {**row, "shard": folder / index["name"]} for index in indexes for row in index["rows"]
        ]
        self._shards: dict[Path, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> StoredPair:
        row = self.rows[number]
        name: Path = row["shard"]
        if name not in self._shards:
            self._shards[name] = (
                np.load(name.with_suffix(".npy"), mmap_mode="r"),
                np.load(name.with_suffix(".early.npy"), mmap_mode="r"),
            )
        tracks, early = self._shards[name]
        count = (row["num_takes"] + 1) * row["channels"]
        return StoredPair(
            tracks=tracks[row["first_track"] : row["first_track"] + count],
            early_response=early[row["first_clean"] : row["first_clean"] + row["channels"]],
            scales=row["scales"],
            num_takes=row["num_takes"],
            channels=row["channels"],
        )


def write(
    folder: Path, rows: Sequence[Mapping[str, Any]], roots: Roots, *, rows_per_shard: int = 32, num_workers: int = 1
) -> None:
    """Render `rows` into shards of `folder`; shards that are there already are checked and kept.

    Raises:
        ValueError: a shard in the folder was rendered from other rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = []
    for start in range(0, len(rows), rows_per_shard):
        part = rows[start : start + rows_per_shard]
        index = folder / f"{_shard_name(part)}.json"
        if not index.exists():
            missing.append(part)
        elif json.loads(index.read_text(encoding="utf-8")).get("digest") != _digest(part):
            raise ValueError(f"{index} was rendered from other rows: remove the folder, or choose another")
    done = len(rows) - sum(map(len, missing))
    with tqdm(total=len(rows), initial=done, desc="rendering", unit="row") as bar:
        for count in _each(missing, folder, roots, num_workers):
            bar.update(count)


def _each(parts: list[Sequence[Mapping[str, Any]]], folder: Path, roots: Roots, num_workers: int) -> Iterator[int]:
    if num_workers <= 1:
        yield from (_write_shard(folder, part, roots) for part in parts)
        return
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_write_shard, folder, part, roots) for part in parts]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _shard_name(rows: Sequence[Mapping[str, Any]]) -> str:
    return f"shard-{rows[0]['row_id']:08d}"


def _digest(rows: Sequence[Mapping[str, Any]]) -> str:
    """Tells shards of different rows apart, down to the last parameter."""
    return hashlib.sha256(json.dumps(list(map(dict, rows)), sort_keys=True).encode()).hexdigest()


def _write_shard(folder: Path, rows: Sequence[Mapping[str, Any]], roots: Roots) -> int:
    """Render one shard; returns its number of rows."""
    tracks: list[np.ndarray] = []
    early: list[np.ndarray] = []
    stored: list[dict[str, Any]] = []
    for row in rows:
        pair = render(row, roots)
        scales, quantised = _quantise(pair)
        stored.append(
            {
                "row_id": row["row_id"],
                "seed": row["seed"],
                "condition": row["condition"],
                "num_takes": row["num_takes"],
                "channels": row["channels"],
                "first_track": sum(map(len, tracks)),
                "first_clean": sum(map(len, early)),
                "scales": scales,
            }
        )
        tracks.append(quantised)
        early.append(pair.early_response)
    name = _shard_name(rows)
    _save(folder / f"{name}.npy", np.concatenate(tracks))
    _save(folder / f"{name}.early.npy", np.concatenate(early))
    index = {
        "format": FORMAT,
        "name": name,
        "sample_rate": rows[0]["sample_rate"],
        "samples": tracks[0].shape[-1],
        "digest": _digest(rows),
        "rows": stored,
    }
    part = folder / f"{name}.json.part"
    part.write_text(json.dumps(index), encoding="utf-8")
    os.replace(part, folder / f"{name}.json")
    return len(rows)


def _quantise(pair: RenderedPair) -> tuple[list[float], np.ndarray]:
    """Every track of a pair at its own full scale -> scales, (tracks, samples) int16."""
    waveforms = np.concatenate([pair.recordings.reshape(-1, pair.clean.shape[-1]), pair.clean])
    scales = np.abs(waveforms).max(axis=-1) + 1e-9
    return scales.tolist(), np.round(waveforms / scales[:, None] * FULL_SCALE).astype(np.int16)


def _save(path: Path, array: np.ndarray) -> None:
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        np.save(file, array)
    os.replace(part, path)
