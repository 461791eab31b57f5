"""Batches for training: rows of a manifest rendered on the fly, or pairs that were rendered ahead.

Both are read in blocks of `batch_size * world_size` rows of one endless sequence, of which each process takes every
`world_size`-th row. So no row is lost or repeated however many processes and workers there are, an epoch ends in the
middle of a batch, and the state is one position in the sequence, the same for all processes.
"""

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline_aud2studio.audio import NORMAL_RMS_DB
from training.degrade import RenderedPair
from training.hub_pairs import ShardSource, locate
from training.manifest import check_header, check_row
from training.pairs import load_pair
from training.prerendered import PrerenderedPairs, StoredPair
from training.sources import Roots

CROP_TRIALS = 4
LEVEL_SPREAD_DB = 4.0  # standard deviation of the level: a part of a long recording is not as loud as the whole
QUIET_DB = -30.0  # a crop this far below its whole excerpt is drawn again
MIN_RMS = 1e-5  # -100 dBFS: what is below it is silence and is not amplified further


@dataclass(frozen=True)
class Position:
    """A place in the endless sequence of rows: `index` counts the rows of the source, including those filtered out."""

    epoch: int = 0
    index: int = 0


@dataclass(frozen=True)
class Item:
    """One row to be rendered, in which epoch, and the position after it."""

    row: Any
    epoch: int
    after: Position


class RowSource(Protocol):
    """A finite sequence of rows that can be entered anywhere."""

    def rows(self, epoch: int, start: int) -> Iterator[tuple[int, Any]]:
        """Index and row, from the index `start` of that epoch on."""

    def pair(self, row: Any) -> RenderedPair | StoredPair:
        """The audio of a row; called in a worker."""

    def seed(self, row: Any) -> tuple[int, int, str]:
        """Seed, row id and condition of a row."""

    def size(self) -> int:
        """Number of rows where the order depends on it, else 0."""


class ManifestSource:
    """Rows streamed from a manifest: a path, a URL or an `hf://` address, in the order in which they were written."""

    def __init__(self, manifest: str | Path, roots: Roots, sample_rate: int, conditions: Sequence[str] | None) -> None:
        self.roots = roots
        self.sample_rate = sample_rate
        self.conditions = conditions
        if "://" not in str(manifest) and not Path(manifest).is_file():
            raise ValueError(f"{manifest} does not exist: write it with training.make_synth_pairs")
        self.stream = datasets.load_dataset("json", data_files=str(manifest), split="train", streaming=True)
        header = next(iter(self.stream), None)
        if header is None or header.get("kind") != "header":
            raise ValueError(f"{manifest} has no header row: it is not a manifest of pairs")
        check_header(header)

    def rows(self, epoch: int, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, row in enumerate(self.stream.skip(start), start=start):
            if row["kind"] == "header":
                continue
            checked = check_row(row)
            if checked["sample_rate"] != self.sample_rate:
                raise ValueError(
                    f"manifest row {row['row_id']} has a sample rate of {row['sample_rate']} Hz, "
                    f"training wants {self.sample_rate}: write the manifest with --sample-rate {self.sample_rate}"
                )
            if not self.conditions or checked["condition"] in self.conditions:
                yield index, checked

    def pair(self, row: Mapping[str, Any]) -> RenderedPair:
        return load_pair(row, self.roots)

    def seed(self, row: Mapping[str, Any]) -> tuple[int, int, str]:
        return row["seed"], row["row_id"], row["condition"]

    def size(self) -> int:
        return 0


class PrerenderedSource:
    """Rows of memory-mapped shards, in another order every epoch."""

    def __init__(
        self, folder: Path, sample_rate: int, conditions: Sequence[str] | None, shuffle_seed: int | None
    ) -> None:
        self.pairs = PrerenderedPairs(folder)
        if self.pairs.sample_rate != sample_rate:
            raise ValueError(
                f"{folder} has a sample rate of {self.pairs.sample_rate} Hz, training wants {sample_rate}"
            )
        self.shuffle_seed = shuffle_seed
        self.numbers = np.array(
            [n for n, row in enumerate(self.pairs.rows) if not conditions or row["condition"] in conditions]
        )

    def rows(self, epoch: int, start: int) -> Iterator[tuple[int, int]]:
        order = self.numbers
        if self.shuffle_seed is not None:
            order = np.random.default_rng([self.shuffle_seed, epoch]).permutation(order)
        for index in range(start, len(order)):
            yield index, int(order[index])

    def pair(self, row: int) -> StoredPair:
        return self.pairs[row]

    def seed(self, row: int) -> tuple[int, int, str]:
        stored = self.pairs.rows[row]
        return stored["seed"], stored["row_id"], stored["condition"]

    def size(self) -> int:
        return len(self.numbers)


def make_example(
    pair: RenderedPair | StoredPair, rng: np.random.Generator, clip_samples: int | None, slots: int
) -> dict[str, Any]:
    """One training example: a random channel, a random crop, and the levels that the network meets in the pipeline.

    Every take comes to the normal level on its own, and the clean excerpt to the level of the recording: how loud the
    direct sound was in a hall nobody can hear, and the pipeline restores the loudness of the input in any case.

    Returns:
        recordings (slots, samples), num_slots, clean (samples), early (samples). Slot 0 is the channel to be
        restored, then the other channel of the same take if there is one, then that channel of the further takes.
    """
    channel = int(rng.integers(len(pair.clean)))
    samples = pair.clean.shape[-1]
    clip_samples = clip_samples or samples
    start = choose_crop(pair.clean[channel], clip_samples, rng)
    recordings, clean, early = pair.crop(start, min(start + clip_samples, samples))
    normal = np.float32(10.0 ** ((NORMAL_RMS_DB + float(rng.normal(0.0, LEVEL_SPREAD_DB))) / 20.0))
    take_rms, clean_rms = pair.levels()
    recordings = recordings * (normal / np.maximum(take_rms, MIN_RMS)).astype(np.float32)[:, None, None]
    clean_gain = normal / np.float32(max(clean_rms, MIN_RMS))
    others = [recordings[0, 1 - channel]] if recordings.shape[1] == 2 else []
    filled = [recordings[0, channel], *others, *recordings[1:, channel]][:slots]
    stack = np.zeros((slots, clip_samples), dtype=np.float32)
    stack[: len(filled), : filled[0].shape[-1]] = filled
    target, early_target = (np.zeros(clip_samples, dtype=np.float32) for _ in range(2))
    target[: clean.shape[-1]] = clean[channel]
    early_target[: clean.shape[-1]] = early[channel]
    return {
        "recordings": stack,
        "num_slots": len(filled),
        "clean": clean_gain * target,
        "early": clean_gain * early_target,
    }


def choose_crop(clean: np.ndarray, clip_samples: int, rng: np.random.Generator) -> int:
    """Start of a crop of (samples,) in which there is music, if a few trials find one."""
    last = len(clean) - clip_samples
    if last <= 0:
        return 0
    whole = np.mean(np.square(clean[:: max(1, len(clean) // 65_536)], dtype=np.float64))
    starts = rng.integers(last + 1, size=CROP_TRIALS)
    for start in starts:
        power = np.mean(np.square(clean[start : start + clip_samples], dtype=np.float64))
        if power > whole * 10.0 ** (QUIET_DB / 10.0):
            break
    return int(start)


@dataclass(frozen=True)
class Block:
    """The rows of one process's batch, and the position after the batches of all processes."""

    items: list[Item]
    after: Position


class _Blocks:
    """The batch sampler: walks the rows from a position and hands each process its share."""

    def __init__(
        self, source: RowSource, start: Position, batch_size: int, rank: int, world_size: int, epochs: int | None
    ) -> None:
        self.source = source
        self.start = start
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.epochs = epochs

    def _items(self) -> Iterator[Item]:
        index = self.start.index
        for epoch in itertools.count(self.start.epoch):
            if self.epochs is not None and epoch >= self.epochs:
                return
            empty = index == 0
            for number, row in self.source.rows(epoch, index):
                empty = False
                yield Item(row, epoch, Position(epoch, number + 1))
            if empty:
                raise ValueError("there are no pairs to train on: the manifest is empty, or no condition fits")
            index = 0

    def __iter__(self) -> Iterator[Block]:
        items = self._items()
        while block := list(itertools.islice(items, self.batch_size * self.world_size)):
            yield Block(block[self.rank :: self.world_size], block[-1].after)


class _Batches(Dataset):
    """Renders one block at a time, in a worker."""

    def __init__(self, source: RowSource, clip_samples: int | None, slots: int) -> None:
        self.source = source
        self.clip_samples = clip_samples
        self.slots = slots

    def __getitems__(self, block: Block) -> tuple[dict[str, Any], Position]:
        examples: list[dict[str, Any]] = []
        row_ids, conditions = [], []
        for item in block.items:
            seed, row_id, condition = self.source.seed(item.row)
            rng = np.random.default_rng([seed, item.epoch])
            examples.append(make_example(self.source.pair(item.row), rng, self.clip_samples, self.slots))
            row_ids.append(row_id)
            conditions.append(condition)
        batch: dict[str, Any] = {"row_id": row_ids, "condition": conditions}
        for key in ("recordings", "clean", "early"):
            batch[key] = torch.from_numpy(np.stack([example[key] for example in examples]))
        batch["num_slots"] = torch.tensor([example["num_slots"] for example in examples])
        return batch, block.after


def _keep(batch: Any) -> Any:
    """Batches come out of `_Batches` as they are; a named function, so that workers can be spawned."""
    return batch


class PairLoader:
    """Endless (or `epochs` long) iterator of batches that resumes exactly, whatever the number of workers.

    A batch is a dictionary of recordings (batch, slots, samples), zero where there is none; num_slots (batch,); clean
    and early (batch, samples); row_id and condition, lists.
    """

    def __init__(
        self,
        source: RowSource,
        *,
        batch_size: int,
        clip_samples: int | None,
        slots: int,
        num_workers: int,
        rank: int,
        world_size: int,
        epochs: int | None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size} processes")
        self.source = source
        self.batch_size = batch_size
        self.clip_samples = clip_samples
        self.slots = slots
        self.num_workers = num_workers
        self.rank = rank
        self.world_size = world_size
        self.epochs = epochs
        self.position = Position()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """From the current position: a second iteration goes on where the first one was left."""
        loader = DataLoader(
            _Batches(self.source, self.clip_samples, self.slots),
            batch_sampler=_Blocks(  # type: ignore[arg-type]
                self.source, self.position, self.batch_size, self.rank, self.world_size, self.epochs
            ),
            num_workers=self.num_workers,
            collate_fn=_keep,
            pin_memory=torch.cuda.is_available(),  # so that copies to the GPU go on beside its work
        )
        for batch, after in loader:
            self.position = after
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position after the last batch that was handed out, the same in every process."""
        return {"epoch": self.position.epoch, "index": self.position.index, "size": self.source.size()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on after that position. If a folder has grown meanwhile, a new epoch begins, with a warning."""
        self.position = Position(int(state["epoch"]), int(state["index"]))
        if state["size"] != self.source.size():
            warnings.warn(
                f"the folder had {state['size']} pairs and has {self.source.size()}: a new epoch begins", stacklevel=2
            )
            self.position = Position(self.position.epoch + 1, 0)


def make_loader(
    source: str | Path,
    roots: Roots | None = None,
    *,
    batch_size: int,
    clip_seconds: float | None = None,
    sample_rate: int = 44_100,
    slots: int = 4,
    conditions: Sequence[str] | None = None,
    shuffle_seed: int | None = None,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    epochs: int | None = None,
) -> PairLoader:
    """Batches of a manifest, or of a folder that make_synth_pairs wrote with `--memmap`.

    Args:
        source: the folder; or the manifest's path, URL or `hf://` address, which also needs `roots`; or Parquet
            shards of `training.push_dataset`, which need nothing else. `hf://datasets/ORG/NAME` means what is there.
        clip_seconds: length of the random crops; None for the whole excerpts, which then must be equally long.
        slots: recordings that the network takes; further ones are left out.
        conditions: the only ones to be used; None for all.
        shuffle_seed: orders the rows of a folder anew every epoch; None keeps them. Manifests are always read in
            order: their rows are random already.
        rank, world_size: this process, and how many there are.
        epochs: None for an endless iteration.
    """
    if "://" not in str(source) and Path(source).is_dir():
        rows: RowSource = PrerenderedSource(Path(source), sample_rate, conditions, shuffle_seed)
    elif (source := locate(str(source))).endswith(".parquet"):
        rows = ShardSource(source, sample_rate, conditions)
    elif roots is None:
        raise ValueError(f"{source} is no folder of rendered pairs; a manifest needs the folders of music and rooms")
    else:
        rows = ManifestSource(source, roots, sample_rate, conditions)
    return PairLoader(
        rows,
        batch_size=batch_size,
        clip_samples=None if clip_seconds is None else round(clip_seconds * sample_rate),
        slots=slots,
        num_workers=num_workers,
        rank=rank,
        world_size=world_size,
        epochs=epochs,
    )
