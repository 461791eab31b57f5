"""The loop that the training of the UNet and of the vocoder share, its clock and signals, and its command line."""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from statistics import fmean
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
import yaml
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from .checkpoints import History, find_checkpoint, list_checkpoints, note_start
from .config import OptimizerConfig

LOG_EVERY_STEPS = 20  # what is logged is the mean over these steps

Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


class TrainingStopped(RuntimeError):
    """The run cannot go on; the message says why and where the evidence is."""


# --- What changes with the step --------------------------------------------------------------------------------------


def learning_rate(step: int, train: OptimizerConfig) -> float:
    """Computes the learning rate of the optimizer step `step`, counted from 0.

    A linear warm-up over `lr_warmup_steps`, then constant; with `lr_schedule: cosine` the last `lr_decay_steps` go
    down to zero along half a cosine.
    """
    rate = train.lr * min(1.0, (step + 1) / max(1, train.lr_warmup_steps))
    if train.lr_schedule == "constant" or train.max_train_steps is None:
        return rate
    after_warmup = max(1, train.max_train_steps - train.lr_warmup_steps)
    decay_steps = min(train.lr_decay_steps or after_warmup, after_warmup)
    progress = (step - (train.max_train_steps - decay_steps)) / decay_steps
    return rate * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def ema_decay(num_updates: int, decay: float) -> float:
    """Computes the decay of the averaged weights after `num_updates` updates: `min(decay, (1 + n) / (10 + n))`.

    The early values, those of diffusers and TensorFlow, let go of the random initial weights.
    """
    return min(decay, (1 + num_updates) / (10 + num_updates))


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Copies `model`; the copy's weights are an exponential moving average; the first update copies them."""

    @torch.no_grad()
    def update(averages: Tensors, weights: Tensors, num_updates: torch.Tensor | int) -> None:
        torch._foreach_lerp_(list(averages), list(weights), 1 - ema_decay(int(num_updates), decay))

    return AveragedModel(model, multi_avg_fn=update)


def step_seed(seed: int, step: int, rank: int, part: int) -> int:
    """Draws the seed of the noise of one part of one step on one process, independent of all others.

    Noise that is a function of where training stands needs no saved generator state to resume to the bit.
    """
    return int(np.random.SeedSequence([seed, step, rank, part]).generate_state(1, np.uint64)[0] >> np.uint64(1))


# --- The process -----------------------------------------------------------------------------------------------------


def prepare_cpu(threads: int | None, num_processes: int) -> None:
    """Makes use of the CPU's cores.

    Args:
        threads: Threads of this process; none: what `OMP_NUM_THREADS` says, or all cores.
        num_processes: Processes of this run, which share the cores.
    """
    # `accelerate launch` sets OMP_NUM_THREADS to 1 on a machine without a GPU, even for a single process.
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if threads is None and (launched or "OMP_NUM_THREADS" not in os.environ):
        threads = max(1, (psutil.cpu_count(logical=False) or 1) // num_processes)
    torch.set_flush_denormal(True)  # before the threads start, which inherit it; denormals are slow
    if threads is not None:
        torch.set_num_threads(threads)


class StopRequest:
    """From now on SIGTERM and Ctrl-C are a wish to stop after the step; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._process = os.getpid()
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}

    def close(self) -> None:
        """Gives the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data worker that was forked from here
            raise SystemExit(0)
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


# --- The loop --------------------------------------------------------------------------------------------------------


class Run(ABC):
    """One training run.

    Args:
        config: What is trained, and how.
        output_dir: The run's folder.
        report_to: Tracker that accelerate knows, or "none".
        mixed_precision: As accelerate calls it.
    """

    max_steps: int

    def __init__(self, config: Any, output_dir: Path, report_to: str, mixed_precision: str = "no") -> None:
        self.config, self.output_dir = config, output_dir
        self.accelerator = Accelerator(
            mixed_precision=mixed_precision,
            log_with=None if report_to == "none" else report_to,
            project_dir=output_dir,
        )
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        if self.device.type == "cpu":
            prepare_cpu(config.train.cpu_threads, self.accelerator.num_processes)
        self.stop: StopRequest | None = None
        self.history: History | None = None
        self.step = 0
        self.seconds = 0.0  # spent in this and all earlier parts of the run
        self.best: float | None = None  # validation score of what was exported

    @abstractmethod
    def init_from(self, folder: Path) -> None:
        """Takes the weights of an export; optimizer and schedule begin afresh."""

    @abstractmethod
    def resume(self, path: Path) -> None:
        """Goes back to where a checkpoint was written."""

    @abstractmethod
    def save(self) -> None:
        """Writes a checkpoint and deletes those beyond the limit."""

    @abstractmethod
    def batches(self) -> Iterator[Any]:
        """Yields the batches from the current step on."""

    @abstractmethod
    def train_step(self, batches: Iterator[Any]) -> dict[str, float]:
        """Does one optimizer step; returns the losses, the norms of the gradients and the learning rate."""

    @abstractmethod
    def validate(self) -> None:
        """Reports how good the averaged weights are, and exports them if they are the best so far."""

    def fit(self, stop: StopRequest | None = None) -> None:
        """Trains until a limit is reached or the run is asked to stop, then writes a checkpoint.

        Args:
            stop: Asked after every step; by default signals, see :class:`StopRequest`.
        """
        self.stop = StopRequest() if stop is None else stop
        try:
            if self.is_main:
                self.output_dir.mkdir(parents=True, exist_ok=True)
                dumped = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
                (self.output_dir / "config.yaml").write_text(dumped, encoding="utf-8")
                self.history = History(self.output_dir / "history.jsonl", self.step)
                processes = self.accelerator.num_processes
                note_start(self.output_dir, self.step, sys.orig_argv, torch.get_num_threads(), processes)
            self.accelerator.init_trackers("aud2studio")
            # A context, so that the bar is gone before an error is told.
            bar = tqdm(total=self.max_steps, initial=self.step, disable=not self.is_main, unit="step", smoothing=0.05)
            with bar, closing(self.batches()) as batches:  # type: ignore[type-var]
                validated = self._steps(batches, bar)
            if not self.stop.requested and validated != self.step:
                self.validate()
            self.save()
        finally:
            self.stop.close()
        self.accelerator.end_training()

    def _steps(self, batches: Iterator[Any], bar: tqdm[Any]) -> int:
        """Steps with everything that is due in between; returns the step of the last validation."""
        train, evaluation = self.config.train, self.config.eval
        recent: list[dict[str, float]] = []
        begin, last_save, validated = time.monotonic() - self.seconds, self.seconds, -1
        while not self._finished():
            figures = self.train_step(batches)
            self.step += 1
            bar.update()
            self.seconds = time.monotonic() - begin
            recent.append(figures)
            if self.step % LOG_EVERY_STEPS == 0:
                means = {name: fmean(row.get(name, 0.0) for row in recent) for name in figures}
                bar.set_postfix(self.shown(means, bar.format_dict["rate"] or 0.0))
                self.report(means)
                recent.clear()
            if self.step % evaluation.val_every_steps == 0:
                self.validate()
                validated = self.step
            due = train.checkpointing_steps is not None and self.step % train.checkpointing_steps == 0
            if due or self.seconds - last_save >= 60 * train.checkpointing_minutes:
                self.save()
                last_save = self.seconds
            self.seconds = time.monotonic() - begin
        return validated

    def _finished(self) -> bool:
        """Tells whether to end, the same on all processes."""
        assert self.stop is not None
        if self.step >= self.max_steps:
            return True
        limit = self.config.train.max_train_minutes
        late = limit is not None and self.seconds >= 60 * limit
        if self.accelerator.num_processes > 1:  # clocks and signals differ, the decision must not
            wishes = torch.tensor([int(self.stop.requested), int(late)], device=self.device)
            stop, late = (self.accelerator.reduce(wishes, reduction="sum") > 0).tolist()
            self.stop.requested |= stop
        return self.stop.requested or late

    def shown(self, means: Mapping[str, float], steps_per_s: float) -> dict[str, str]:
        """Chooses what the progress bar shows of the means over some steps."""
        return {"loss": f"{means['loss']:.4f}", "lr": f"{means['lr']:.1e}"}

    def report(self, figures: Mapping[str, float]) -> None:
        """Gives figures to the trackers and to the history."""
        self.accelerator.log(dict(figures), step=self.step)
        if self.history is not None:
            self.history.append({"step": self.step, "seconds": round(self.seconds, 1), **figures})


# --- The command line ------------------------------------------------------------------------------------------------

Kind = TypeVar("Kind", bound=Run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that all training has."""
    add = parser.add_argument
    add("--config", type=Path, required=True, help="YAML file")
    add(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="replace a value of the file; repeatable",
    )
    add("--output_dir", type=Path, help="the run's folder (default: runs/EXPERIMENT)")
    add("--resume_from_checkpoint", metavar="CHECKPOINT", help="'latest', a checkpoint's name or its path")
    add("--init_from", type=Path, metavar="DIR", help="export whose weights a new run starts with")
    add("--report_to", default="tensorboard", help="tracker that accelerate knows, or 'none'")


def train(
    name: str, arguments: argparse.Namespace, load: Callable[[], Any], kind: Callable[[Any, Path, str], Kind]
) -> tuple[int, Kind | None]:
    """Trains as a command line says; what is wrong is told in a line.

    Args:
        name: What the lines begin with.
        load: Reads the configuration.
        kind: Makes the run of it.

    Returns:
        The exit status, and the run if it came to its end.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        config = load()
        output_dir = arguments.output_dir or Path("runs") / config.experiment
        checkpoint = None
        if arguments.resume_from_checkpoint is not None:
            checkpoint = find_checkpoint(output_dir, arguments.resume_from_checkpoint)
            if checkpoint is None:
                logging.warning("%s has no checkpoint yet: starting a new run.", output_dir)
        run = kind(config, output_dir, arguments.report_to)
        if checkpoint is not None:
            run.resume(checkpoint)
        elif arguments.init_from is not None:
            run.init_from(arguments.init_from)
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2, None
    try:
        run.fit()
    except TrainingStopped as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1, None
    except (OSError, ValueError, SafetensorError) as error:  # a full disk, data that is gone or damaged
        logging.debug("Stopped after step %d.", run.step, exc_info=True)
        reason = next((line for line in str(error).splitlines()[::-1] if line.strip()), type(error).__name__)
        kept = list_checkpoints(output_dir)
        last = f"The last checkpoint is {kept[-1]}." if kept else "There is no checkpoint yet."
        print(
            f"{name}: stopped after step {run.step}: {reason.removeprefix('ValueError: ')}."
            f" {last} Put it right, and --resume_from_checkpoint latest goes on.",
            file=sys.stderr,
        )
        return 1, None
    assert run.stop is not None
    if run.stop.requested:
        logging.info("Stopped after step %d; --resume_from_checkpoint latest goes on.", run.step)
        return 0, None
    return 0, run
