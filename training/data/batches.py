"""Batches of scenes that are rendered while training goes on: workers, order, and a state that resumes exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline_aud2studio.features import BandImage

from .examples import collate, scene_examples
from .scenes import Scene


class Scenes(Protocol):
    """An endless sequence of scenes: a pure function of the row."""

    seed: int

    def __call__(self, row: int) -> Scene: ...


class _Rows(Dataset):
    """Renders the rows of one batch, in a worker."""

    def __init__(self, scenes: Scenes, image: BandImage, chunk_frames: int) -> None:
        self.scenes, self.image, self.chunk_frames = scenes, image, chunk_frames

    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        examples, row_ids = [], []
        for row in rows:
            rng = np.random.default_rng([self.scenes.seed, row, 1])
            found = scene_examples(self.scenes(row), self.image, self.chunk_frames, rng)
            examples += found
            row_ids += [row] * len(found)
        return {"row_id": row_ids, **collate(examples)}


def _keep(batch: Any) -> Any:
    """Leaves a batch as it is; a named function, so that workers can be spawned."""
    return batch


class SceneLoader:
    """Iterates over batches without end, and resumes exactly whatever the number of workers.

    A batch is a dictionary of stacked examples, see :func:`.examples.scene_examples`, and `row_id`, a list.

    Args:
        scenes: What is rendered.
        image, chunk_frames: As the pipeline has them.
        scenes_per_batch: Of one process; a scene gives several examples.
        num_workers: Processes that render; 0: this one does.
        rank, world_size: This process, and how many there are; each renders every `world_size`-th row.
    """

    def __init__(
        self,
        scenes: Scenes,
        image: BandImage,
        chunk_frames: int,
        scenes_per_batch: int,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size} processes")
        self._rows = _Rows(scenes, image, chunk_frames)
        self.scenes_per_batch, self.num_workers = scenes_per_batch, num_workers
        self.rank, self.world_size = rank, world_size
        self.batch = 0  # the next one

    def _batches(self) -> Iterator[list[int]]:
        batch = self.batch
        while True:
            first = batch * self.scenes_per_batch * self.world_size
            yield [first + self.rank + self.world_size * number for number in range(self.scenes_per_batch)]
            batch += 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Goes on from the current position: a second iteration continues where the first one was left."""
        loader = DataLoader(
            self._rows,
            batch_sampler=self._batches(),
            num_workers=self.num_workers,
            collate_fn=_keep,
            pin_memory=torch.cuda.is_available(),  # so that copies to the GPU go on beside its work
        )
        for batch in loader:
            self.batch += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Returns the position after the last batch that was handed out, the same in every process."""
        return {"batch": self.batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on after that position."""
        self.batch = int(state["batch"])
