"""Trains a small BigVGAN-v2 vocoder on clean music.

    python -m training.train_vocoder --config training/configs/vocoder_tiny.yaml --output_dir runs/vocoder_tiny
    python -m training.train_vocoder --config ... --output_dir ... --resume_from_checkpoint latest

Writes `checkpoint-STEP` folders, `history.jsonl`, and in `export/` the average weights (EMA) that were best on the
validation set, for `diffusers.MMAudioVocoder.from_pretrained`. A run that was stopped with SIGTERM or SIGINT and
resumed gives the same weights as one that never stopped: example `i` does not depend on when it is drawn.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from diffusers import MMAudioVocoder
from tqdm.auto import tqdm

from .checkpoints import (
    History,
    atomic_folder,
    find_checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    prune_checkpoints,
    save_checkpoint,
)
from .griffin_lim import griffin_lim
from .jsonl import read_rows
from .schedule import averaged
from .trainer import StopRequest, TrainingStopped, prepare_cpu
from .vocoder_config import VocoderConfig, VocoderTrainConfig, load_vocoder_config
from .vocoder_data import MusicCrops, batches
from .vocoder_objective import SpectralObjective, build_vocoder, front_end, log_mel_distance

LOG_EVERY_STEPS = 20
VALIDATION_SEED = 1


class VocoderTrainer:
    """One training run.

    Args:
        config: What is trained, and how.
        output_dir: The run's folder.
    """

    def __init__(self, config: VocoderConfig, output_dir: Path) -> None:
        self.config, self.output_dir = config, output_dir
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu":
            prepare_cpu(config.train.cpu_threads, num_processes=1)
        self.transform = front_end(config.mel)
        self.crops, self.clips = self._open_music()

        torch.manual_seed(config.seed)
        self.vocoder = build_vocoder(config).to(self.device)
        self.ema = averaged(self.vocoder, config.train.ema_decay)
        self.parameters = dict(self.vocoder.named_parameters())
        self.objective = SpectralObjective(self.transform, config.loss.mel, config.loss.mr_stft)
        self.optimizer = torch.optim.AdamW(
            self.vocoder.parameters(),
            lr=config.train.lr,
            betas=(config.train.adam_beta1, config.train.adam_beta2),
            weight_decay=config.train.weight_decay,
        )
        self.step = 0
        self.seconds = 0.0  # spent in this and all earlier parts of the run
        self.best: float | None = None  # log-mel distance of the exported weights

    def _open_music(self) -> tuple[MusicCrops, torch.Tensor]:
        """Training crops, with the front end's padding on either side, and the validation clips (clips, samples)."""
        config = self.config
        root = config.data.clean_music_dir
        tracks: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
        for row in read_rows(root / "inventory.jsonl"):
            tracks.setdefault(row["split"], []).append(row)
        if empty := [split for split in ("train", "validation") if not tracks[split]]:
            raise ValueError(f"The inventory of {root} has no tracks of the split {empty[0]!r}.")
        mel = config.mel
        num_samples = config.train.crop_frames * mel.hop_length + 2 * self.transform.pad
        levels = (config.data.min_level_db, config.data.max_level_db)
        crops = MusicCrops(tracks["train"], root, num_samples, mel.sample_rate, config.seed, levels)
        clip_frames = math.ceil(config.eval.clip_seconds * mel.sample_rate / mel.hop_length)
        clips = MusicCrops(
            tracks["validation"], root, clip_frames * mel.hop_length, mel.sample_rate, VALIDATION_SEED, (-23.0, -23.0)
        )
        return crops, next(batches(clips, 0, 1, config.eval.num_clips, num_threads=1))

    def resume(self, path: Path) -> None:
        """Goes back to where a checkpoint was written.

        Raises:
            ValueError: If the checkpoint is damaged or of another architecture.
        """
        tensors, state = load_checkpoint(path)
        try:
            self.vocoder.load_state_dict(tensors["vocoder"])
            self.ema.module.load_state_dict(tensors["ema"])
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{path} does not fit this configuration: {error}") from error
        load_optimizer_tensors(self.optimizer, self.parameters, tensors["optimizer"])
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        self.ema.n_averaged.fill_(self.step)

    def save(self) -> None:
        """Writes a checkpoint and deletes those beyond the limit."""
        tensors = {
            "vocoder": self.vocoder.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.parameters),
        }
        save_checkpoint(self.output_dir, self.step, tensors, {"seconds": self.seconds, "best": self.best})
        prune_checkpoints(self.output_dir, self.config.train.checkpoints_total_limit)

    def fit(self, stop: StopRequest, max_minutes: float | None = None) -> None:
        """Trains to the last step, the time limit or the request to stop, and writes a checkpoint.

        Args:
            stop: Asked after every step.
            max_minutes: Limit for this and all earlier parts of the run.
        """
        train, evaluation = self.config.train, self.config.eval
        self.history = History(self.output_dir / "history.jsonl", self.step)
        if not any("griffin_lim/mr_stft" in row for row in self.history.rows()):
            self.history.append({"step": 0, **_prefixed("griffin_lim", self.griffin_lim_baseline())})
        begin, last_save, validated = time.monotonic() - self.seconds, self.seconds, -1
        stream = batches(self.crops, self.step, train.max_train_steps, train.batch_size, self.config.data.num_threads)
        bar = tqdm(total=train.max_train_steps, initial=self.step, unit="step", smoothing=0.05)
        with closing(stream), bar:
            for batch in stream:
                losses = self.train_step(batch)
                self.step += 1
                bar.update()
                self.seconds = time.monotonic() - begin
                if self.step % LOG_EVERY_STEPS == 0:
                    self._log(losses)
                    bar.set_postfix({name: f"{losses[name]:.3f}" for name in ("mel", "mr_stft")})
                if self.step % evaluation.val_every_steps == 0:
                    self._log(_prefixed("validation", self.validate()))
                    validated = self.step
                if self.seconds - last_save >= 60 * train.checkpointing_minutes:
                    self.save()
                    last_save = self.seconds
                if stop.requested or (max_minutes is not None and self.seconds >= 60 * max_minutes):
                    break
        if not stop.requested and validated != self.step:
            self._log(_prefixed("validation", self.validate()))
        self.save()

    def _log(self, figures: dict[str, float]) -> None:
        self.history.append({"step": self.step, "seconds": round(self.seconds, 1), **figures})

    def train_step(self, batch: torch.Tensor) -> dict[str, float]:
        """One update on crops (batch, pad + samples + pad); returns the losses and the norm of the gradient."""
        train = self.config.train
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, train)
        batch = batch.to(self.device)
        clean = batch[:, self.transform.pad : -self.transform.pad]
        mel = self.transform.log_mel(self.transform.stft_of_padded(batch))
        losses = self.objective(self.vocoder(mel).sample[:, 0], clean)
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.vocoder.parameters(), train.grad_clip)
        if not torch.isfinite(norm):
            raise TrainingStopped(f"step {self.step}: the gradient is not finite; try a lower train.lr")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update_parameters(self.vocoder)
        return {name: float(loss.detach()) for name, loss in losses.items()} | {"grad_norm": float(norm)}

    def validate(self) -> dict[str, float]:
        """Distances of the average weights' copy-synthesis to the validation clips; exports the best weights."""
        mels = self.transform.log_mel(self.transform.stft(self.clips))
        start = time.monotonic()
        vocoder: MMAudioVocoder = self.ema.module
        vocoded = vocode(vocoder, mels)
        seconds = time.monotonic() - start
        figures = distances(vocoded, self.clips, self.objective)
        if self.best is None or figures["log_mel_l1"] < self.best:
            self.best = figures["log_mel_l1"]
            with atomic_folder(self.output_dir / "export") as temporary:
                vocoder.save_pretrained(temporary)
        return figures | {"real_time_factor": seconds * self.config.mel.sample_rate / self.clips.numel()}

    def griffin_lim_baseline(self) -> dict[str, float]:
        """The same distances for Griffin-Lim on the same mels."""
        mels = self.transform.log_mel(self.transform.stft(self.clips))
        return distances(griffin_lim(mels, self.transform, self.clips.shape[-1]), self.clips, self.objective)


def learning_rate(step: int, train: VocoderTrainConfig) -> float:
    """Linear warm-up, then half a cosine down to zero at the last step."""
    warmup = min(1.0, (step + 1) / max(train.lr_warmup_steps, 1))
    progress = min(1.0, max(0, step - train.lr_warmup_steps) / max(train.max_train_steps - train.lr_warmup_steps, 1))
    return train.lr * warmup * 0.5 * (1 + math.cos(math.pi * progress))


@torch.inference_mode()
def vocode(vocoder: MMAudioVocoder, mels: torch.Tensor) -> torch.Tensor:
    """Waveforms (clips, samples) for log-mels (clips, bands, frames), one clip at a time to spare memory."""
    device = next(vocoder.parameters()).device
    return torch.stack([vocoder(mel[None].to(device)).sample[0, 0].cpu() for mel in mels])


@torch.inference_mode()
def distances(vocoded: torch.Tensor, clean: torch.Tensor, objective: SpectralObjective) -> dict[str, float]:
    """Log-mel L1 (nats, front end's mel) and multi-resolution STFT distance of waveforms (clips, samples)."""
    return {
        "log_mel_l1": float(log_mel_distance(vocoded, clean, objective.transforms[0])),
        "mr_stft": float(objective.mr_stft(vocoded[:, None], clean[:, None])),
    }


def _prefixed(prefix: str, figures: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in figures.items()}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="train_vocoder.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="YAML file")
    parser.add_argument("--output_dir", type=Path, help="the run's folder (default: runs/EXPERIMENT)")
    parser.add_argument("--clean_music_dir", type=Path, help="instead of data.clean_music_dir")
    parser.add_argument(
        "--resume_from_checkpoint", metavar="CHECKPOINT", help="'latest', a checkpoint's name or its path"
    )
    parser.add_argument("--max_train_minutes", type=float, help="stop after so many minutes, resumed ones included")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    try:
        config = load_vocoder_config(arguments.config)
        if arguments.clean_music_dir is not None:
            data = config.data.model_copy(update={"clean_music_dir": arguments.clean_music_dir})
            config = config.model_copy(update={"data": data})
        output_dir = arguments.output_dir or Path("runs") / config.experiment
        trainer = VocoderTrainer(config, output_dir)
        if arguments.resume_from_checkpoint is not None:
            checkpoint = find_checkpoint(output_dir, arguments.resume_from_checkpoint)
            if checkpoint is None:
                print(f"{output_dir} has no checkpoint yet: starting a new run.", file=sys.stderr)
            else:
                trainer.resume(checkpoint)
        output_dir.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        print(f"train_vocoder.py: {error}", file=sys.stderr)
        return 2
    try:
        trainer.fit(StopRequest(), arguments.max_train_minutes)
    except TrainingStopped as error:
        print(f"train_vocoder.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
