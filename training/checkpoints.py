"""Checkpoints: folders `checkpoint-STEP` of safetensors and JSON that appear whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import Parameter

from pipeline_aud2studio.files import atomic_folder, remove_folder

STATE_FILE = "state.json"
_NAME = re.compile(r"checkpoint-(\d+)")

Tensors = Mapping[str, torch.Tensor]


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any]) -> Path:
    """Writes `folder/checkpoint-STEP` under a temporary name, syncs it to the disk and renames it.

    Args:
        folder: The run's folder.
        step: Number of optimizer steps done.
        tensors: Contents of the safetensors files by their stem.
        state: What else is needed to go on, as JSON.
    """
    final = folder / f"checkpoint-{step}"
    if (final / STATE_FILE).is_file():
        return final  # a run that was resumed here and stopped at once
    with atomic_folder(final) as temporary:
        for stem, content in tensors.items():
            save_file(
                {name: tensor.contiguous() for name, tensor in content.items()}, temporary / f"{stem}.safetensors"
            )
        (temporary / STATE_FILE).write_text(json.dumps({"step": step, **state}, indent=1), encoding="utf-8")
    return final


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Loads the tensors by file stem and the state that :func:`save_checkpoint` was given, with `step`.

    Raises:
        ValueError: If this is no checkpoint or a file of it is damaged.
    """
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error}") from error
    return tensors, state


def list_checkpoints(folder: Path) -> list[Path]:
    """Lists the complete checkpoints of a run, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def find_checkpoint(folder: Path, which: str) -> Path | None:
    """Finds what `--resume_from_checkpoint` means: `latest` (none if the run has none), a name or a path.

    Raises:
        ValueError: If a checkpoint that was named does not exist.
    """
    if which == "latest":
        checkpoints = list_checkpoints(folder)
        return checkpoints[-1] if checkpoints else None
    for candidate in (Path(which), folder / which):
        if (candidate / STATE_FILE).is_file():
            return candidate
    raise ValueError(
        f"there is no checkpoint {which}; {folder} has {[path.name for path in list_checkpoints(folder)]}"
    )


def prune_checkpoints(folder: Path, limit: int | None) -> None:
    """Deletes the oldest checkpoints beyond `limit`, and what an interrupted run left half written."""
    for leftover in folder.glob("*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    if limit is not None:
        for path in list_checkpoints(folder)[:-limit]:
            remove_folder(path)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Parameter]
) -> dict[str, torch.Tensor]:
    """Returns the optimizer's state as `parameter name:state name`."""
    return {
        f"{name}:{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Parameter], tensors: Tensors
) -> None:
    """Restores what :func:`optimizer_tensors` gave.

    Raises:
        ValueError: If the state is that of another model.
    """
    for key, value in tensors.items():
        name, _, state = key.rpartition(":")
        parameter = parameters.get(name)
        if parameter is None or (value.dim() and value.shape != parameter.shape):
            raise ValueError(f"the checkpoint's optimizer state '{key}' does not fit the model")
        # Like the parameter in memory: channels_last state beside channels_last weights stays on the fast path.
        like = torch.empty_like(parameter) if value.dim() else torch.empty_like(value, device=parameter.device)
        optimizer.state[parameter][state] = like.copy_(value)


class History:
    """`history.jsonl`: one JSON row for each report, kept over restarts.

    Args:
        path: The file.
        step: Where the run goes on; rows of later steps come from a run that lost them and are dropped.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        rows = [row for row in self.rows() if row["step"] <= step]
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.replace(temporary, path)

    def append(self, row: Mapping[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> Iterator[dict[str, Any]]:
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    return  # the process was killed while it wrote the last row


STARTS_FILE = "starts.jsonl"
PACKAGES = ("torch", "diffusers", "transformers", "numpy")


def machine() -> dict[str, Any]:
    """Describes this computer, as far as it says what it is."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    return {
        "cpu": cpu,
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
    }


def note_start(run: Path, step: int, command: Sequence[str], threads: int, processes: int) -> None:
    """Appends a row to a run's `starts.jsonl`: when, from which step, by which command and on what it was started."""
    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": " ".join(map(without_folder, command)),
        "processes": processes,
        "threads": threads,
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }
    with open(run / STARTS_FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def without_folder(word: str) -> str:
    """Shortens an absolute path to its last part, also behind a `=`: folders name people and their disks."""
    key, separator, path = word.rpartition("=")
    return f"{key}{separator}{PurePath(path).name}" if PurePath(path).is_absolute() else word
