"""Many recordings: which process restores which, and a report of what became of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from .files import SUBTYPES_WRITTEN, SUFFIXES_READ, atomic_path


@dataclass(frozen=True)
class Job:
    """Takes of one performance, the first of which is restored, and the file that the result goes to."""

    inputs: tuple[Path, ...]
    output: Path


def plan_jobs(inputs: Sequence[Path], save: Path) -> list[Job]:
    """List what to restore, and to where; of a folder with all that is below it.

    Raises:
        ValueError: a folder among several inputs, a folder without audio, or names that would collide.
    """
    folders = [path for path in inputs if path.is_dir()]
    if not folders:
        return [Job(tuple(inputs), save)]
    if len(inputs) > 1:
        raise ValueError(f"--inputs takes one folder or several files, not {folders[0]} among others")
    folder = folders[0]
    found = [*_audio_files(folder, save)]
    if not found:
        raise ValueError(f"{folder} holds no audio files")
    if not save.is_dir():
        raise ValueError(f"{save} is not a folder: for a folder of recordings, --save names an existing one")
    jobs = []
    taken: dict[Path, Path] = {}
    for path in found:
        suffix = path.suffix.lower() if path.suffix.lower() in SUBTYPES_WRITTEN else ".flac"
        output = save / path.relative_to(folder).parent / f"{path.stem}{suffix}"
        if output in taken:
            raise ValueError(f"{taken[output]} and {path} would both be written to {output}: rename one of them")
        taken[output] = path
        jobs.append(Job((path,), output))
    return jobs


def _audio_files(folder: Path, save: Path) -> Iterator[Path]:
    """Audio files in a folder and all below it, in order, without what is hidden and what was restored before."""
    for root, folders, names in os.walk(folder):
        here = Path(root)
        is_output = save.is_dir() and save.resolve() != folder.resolve()
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not (is_output and (here / name).resolve() == save.resolve())
        )
        for name in sorted(names):
            path = here / name
            if path.is_file() and path.suffix.lower() in SUFFIXES_READ and not name.startswith("."):
                yield path


def place() -> tuple[int, int]:
    """This process's number and how many there are, as `accelerate launch`, torchrun or srun says; else 0 of 1."""
    if (state := _state()) is not None:
        return state.process_index, state.num_processes
    return int(os.environ.get("SLURM_PROCID", "0")), int(os.environ.get("SLURM_NTASKS", "1"))


def device() -> str:
    """The device that is this process's own."""
    state = _state()
    return "auto" if state is None else str(state.device)


def wait_for_others() -> None:
    """Returns when all processes have come here: launchers end the others as soon as one ends with an error."""
    if (state := _state()) is not None:
        state.wait_for_everyone()


def _state() -> Any:
    """accelerate's state, if a launcher started several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    import torch
    from accelerate import PartialState

    # A process that is done waits for one that has a week of work left.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=365))


class Report:
    """A JSON list with an entry for every recording, whole on the disk after each of them.

    Entries of an earlier run are kept, so that a run that goes on has one report; a recording that is tried again
    replaces its entry. Every process writes its own, beside those of the others.
    """

    def __init__(self, path: Path, rank: int, num_processes: int) -> None:
        if num_processes > 1:
            path = path.with_name(f"{path.stem}-{rank}{path.suffix}")
        self._path = path
        self._entries: dict[str, dict[str, Any]] = {}
        if path.is_file():
            try:
                self._entries = {entry["inputs"][0]: entry for entry in json.loads(path.read_text(encoding="utf-8"))}
            except (ValueError, TypeError, KeyError, IndexError):
                raise ValueError(f"{path} exists and is no report of this program: choose another name") from None

    def add(self, inputs: Sequence[Path], output: Path | None, **facts: Any) -> None:
        """Adds a recording: `status` is "restored" if it has an output, else "failed"."""
        entry = {"inputs": [str(path) for path in inputs], "status": "failed" if output is None else "restored"}
        if output is not None:
            entry["output"] = str(output)
        self._entries[entry["inputs"][0]] = {**entry, **facts}
        with atomic_path(self._path) as temporary:
            temporary.write_text(json.dumps([*self._entries.values()], indent=1) + "\n", encoding="utf-8")
