"""Begins `aud2studio`: Ctrl-C ends it in one line from the first import on; what it says, it says in lines."""

from __future__ import annotations

import io
import os
import signal
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


# Unfinished files, which an end at any moment has to take away.
UNFINISHED: set[str | bytes] = set()


def interrupted(*_: object) -> None:
    """End the process: no unfinished file stays, and nothing that runs in threads is waited for."""
    for path in tuple(UNFINISHED):
        try:
            os.unlink(path)
        except OSError:
            pass
    os.write(2, b"\naud2studio: error: interrupted\n" if os.isatty(2) else b"aud2studio: error: interrupted\n")
    os._exit(130)


def main() -> int:
    """Run the command line; returns its exit status."""
    signal.signal(signal.SIGINT, interrupted)
    from .infer import main as run

    return run()


if __name__ == "__main__":
    from pipeline_aud2studio import command  # the module that the others import, not its copy that Python runs

    sys.exit(command.main())
