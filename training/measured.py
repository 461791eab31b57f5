"""What is known about a folder of measured responses or recorded crowds: its index.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def index_entries(folder: Path) -> list[dict[str, Any]] | None:
    """Entries of the index.json that describes a folder, with `file` relative to the folder; `None` if there is none.

    The index may lie one level up and name the folder: taken for files without one, several microphones of one hall
    would count as halls of their own, and end up on both sides of a split.
    """
    if (index := folder / "index.json").is_file():
        return list(json.loads(index.read_text(encoding="utf-8")))
    if (index := folder.resolve().parent / "index.json").is_file():
        prefix = f"{folder.resolve().name}/"
        entries = json.loads(index.read_text(encoding="utf-8"))
        inside = [entry for entry in entries if entry["file"].startswith(prefix)]
        return [{**entry, "file": entry["file"].removeprefix(prefix)} for entry in inside] or None
    return None
