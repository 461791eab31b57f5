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
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from diffusers import MMAudioVocoder
from torch import nn
from tqdm.auto import tqdm

from training import loop
from training.build import build_optimizer
from training.checkpoints import (
    Tensors,
    atomic_folder,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    prune_checkpoints,
    save_checkpoint,
)
from training.loop import Run, TrainingStopped, add_arguments, averaged, learning_rate
from training.validation import write_pictures

from .config import VocoderConfig, load_vocoder_config
from .discriminators import (
    Discriminators,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
    frozen,
    level_gain,
)
from .examples import CleanMels, Example, RestoredMels
from .objective import ENDS, SpectralObjective, build_vocoder, distances, front_end, vocode, without_vocoder


class VocoderTrainer(Run):
    """One training run of a vocoder.

    Args:
        config: What is trained, and how. Without `loss.adversarial` there are no discriminators.
        output_dir: The run's folder.
        report_to: Tracker that accelerate knows, or "none".
    """

    def __init__(self, config: VocoderConfig, output_dir: Path, report_to: str = "none") -> None:
        super().__init__(config, output_dir, report_to)
        self.max_steps = config.train.max_train_steps
        self.transform = front_end(config.mel)
        kind = CleanMels if config.data.restored_from is None else RestoredMels
        self.examples: CleanMels | RestoredMels = kind(config, self.transform, self.device)

        torch.manual_seed(config.seed)
        self.vocoder = build_vocoder(config).to(self.device)
        self.ema = averaged(self.vocoder, config.train.ema_decay)
        self.optimizer = build_optimizer(config.train, self.vocoder, ENDS)
        self.objective = SpectralObjective(self.transform, config.loss)
        self.discriminators: Discriminators | None = None
        if config.loss.adversarial:
            self.discriminators = Discriminators(config.discriminator).to(self.device)
            of_discriminators = {"optimizer": "adamw", "lr": config.discriminator.lr}
            self.discriminator_optimizer = build_optimizer(
                config.train.model_copy(update=of_discriminators), self.discriminators
            )

    def init_from(self, folder: Path) -> None:
        """Takes the weights of an exported vocoder; discriminators, optimizers and schedule begin afresh.

        Raises:
            ValueError: If the folder holds no such weights or those of another architecture.
        """
        if not (folder / "config.json").is_file():
            raise ValueError(f"--init_from {folder}: there is no exported vocoder in this folder")
        try:
            weights = MMAudioVocoder.from_pretrained(folder).state_dict()
            self.vocoder.load_state_dict(weights)
            self.ema.module.load_state_dict(weights)
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"--init_from {folder}: its weights do not fit this configuration: {reason}") from error

    def resume(self, path: Path) -> None:
        """Goes back to where a checkpoint was written.

        Raises:
            ValueError: If the checkpoint is damaged, of another architecture or of another phase.
        """
        tensors, state = load_checkpoint(path)
        try:
            for name, model in self._models().items():
                model.load_state_dict(tensors[name])
            for name, (optimizer, model) in self._optimizers().items():
                load_optimizer_tensors(optimizer, dict(model.named_parameters()), tensors[name])
            self.examples.load_state_dict(state["data"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path} does not fit this configuration: {error}") from error
        if self.discriminators is None and "discriminators" in tensors:
            raise ValueError(f"{path} has discriminators, and loss.adversarial is 0: --init_from starts a new run")
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        self.ema.n_averaged.fill_(self.step)

    def _models(self) -> dict[str, nn.Module]:
        """Names what has weights to be kept, as the checkpoint's files are called."""
        models: dict[str, nn.Module] = {"vocoder": self.vocoder, "ema": self.ema.module}
        return models if self.discriminators is None else {**models, "discriminators": self.discriminators}

    def _optimizers(self) -> dict[str, tuple[torch.optim.Optimizer, nn.Module]]:
        """Names every optimizer with what it optimizes, as the checkpoint's files are called."""
        optimizers: dict[str, tuple[torch.optim.Optimizer, nn.Module]] = {"optimizer": (self.optimizer, self.vocoder)}
        if self.discriminators is not None:
            optimizers["discriminator_optimizer"] = (self.discriminator_optimizer, self.discriminators)
        return optimizers

    def save(self) -> None:
        """Writes a checkpoint and deletes those beyond the limit."""
        tensors: dict[str, Tensors] = {name: model.state_dict() for name, model in self._models().items()}
        for name, (optimizer, model) in self._optimizers().items():
            tensors[name] = optimizer_tensors(optimizer, dict(model.named_parameters()))
        state = {"seconds": self.seconds, "best": self.best, "data": self.examples.state_dict()}
        save_checkpoint(self.output_dir, self.step, tensors, state)
        prune_checkpoints(self.output_dir, self.config.train.checkpoints_total_limit)

    def batches(self) -> Iterator[Example]:
        self._note_griffin_lim()
        yield from self.examples.batches(self.step, self.max_steps)

    def _note_griffin_lim(self) -> None:
        """Notes what Griffin-Lim makes of the validation clips, once a run."""
        assert self.history is not None
        if not any("griffin_lim/mr_stft" in row for row in self.history.rows()):
            mels, clean = self.examples.clips
            figures = distances(without_vocoder(mels, self.transform, clean.shape[-1]), clean, self.objective)
            self.history.append({"step": 0, **_prefixed("griffin_lim", figures)})

    def shown(self, means: Mapping[str, float], steps_per_s: float) -> dict[str, str]:
        names = ("mel", "mr_stft", "adversarial", "discriminator")
        return {name: f"{means[name]:.3f}" for name in names if name in means}

    def train_step(self, batches: Iterator[Example]) -> dict[str, float]:
        """Updates the discriminators, if there are any, and the vocoder; returns losses and norms."""
        train, example = self.config.train, next(batches)
        rate = learning_rate(self.step, train)
        vocoded = self.vocoder(example.mel).sample[:, 0]
        losses = self.objective(vocoded, example.clean)
        figures = {"lr": rate}
        if self.discriminators is not None:
            gain = level_gain(example.clean)
            clean, judged = gain * example.clean, gain * vocoded
            figures |= self._train_discriminators(clean, judged.detach(), rate / train.lr)
            adversarial = self.adversarial_losses(clean, judged)
            weights = self.config.loss.model_dump(include=set(adversarial))
            losses |= adversarial
            losses["loss"] = losses["loss"] + sum(weights[name] * loss for name, loss in adversarial.items())
        losses["loss"].backward()
        figures["grad_norm"] = self._update(self.optimizer, self.vocoder, rate)
        self.ema.update_parameters(self.vocoder)
        return {name: float(loss.detach()) for name, loss in losses.items()} | figures

    def _train_discriminators(
        self, clean: torch.Tensor, vocoded: torch.Tensor, share_of_rate: float
    ) -> dict[str, float]:
        """One update on waveforms (batch, samples), none of which has a gradient."""
        assert self.discriminators is not None
        loss = discriminator_loss(self.discriminators(clean), self.discriminators(vocoded))
        loss.backward()
        rate = share_of_rate * self.config.discriminator.lr
        norm = self._update(self.discriminator_optimizer, self.discriminators, rate)
        return {"discriminator": float(loss.detach()), "discriminator_grad_norm": norm}

    def adversarial_losses(self, clean: torch.Tensor, vocoded: torch.Tensor) -> dict[str, torch.Tensor]:
        """The vocoder's losses before the discriminators, which learn nothing from them, by their names in `loss`."""
        assert self.discriminators is not None
        with frozen(self.discriminators):
            with torch.no_grad():
                wanted = self.discriminators(clean)
            judged = self.discriminators(vocoded)
        return {"adversarial": adversarial_loss(judged), "feature_matching": feature_matching_loss(wanted, judged)}

    def _update(self, optimizer: torch.optim.Optimizer, model: nn.Module, rate: float) -> float:
        """Steps with the gradients that there are and clears them; returns their norm before it was limited."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(model.parameters(), self.config.train.grad_clip)
        if not torch.isfinite(norm):
            raise TrainingStopped(
                f"step {self.step}: the gradient of {type(model).__name__} is not finite; try a lower learning rate"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def validate(self) -> None:
        """Reports how far the average weights' waveforms of the validation clips are from the clean ones.

        The weights are written to `latest`, and to `export` if their log-mels are the closest so far. Discriminators
        bring textures back that cost distance, so in a run with them the best weights need not be the ones to take.
        """
        mels, clean = self.examples.clips
        start = time.monotonic()
        vocoder: MMAudioVocoder = self.ema.module
        vocoded = vocode(vocoder, mels)
        seconds = time.monotonic() - start
        figures = distances(vocoded, clean, self.objective)
        figures["real_time_factor"] = seconds * self.config.mel.sample_rate / clean.numel()
        self.report(_prefixed("validation", figures))
        tqdm.write(f"step {self.step}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
        clips = (
            {"vocoded": ours.numpy(), "clean": theirs.numpy()} for ours, theirs in zip(vocoded, clean, strict=True)
        )
        write_pictures(self.accelerator.trackers, self.transform, clips, self.step)
        folders = ["latest"]
        if self.best is None or figures["log_mel_l1"] < self.best:
            self.best = figures["log_mel_l1"]
            folders.append("export")
        for folder in folders:
            with atomic_folder(self.output_dir / folder) as temporary:
                vocoder.save_pretrained(temporary)


def _prefixed(prefix: str, figures: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in figures.items()}


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.vocoder.train", description=(__doc__ or "").split("\n")[0]
    )
    add_arguments(parser)
    parser.add_argument("--clean_music_dir", type=Path, help="instead of data.clean_music_dir")
    parser.add_argument("--max_train_minutes", type=float, help="stop after so many minutes, resumed ones included")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, see the module."""
    arguments = build_parser().parse_args(argv)
    given = {"data.clean_music_dir": arguments.clean_music_dir, "train.max_train_minutes": arguments.max_train_minutes}
    overrides = [*arguments.set, *(f"{key}={value}" for key, value in given.items() if value is not None)]
    status, _ = loop.train(
        "vocoder.train", arguments, lambda: load_vocoder_config(arguments.config, overrides), VocoderTrainer
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
