"""Index files: JSON lines, a header row first, then one flat row an item."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline_aud2studio.files import atomic_path

HEADER = {"kind": "header", "format": 1}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes the header and the rows, all or nothing: readers never see half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in (HEADER, *rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of an index file without its header.

    Raises:
        ValueError: If there is none, or it is of another format.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        with path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON lines: {error}") from error
    if not rows or rows[0].get("kind") != "header":
        raise ValueError(f"{path} has no header row: write it with the preparation scripts")
    if rows[0].get("format") != HEADER["format"]:
        raise ValueError(f"{path} has format {rows[0].get('format')}, this version reads {HEADER['format']}")
    return rows[1:]


def merge_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Adds rows to an index file, in the order of their `path`s; one with the same `path` is replaced. Returns all."""
    merged = {row["path"]: row for row in (read_rows(path) if path.exists() else [])}
    merged |= {row["path"]: dict(row) for row in rows}
    ordered = [merged[key] for key in sorted(merged)]
    write_rows(path, ordered)
    return ordered
