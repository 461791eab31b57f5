"""Crops of clean music for the vocoder. Example `i` of a seed is always the same: a run can resume anywhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.sources import inside, read_span

SILENCE_RMS = 10 ** (-55 / 20)  # crops below are drawn again: scaled up they would be a codec's noise
MAX_PEAK = 0.98
MAX_DRAWS = 20

Tensors = Generator[torch.Tensor, None, None]


class MusicCrops:
    """Random mono crops of tracks, each at a random level.

    Args:
        rows: Inventory rows; a track is drawn with a probability proportional to its length.
        root: Folder that the rows' paths are relative to.
        num_samples: Length of a crop.
        sample_rate: Of the crops, in Hz.
        seed: Of the draws.
        level_range_db: RMS of the crops in dB relative to full scale, drawn uniformly from this range; a crop
            whose peak would pass 0.98 is brought down to it. `None` leaves the levels.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        root: Path,
        num_samples: int,
        sample_rate: int,
        seed: int,
        level_range_db: tuple[float, float] | None = None,
    ) -> None:
        self.seconds = num_samples / sample_rate
        self.rows = [row for row in rows if row["seconds"] > self.seconds]
        if not self.rows:
            raise ValueError(f"No track in the inventory of {root} is longer than the {self.seconds:.2f} s of a crop.")
        self.root, self.num_samples, self.sample_rate = root, num_samples, sample_rate
        self.seed, self.level_range_db = seed, level_range_db
        lengths = np.array([row["seconds"] for row in self.rows])
        self._shares = lengths / lengths.sum()

    def __getitem__(self, index: int) -> np.ndarray:
        """Crop number `index`, float32 (num_samples,)."""
        rng = np.random.default_rng((self.seed, index))
        for _ in range(MAX_DRAWS):
            row = self.rows[rng.choice(len(self.rows), p=self._shares)]
            start_s, channel = rng.uniform(0, row["seconds"] - self.seconds), rng.uniform()
            stems = [self._read(path, start_s, channel) for path in row.get("stems") or [row["path"]]]
            crop = np.stack(stems).sum(axis=0)
            rms = float(np.sqrt(np.mean(crop**2)))
            if rms > SILENCE_RMS:
                return self._scale(crop, rms, rng)
        raise ValueError(f"{MAX_DRAWS} crops in a row were silent: check the tracks below {self.root}.")

    def _read(self, path: str, start_s: float, channel: float) -> np.ndarray:
        waveform = read_span(inside(self.root, path), start_s, self.seconds, self.sample_rate)
        return waveform[int(channel * len(waveform)), : self.num_samples]

    def _scale(self, crop: np.ndarray, rms: float, rng: np.random.Generator) -> np.ndarray:
        gain = 1.0
        if self.level_range_db is not None:
            gain = 10 ** (rng.uniform(*self.level_range_db) / 20) / rms
        return crop * np.float32(min(gain, MAX_PEAK / np.abs(crop).max()))


def batches(crops: MusicCrops, first: int, last: int, batch_size: int, num_threads: int) -> Tensors:
    """Batches (batch_size, num_samples) number `first` to `last` - 1, decoded ahead by threads.

    Threads, not processes: decoding and resampling let go of Python's lock, and a signal reaches one process only.
    """

    def read(batch: int) -> torch.Tensor:
        start = batch * batch_size
        return torch.from_numpy(np.stack([crops[index] for index in range(start, start + batch_size)]))

    return ahead(read, range(first, last), num_threads)


def ahead(read: Callable[[int], torch.Tensor], numbers: range, num_threads: int) -> Tensors:
    """`read(number)` for every number in order, a few of them begun ahead of their turn."""
    pending: deque[Future[torch.Tensor]] = deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="decode") as pool:
        try:
            for number in numbers:
                pending.append(pool.submit(read, number))
                if len(pending) > 2 * num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
