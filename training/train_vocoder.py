"""Trains a small BigVGAN-v2 vocoder on clean music.

    python -m training.train_vocoder --config training/configs/vocoder_tiny.yaml --output_dir runs/vocoder_tiny
    python -m training.train_vocoder --config ... --output_dir ... --resume_from_checkpoint latest

Writes `checkpoint-STEP` folders, `history.jsonl`, and in `export/` the average weights (EMA) that were best on the
validation set, for `diffusers.MMAudioVocoder.from_pretrained`. A run that was stopped with SIGTERM or SIGINT and
resumed gives the same weights as one that never stopped: example `i` does not depend on when it is drawn.
"""

from __future__ import annotations

import argparse
import copy
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from diffusers import MMAudioVocoder
from tqdm.auto import tqdm

from .config import ConfigError
from .griffin_lim import griffin_lim
from .jsonl import read_rows
from .vocoder_checkpoints import History, export_weights, find_checkpoint, load_checkpoint, save_checkpoint
from .vocoder_config import VocoderConfig, VocoderTrainConfig, load_vocoder_config
from .vocoder_data import MusicCrops, batches
from .vocoder_objective import SpectralObjective, build_vocoder, front_end, log_mel_distance

LOG_EVERY_STEPS = 20
VALIDATION_SEED = 1


class VocoderTrainer:
    """Model, average, optimizer and data of one run.

    Args:
        config: Of the run.
        output_dir: Folder of the run.
        resume: `latest`, a checkpoint's name or path, or `None`, which starts anew.
        max_train_minutes: Overrides the configuration's.
    """

    def __init__(
        self,
        config: VocoderConfig,
        output_dir: Path,
        resume: str | None = None,
        max_train_minutes: float | None = None,
    ) -> None:
        self.config, self.output_dir = config, output_dir
        self.max_seconds = 60 * (max_train_minutes or config.train.max_train_minutes or math.inf)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.transform = front_end(config.mel)
        self.crops, self.validation = self._open_music()

        torch.manual_seed(config.seed)
        self.vocoder = build_vocoder(config).to(self.device)
        self.ema = copy.deepcopy(self.vocoder).requires_grad_(False)
        self.objective = SpectralObjective(self.transform, config.loss.mel, config.loss.mr_stft)
        train = config.train
        self.optimizer = torch.optim.AdamW(
            self.vocoder.parameters(),
            lr=train.lr,
            betas=(train.adam_beta1, train.adam_beta2),
            weight_decay=train.weight_decay,
        )
        self.state: dict[str, Any] = {"step": 0, "seconds": 0.0, "best_log_mel_l1": None}
        output_dir.mkdir(parents=True, exist_ok=True)
        checkpoint = find_checkpoint(output_dir, resume) if resume else None
        if checkpoint is not None:
            self.state = load_checkpoint(checkpoint, self.vocoder, self.ema, self.optimizer)
        elif resume is None and (output_dir / "history.jsonl").exists():
            raise ValueError(f"{output_dir} holds a run: add --resume_from_checkpoint latest, or take another folder.")
        self.history = History(output_dir / "history.jsonl", self.state["step"])
        self.stop_requested = False

    def _open_music(self) -> tuple[MusicCrops, torch.Tensor]:
        """Training crops, with the front end's padding on either side, and the validation clips (clips, samples)."""
        config = self.config
        root = config.data.clean_music_dir
        tracks = {"train": [], "validation": []}  # type: dict[str, list[dict[str, Any]]]
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

    def step(self, batch: torch.Tensor) -> dict[str, float]:
        """One update on crops (batch, pad + samples + pad); returns the losses."""
        batch = batch.to(self.device)
        clean = batch[:, self.transform.pad : -self.transform.pad]
        mel = self.transform.log_mel(self.transform.stft_of_padded(batch))
        vocoded = self.vocoder(mel).sample[:, 0]
        losses = self.objective(vocoded, clean)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.vocoder.parameters(), self.config.train.grad_clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"The gradient is not finite at step {self.state['step']}: lower train.lr.")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.state["step"], self.config.train)
        self.optimizer.step()
        self.state["step"] += 1
        self._average()
        return {name: float(loss.detach()) for name, loss in losses.items()} | {"gradient_norm": float(norm)}

    @torch.no_grad()
    def _average(self) -> None:
        step = self.state["step"]
        decay = min(self.config.train.ema_decay, (1 + step) / (10 + step))  # the first weights are soon forgotten
        for average, parameter in zip(self.ema.parameters(), self.vocoder.parameters(), strict=True):
            average.lerp_(parameter, 1 - decay)

    def validate(self) -> dict[str, float]:
        """Distances of the average weights' copy-synthesis to the validation clips; exports them if they are the best."""
        clips = self.validation
        mels = self.transform.log_mel(self.transform.stft(clips))
        start = time.perf_counter()
        vocoded = vocode(self.ema, mels)
        seconds = time.perf_counter() - start
        figures = distances(vocoded, clips, self.objective)
        figures["real_time_factor"] = seconds * self.config.mel.sample_rate / clips.numel()
        best = self.state["best_log_mel_l1"]
        if best is None or figures["log_mel_l1"] < best:
            self.state["best_log_mel_l1"] = figures["log_mel_l1"]
            export_weights(self.ema, self.output_dir / "export")
        return figures

    def griffin_lim_baseline(self) -> dict[str, float]:
        """The same distances for Griffin-Lim on the same mels."""
        clips = self.validation
        mels = self.transform.log_mel(self.transform.stft(clips))
        return distances(griffin_lim(mels, self.transform, clips.shape[-1]), clips, self.objective)

    def save(self) -> Path:
        return save_checkpoint(
            self.output_dir,
            self.vocoder,
            self.ema,
            self.optimizer,
            self.state,
            self.config.train.checkpoints_total_limit,
        )

    def train(self, on_step: Callable[[VocoderTrainer], None] | None = None) -> None:
        """Trains to the last step, the time limit or a signal; the last checkpoint is always written.

        Args:
            on_step: Called after every step; may set `stop_requested`.
        """
        train, step = self.config.train, self.state["step"]
        if not step and not any(row["kind"] == "griffin_lim" for row in self.history.rows):
            self.history.add({"kind": "griffin_lim", "step": 0, **self.griffin_lim_baseline()})
        stream = batches(self.crops, step, train.max_train_steps, train.batch_size, self.config.data.num_threads)
        saved_at = self.state["seconds"]
        clock = time.perf_counter()
        with closing(stream), tqdm(total=train.max_train_steps, initial=step, desc="vocoder", unit="step") as bar:
            for batch in stream:
                losses = self.step(batch)
                if self.state["step"] % LOG_EVERY_STEPS == 0:
                    self.history.add(self._row("train", losses))
                    bar.set_postfix({name: f"{losses[name]:.3f}" for name in ("mel", "mr_stft")})
                if self.state["step"] % self.config.eval.val_every_steps == 0:
                    self._validate_and_log()
                bar.update()
                elapsed, clock = time.perf_counter() - clock, time.perf_counter()
                self.state["seconds"] += elapsed
                if self.state["seconds"] - saved_at >= 60 * train.checkpointing_minutes:
                    self.save()
                    saved_at = self.state["seconds"]
                if on_step is not None:
                    on_step(self)
                if self.stop_requested or self.state["seconds"] >= self.max_seconds:
                    break
        if not self.stop_requested and (not self.history.rows or self.history.rows[-1]["kind"] != "validation"):
            self._validate_and_log()
        if self.state["step"]:
            self.save()

    def _validate_and_log(self) -> None:
        self.history.add(self._row("validation", self.validate()))

    def _row(self, kind: str, figures: dict[str, float]) -> dict[str, Any]:
        return {"kind": kind, "step": self.state["step"], "seconds": round(self.state["seconds"], 1), **figures}


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


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see training/configs")
    parser.add_argument("--output_dir", type=Path, help="folder of the run (default: runs/EXPERIMENT)")
    parser.add_argument("--clean_music_dir", type=Path, help="overrides data.clean_music_dir")
    parser.add_argument("--resume_from_checkpoint", help="'latest', or a checkpoint's name or path")
    parser.add_argument("--max_train_minutes", type=float, help="stop after so many minutes, resumed ones included")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        config = load_vocoder_config(options.config)
        if options.clean_music_dir is not None:
            data = config.data.model_copy(update={"clean_music_dir": options.clean_music_dir})
            config = config.model_copy(update={"data": data})
        if config.train.cpu_threads is not None:
            torch.set_num_threads(config.train.cpu_threads)
        trainer = VocoderTrainer(
            config,
            options.output_dir or Path("runs") / config.experiment,
            options.resume_from_checkpoint,
            options.max_train_minutes,
        )
    except (ConfigError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    def stop(signum: int, frame: FrameType | None) -> None:
        trainer.stop_requested = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    trainer.train()
    return 0


if __name__ == "__main__":
    sys.exit(main())
