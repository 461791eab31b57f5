"""Several processes on the CPUs of one machine.

`accelerate launch --cpu --num_processes N` counts on MPI to start more than one process: without it, it starts a
single one that knows nothing of the others. Here that one turns into `torchrun`, which needs no MPI.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

import psutil


def requested_processes(environment: Mapping[str, str], parent_command: Sequence[str]) -> int:
    """Number of processes that `accelerate launch` was asked to start on this machine's CPUs and did not.

    Args:
        environment: Environment of this process. With several processes accelerate sets `MASTER_ADDR`, and MPI or
            torchrun would have set the rank.
        parent_command: Command line of the process that started this one.
    """
    started = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"}
    if (
        environment.get("ACCELERATE_USE_CPU") != "True"
        or "MASTER_ADDR" not in environment
        or started & set(environment)
    ):
        return 1
    for index, argument in enumerate(parent_command):
        option, _, value = argument.partition("=")
        if option in ("--num_processes", "--num-processes"):
            return int(value or parent_command[index + 1])
    raise ValueError(
        "accelerate was asked for several processes on a CPU and started one: "
        "use `torchrun --nproc_per_node N training/train.py …`, or pass --num_processes to accelerate"
    )


def start_requested_processes(script: str, arguments: Sequence[str]) -> None:
    """Replaces this process with torchrun where several were asked for; otherwise does nothing."""
    parent = psutil.Process().parent()
    count = requested_processes(os.environ, parent.cmdline() if parent else [])
    if count > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        os.execv(sys.executable, [*launcher, script, *arguments])
