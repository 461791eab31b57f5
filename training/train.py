"""Trains the UNet and the condition encoder.

    accelerate launch training/train.py --config training/configs/tiny.yaml

A run writes to `runs/EXPERIMENT`: checkpoints, `best-STEP` (the pipeline with the best validation so far), `pipeline`
(at the end), `history.jsonl` and TensorBoard's files. The same command with `--resume_from_checkpoint latest` goes on
where the run was stopped, to the bit.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # run as a file: find the packages beside `training`

from huggingface_hub import create_repo, upload_folder

from training import loop
from training.config import load_config
from training.loop import add_arguments
from training.trainer import Trainer

# Options that diffusers' users know, and the keys that they replace.
OPTIONS: dict[str, tuple[type, str]] = {
    "seed": (int, "seed"),
    "train_batch_size": (int, "train.batch_size"),
    "micro_batch_size": (int, "train.micro_batch_size"),
    "gradient_accumulation_steps": (int, "train.gradient_accumulation_steps"),
    "learning_rate": (float, "train.lr"),
    "lr_warmup_steps": (int, "train.lr_warmup_steps"),
    "max_train_steps": (int, "train.max_train_steps"),
    "max_train_minutes": (float, "train.max_train_minutes"),
    "mixed_precision": (str, "train.mixed_precision"),
    "snr_gamma": (float, "train.snr_gamma"),
    "prediction_type": (str, "scheduler.prediction_type"),
    "checkpointing_steps": (int, "train.checkpointing_steps"),
    "checkpointing_minutes": (float, "train.checkpointing_minutes"),
    "checkpoints_total_limit": (int, "train.checkpoints_total_limit"),
    "validation_steps": (int, "eval.val_every_steps"),
}


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line."""
    parser = argparse.ArgumentParser(prog="train.py", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--export", type=Path, metavar="DIR", help="where the pipeline is written at the end")
    parser.add_argument("--push_to_hub", action="store_true", help="upload the exported pipeline at the end")
    parser.add_argument("--hub_model_id", help="repository to push to (default: the experiment's name)")
    parser.add_argument("--hub_private_repo", action="store_true", help="create the repository as a private one")
    options = parser.add_argument_group("instead of --set")
    for name, (kind, key) in OPTIONS.items():
        options.add_argument(f"--{name}", type=kind, metavar="VALUE", help=key)
    return parser


def overrides(arguments: argparse.Namespace) -> list[str]:
    """Lists the `section.key=value` texts that a command line stands for."""
    given = [(key, getattr(arguments, name)) for name, (_, key) in OPTIONS.items()]
    texts = [*arguments.set, *(f"{key}={value}" for key, value in given if value is not None)]
    if any(text.startswith("train.mixed_precision=") for text in texts):
        texts.append("train.fp16=null")  # what the file says by its short name
    return texts


def push(folder: Path, repo_id: str, private: bool) -> None:
    """Uploads a pipeline folder to the Hub with the credentials that `hf auth login` stored."""
    repo = create_repo(repo_id, private=private, exist_ok=True)
    upload_folder(repo_id=repo.repo_id, folder_path=folder, commit_message="Upload the trained pipeline")


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, see the module."""
    arguments = build_parser().parse_args(argv)
    status, trainer = loop.train(
        "train.py", arguments, lambda: load_config(arguments.config, overrides(arguments)), Trainer
    )
    if trainer is None or not trainer.is_main:
        return status
    folder = arguments.export or trainer.output_dir / "pipeline"
    trainer.export(folder)
    logging.info("The pipeline is in %s.", folder)
    if arguments.push_to_hub:
        push(folder, arguments.hub_model_id or trainer.config.experiment, arguments.hub_private_repo)
    return 0


if __name__ == "__main__":
    sys.exit(main())
