"""Where and how a training run was started: a row for every start, kept beside its checkpoints."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

import psutil
import torch

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
