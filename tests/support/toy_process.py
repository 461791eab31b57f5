"""A training run in a process of its own, to be killed or to run out of disk."""

import os
import resource


def train(arguments: list[str], log: str, largest_file: int | None = None) -> None:
    """`training.train` with its standard error in a file.

    Args:
        largest_file: Bytes that a file may have: writing more fails, as on a full disk.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    from training import train as command

    raise SystemExit(command.main(arguments))
