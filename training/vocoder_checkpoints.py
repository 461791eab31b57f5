"""A vocoder run on disk: `checkpoint-STEP` folders without pickles, each whole or not there, and a history of rows."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import MMAudioVocoder
from safetensors.torch import load_file, save_file

WEIGHTS = "diffusion_pytorch_model.safetensors"


def save_checkpoint(
    folder: Path,
    vocoder: MMAudioVocoder,
    ema: MMAudioVocoder,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    total_limit: int,
) -> Path:
    """Writes `folder/checkpoint-STEP` (`state["step"]`) and removes the oldest beyond `total_limit`."""
    target = folder / f"checkpoint-{state['step']}"
    temporary = folder / f".{target.name}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    vocoder.save_pretrained(temporary / "vocoder")
    ema.save_pretrained(temporary / "vocoder_ema")
    save_file(_optimizer_tensors(vocoder, optimizer), temporary / "optimizer.safetensors")
    (temporary / "state.json").write_text(json.dumps(dict(state), indent=1), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
    for old in checkpoints(folder)[:-total_limit]:
        shutil.rmtree(old)
    return target


def load_checkpoint(
    checkpoint: Path, vocoder: MMAudioVocoder, ema: MMAudioVocoder, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Restores models and optimizer in place and returns the state.

    Raises:
        ValueError: If the folder is no checkpoint of this vocoder.
    """
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        vocoder.load_state_dict(load_file(checkpoint / "vocoder" / WEIGHTS))
        ema.load_state_dict(load_file(checkpoint / "vocoder_ema" / WEIGHTS))
        tensors = load_file(checkpoint / "optimizer.safetensors")
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{checkpoint} is no checkpoint of the configured vocoder: {reason}") from error
    for name, parameter in vocoder.named_parameters():
        prefix = name + "/"
        optimizer.state[parameter] = {
            key.removeprefix(prefix): value if key.endswith("/step") else value.to(parameter.device)
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
    return state


def _optimizer_tensors(vocoder: MMAudioVocoder, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Adam's moments and step counts as `parameter/moment`."""
    return {
        f"{name}/{key}": value.contiguous()
        for name, parameter in vocoder.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def find_checkpoint(folder: Path, name: str) -> Path | None:
    """`latest` (`None` if there is none), or a checkpoint's name or path."""
    if name == "latest":
        return checkpoints(folder)[-1] if checkpoints(folder) else None
    for path in (folder / name, Path(name)):
        if (path / "state.json").is_file():
            return path
    known = ", ".join(path.name for path in checkpoints(folder)) or "none"
    raise ValueError(f"There is no checkpoint {name!r} in {folder}; there are: {known}.")


def export_weights(vocoder: MMAudioVocoder, folder: Path) -> None:
    """Writes a folder for `MMAudioVocoder.from_pretrained`; a reader finds the old weights or the new ones."""
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    vocoder.save_pretrained(temporary)
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(temporary.iterdir()):
        os.replace(file, folder / file.name)
    temporary.rmdir()


class History:
    """Rows of `history.jsonl`. A resumed run forgets the rows after its checkpoint."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        rows = []
        if path.is_file():
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        self.rows: list[dict[str, Any]] = [row for row in rows if step and row["step"] <= step]
        temporary = path.with_name(path.name + ".part")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        os.replace(temporary, path)

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")
