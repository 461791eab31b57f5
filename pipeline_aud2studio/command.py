"""Where `aud2studio` begins: Ctrl-C ends it in one line from the first import on."""

from __future__ import annotations

import os
import signal
import sys

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
