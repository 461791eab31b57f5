"""Index files: JSON lines, a header row first, then one flat row an item."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FORMAT = 1


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], **header: Any) -> None:
    """Writes `{"kind": "header", "format": 1, ...}` and the rows, all or nothing: readers never see half a file."""
    temporary = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, "w", encoding="utf-8") as file:
        for row in ({"kind": "header", "format": FORMAT, **header}, *rows):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of an index file without its header."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
    if not rows or rows[0].get("kind") != "header":
        raise ValueError(f"{path} has no header row: write it with the preparation scripts")
    if rows[0].get("format") != FORMAT:
        raise ValueError(f"{path} has format {rows[0].get('format')}, this version reads {FORMAT}")
    return rows[1:]


def merge_rows(path: Path, rows: Iterable[Mapping[str, Any]], **header: Any) -> list[dict[str, Any]]:
    """Adds rows to an index file, in the order of their `path`s; one with the same `path` is replaced. Returns all."""
    merged = {row["path"]: row for row in (read_rows(path) if path.exists() else [])}
    merged |= {row["path"]: dict(row) for row in rows}
    ordered = [merged[key] for key in sorted(merged)]
    write_rows(path, ordered, **header)
    return ordered


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
