"""What the command line says: one line each, on the standard error stream."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

PROGRAM = "aud2studio"
LOG_S = 60.0  # between two lines about the progress in a log


def say(message: str) -> None:
    """Print a line on the standard error stream."""
    print(f"{PROGRAM}: {shown(message)}", file=sys.stderr, flush=True)


def fail(message: str, status: int) -> int:
    """Print an error and return the exit status."""
    say(f"error: {message}")
    return status


def one_line(error: BaseException) -> str:
    """Return what an error says without line breaks."""
    return " ".join(str(error).split())


def shown(text: str | Path) -> str:
    """Return a text that can be printed: bytes of file names that are no UTF-8 become a question mark in a box."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class _Log(io.TextIOBase):
    """Takes what tqdm draws and prints it as lines."""

    def write(self, text: str) -> int:
        """Print what is left of a bar without its carriage returns."""
        if line := text.strip():
            say(line)
        return len(text)


def bar_settings() -> dict[str, Any]:
    """Return tqdm's arguments: a bar on a terminal, one line a minute in a log."""
    if sys.stderr.isatty():
        return {"leave": False}
    line = "{desc}: {n_fmt} of {total_fmt} {unit}s, {remaining} left"
    return {"leave": False, "file": _Log(), "mininterval": LOG_S, "delay": LOG_S, "miniters": 1, "bar_format": line}
