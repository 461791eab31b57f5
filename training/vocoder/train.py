"""Trains a BigVGAN-v2 vocoder.

    python -m training.vocoder.train --config training/configs/vocoder_tiny.yaml --output_dir runs/vocoder_tiny
    python -m training.vocoder.train --config ... --output_dir ... --resume_from_checkpoint latest

Three phases, each a run of its own from the weights of the one before (`--init_from runs/BEFORE/export`): spectral
losses on clean music; with `loss.adversarial`, discriminators; with `data.restored_from`, the mels that a pipeline
restores from degraded recordings.

Writes `checkpoint-STEP` folders, `history.jsonl`, TensorBoard's files, and the averaged weights (EMA) for
`diffusers.MMAudioVocoder.from_pretrained`: the last validated ones in `latest/`, in `export/` those with the smallest
log-mel distance on the validation clips. A run that was stopped with SIGTERM or SIGINT and resumed gives the same
weights as one that never stopped.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError

from training.checkpoints import find_checkpoint
from training.train import last_checkpoint
from training.trainer import StopRequest, TrainingStopped

from .config import load_vocoder_config
from .trainer import VocoderTrainer


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.vocoder.train", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="replace a value of the file; repeatable",
    )
    parser.add_argument("--output_dir", type=Path, help="the run's folder (default: runs/EXPERIMENT)")
    parser.add_argument("--clean_music_dir", type=Path, help="instead of data.clean_music_dir")
    parser.add_argument(
        "--resume_from_checkpoint", metavar="CHECKPOINT", help="'latest', a checkpoint's name or its path"
    )
    parser.add_argument(
        "--init_from", type=Path, metavar="DIR", help="exported vocoder whose weights a new run starts with"
    )
    parser.add_argument("--max_train_minutes", type=float, help="stop after so many minutes, resumed ones included")
    parser.add_argument("--report_to", default="tensorboard", help="tracker that accelerate knows, or 'none'")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    overrides = list(arguments.set)
    if arguments.clean_music_dir is not None:
        overrides.append(f"data.clean_music_dir={arguments.clean_music_dir}")
    try:
        config = load_vocoder_config(arguments.config, overrides)
        output_dir = arguments.output_dir or Path("runs") / config.experiment
        checkpoint = None
        if arguments.resume_from_checkpoint is not None:
            checkpoint = find_checkpoint(output_dir, arguments.resume_from_checkpoint)
            if checkpoint is None:
                logging.warning("%s has no checkpoint yet: starting a new run.", output_dir)
        trainer = VocoderTrainer(config, output_dir, arguments.report_to)
        if checkpoint is not None:
            trainer.resume(checkpoint)
        elif arguments.init_from is not None:
            trainer.init_from(arguments.init_from)
    except ValueError as error:
        print(f"vocoder.train: {error}", file=sys.stderr)
        return 2
    stop = StopRequest()
    try:
        trainer.fit(stop, arguments.max_train_minutes)
    except TrainingStopped as error:
        print(f"vocoder.train: {error}. {last_checkpoint(output_dir)}", file=sys.stderr)
        return 1
    except (OSError, ValueError, SafetensorError) as error:  # a full disk, data that is gone or damaged
        print(
            f"vocoder.train: stopped after step {trainer.step}: {error}. {last_checkpoint(output_dir)}"
            " Put it right, and --resume_from_checkpoint latest goes on.",
            file=sys.stderr,
        )
        return 1
    finally:
        stop.close()
    if stop.requested:
        logging.info("Stopped after step %d; --resume_from_checkpoint latest goes on.", trainer.step)
    return 0


if __name__ == "__main__":
    sys.exit(main())
