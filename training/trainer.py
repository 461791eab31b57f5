"""The training of the UNet and its condition encoder."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from diffusers import MMAudioVocoder, UNet2DConditionModel
from tqdm.auto import tqdm
from transformers import ASTForAudioClassification

from pipeline_aud2studio import Aud2StudioPipeline

from .build import (
    build_condition_encoder,
    build_image,
    build_objective,
    build_optimizer,
    build_pipeline,
    build_unet,
)
from .checkpoints import (
    atomic_folder,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    prune_checkpoints,
    save_checkpoint,
)
from .config import TrainingConfig
from .data.batches import SceneLoader
from .data.real_pairs import open_scenes
from .evaluation.clips import load_clips
from .loop import Run, TrainingStopped, averaged, learning_rate, step_seed
from .validation import find_metrics, validate, write_pictures

logger = logging.getLogger(__name__)

BEST_BY = "si_sdr_change"
STEPS_PER_EPOCH = 1000  # scenes are rendered without end


class Trainer(Run):
    """One training run of the UNet and its condition encoder.

    Args:
        config: What is trained, and how.
        output_dir: The run's folder.
        report_to: Tracker that accelerate knows, or "none".
    """

    def __init__(self, config: TrainingConfig, output_dir: Path, report_to: str) -> None:
        train = config.train
        mixed_precision = train.mixed_precision
        if mixed_precision == "fp16" and not torch.cuda.is_available():
            logger.warning("fp16 needs a GPU: training in float32.")
            mixed_precision = "no"
        super().__init__(config, output_dir, report_to, mixed_precision)
        self.max_steps = train.max_train_steps or STEPS_PER_EPOCH * train.epochs
        set_seed(config.seed)

        unet, condition_encoder = build_unet(config), build_condition_encoder(config)
        if train.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
            condition_encoder.activation_checkpointing_enable()
        unet.to(
            memory_format=torch.channels_last
        )  # bfloat16 is five times as fast with it, on CPUs that multiply in it
        objective = build_objective(config, unet, condition_encoder).to(self.device)
        self.parameters = dict(objective.named_parameters())
        self.ema = averaged(objective, train.ema_decay).eval() if train.ema else None
        optimizer = build_optimizer(train, objective)
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)
        self.objective.train()

        self.loader = SceneLoader(
            open_scenes(config),
            build_image(config),
            config.chunk_frames,
            train.batch_size,
            config.data.num_workers,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        folder = config.data.validation_clips
        self.clips = load_clips(folder)[: config.eval.num_clips] if self.is_main and folder else []
        self.metrics = find_metrics(config.eval.metrics) if self.is_main else {}
        if self.is_main:
            if not self.clips:
                logger.warning("data.validation_clips is not set: there will be no validation.")
            if config.export.vocoder is None:
                logger.warning("export.vocoder is not set: exported pipelines load with `vocoder=None` only.")

    def init_from(self, folder: Path) -> None:
        """Takes the weights of a folder with `unet`, `condition_encoder` or both; the rest begins afresh.

        Raises:
            ValueError: If the folder holds no such weights or those of another architecture.
        """
        objective = self.accelerator.unwrap_model(self.objective)
        found = [name for name in ("unet", "condition_encoder") if (folder / name).is_dir()]
        if not found:
            raise ValueError(f"--init_from {folder}: there is no `unet` and no `condition_encoder` in this folder")
        try:
            if "unet" in found:
                unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
                objective.unet.load_state_dict(unet.state_dict())
            if "condition_encoder" in found:
                encoder = ASTForAudioClassification.from_pretrained(folder / "condition_encoder", dtype=torch.float32)
                objective.condition_encoder.load_state_dict(encoder.state_dict())
            if self.ema is not None:
                self.ema.module.load_state_dict(objective.state_dict())
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"--init_from {folder}: its weights do not fit this configuration: {reason}") from error

    def resume(self, path: Path) -> None:
        """Goes back to where a checkpoint was written.

        Raises:
            ValueError: If the checkpoint is damaged or of another architecture.
        """
        tensors, state = load_checkpoint(path)
        objective = self.accelerator.unwrap_model(self.objective)
        try:
            objective.load_state_dict(tensors["model"], strict=False)
            if missing := set(self.parameters) ^ set(tensors["model"]):
                raise KeyError(f"{sorted(missing)[0]} is in one of them only")
            if self.ema is not None:
                self.ema.module.load_state_dict(tensors["ema"], strict=False)
                self.ema.n_averaged.fill_(state["ema_updates"])
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{path} does not fit this configuration: {error}") from error
        load_optimizer_tensors(self.optimizer.optimizer, self.parameters, tensors["optimizer"])
        if self.accelerator.scaler is not None and state["grad_scaler"]:
            self.accelerator.scaler.load_state_dict(state["grad_scaler"])
        self.loader.load_state_dict(state["data"])
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        logger.info("Resumed from %s.", path)

    def save(self) -> None:
        """Writes a checkpoint and deletes those beyond the limit."""
        if not self.is_main:
            return
        scaler = self.accelerator.scaler
        state = {
            "seconds": self.seconds,
            "best": self.best,
            "data": self.loader.state_dict(),
            "ema_updates": 0 if self.ema is None else int(self.ema.n_averaged),
            "grad_scaler": None if scaler is None else scaler.state_dict(),
            "config": self.config.model_dump(mode="json"),
        }
        tensors: dict[str, Mapping[str, torch.Tensor]] = {
            "model": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "optimizer": optimizer_tensors(self.optimizer.optimizer, self.parameters),
        }
        if self.ema is not None:
            tensors["ema"] = {name: parameter.detach() for name, parameter in self.ema.module.named_parameters()}
        save_checkpoint(self.output_dir, self.step, tensors, state)
        prune_checkpoints(self.output_dir, self.config.train.checkpoints_total_limit)

    def batches(self) -> Iterator[dict[str, Any]]:
        yield from self.loader

    def train_step(self, batches: Iterator[dict[str, Any]]) -> dict[str, float]:
        """One optimizer step; returns the losses, the norm of the gradient and the learning rate."""
        train = self.config.train
        rate = learning_rate(self.step, train)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        sums: dict[str, float] = {}
        parts = [part for _ in range(train.gradient_accumulation_steps) for part in self._parts(next(batches))]
        for number, (part, share) in enumerate(parts):
            seed = step_seed(self.config.seed, self.step, self.accelerator.process_index, number)
            torch.manual_seed(seed)  # for dropout, if the models have any
            is_last = number == len(parts) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.objective):
                losses = self.objective(part, torch.Generator().manual_seed(seed))
                self._check_finite(losses, part)
                self.accelerator.backward(losses["loss"] * share)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + share * float(loss.detach())
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), train.grad_clip)
        if self.accelerator.scaler is None:  # with fp16 the scaler skips steps whose gradient overflows
            self._check_finite({"gradient": norm}, {"row_id": [row for part, _ in parts for row in part["row_id"]]})
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update_parameters(self.accelerator.unwrap_model(self.objective))
        return {**sums, "grad_norm": float(norm), "lr": rate}

    def _parts(self, batch: dict[str, Any]) -> Iterator[tuple[dict[str, Any], float]]:
        """Micro-batches on the device, each with its share of the step's loss."""
        size = len(batch["row_id"])
        micro_batch_size = self.config.train.micro_batch_size
        for start in range(0, size, micro_batch_size):
            part = {key: value[start : start + micro_batch_size] for key, value in batch.items()}
            share = len(part["row_id"]) / size / self.config.train.gradient_accumulation_steps
            yield (
                {
                    k: v.to(self.device, non_blocking=True) if isinstance(v, torch.Tensor) else v
                    for k, v in part.items()
                },
                share,
            )

    def _check_finite(self, values: Mapping[str, torch.Tensor], batch: Mapping[str, Any]) -> None:
        if all(bool(torch.isfinite(value.detach()).all()) for value in values.values()):
            return
        path = self.output_dir / f"non_finite_rank{self.accelerator.process_index}.json"
        found = {name: float(value.detach()) for name, value in values.items()}
        path.write_text(json.dumps({"step": self.step, "values": found, "row_id": batch["row_id"]}), encoding="utf-8")
        wrong = [name for name, value in values.items() if not torch.isfinite(value.detach()).all()]
        raise TrainingStopped(f"step {self.step}: {', '.join(wrong)} not finite; the rows of the batch are in {path}")

    def shown(self, means: Mapping[str, float], steps_per_s: float) -> dict[str, str]:
        train = self.config.train
        scenes = train.batch_size * train.gradient_accumulation_steps * self.accelerator.num_processes
        postfix = {**super().shown(means, steps_per_s), "samples_per_s": f"{steps_per_s * scenes:.2f}"}
        if train.max_train_minutes is not None:
            postfix["minutes_left"] = f"{train.max_train_minutes - self.seconds / 60:.0f}"
        return postfix

    def validate(self) -> None:
        """Restores the validation clips, reports, and keeps the pipeline if it is the best so far."""
        if not self.clips or not self.metrics:
            return
        pipeline = self.pipeline()
        report = validate(
            pipeline, self.clips, self.metrics, stop_requested=lambda: self.stop is not None and self.stop.requested
        )
        if report is None:
            return
        self.report({f"validation/{name}": value for name, value in report.scores.items()})
        pictured = (
            {"recording": clip.recording[0], "restored": restored[0], "early": clip.early[0]}
            for clip, restored in zip(self.clips, report.restored, strict=True)
        )
        write_pictures(self.accelerator.trackers, pipeline.transform, pictured, self.step)
        tqdm.write(f"step {self.step}: " + ", ".join(f"{name} {value:.3f}" for name, value in report.scores.items()))
        score = report.scores.get(BEST_BY)
        if score is not None and (self.best is None or score > self.best):
            self.best = score
            best = self.output_dir / f"best-{self.step}"
            self.export(best)
            for older in set(self.output_dir.glob("best-*")) - {best}:
                shutil.rmtree(older)

    def pipeline(self) -> Aud2StudioPipeline:
        """The pipeline with the averaged weights, or a copy of the current ones if there is no average."""
        if self.ema is None:
            objective = copy.deepcopy(self.accelerator.unwrap_model(self.objective)).eval()
        else:
            objective = self.ema.module
        pipeline = build_pipeline(self.config, objective.unet, objective.condition_encoder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def export(self, folder: Path) -> None:
        """Writes the pipeline with the averaged weights as a folder in the Hub's layout."""
        pipeline = self.pipeline()
        unet, condition_encoder = copy.deepcopy(pipeline.unet), copy.deepcopy(pipeline.condition_encoder)
        if self.config.export.half_precision:
            # Not the small encoder: transformers computes in the precision of the file, diffusers in float32.
            unet = unet.half()
        vocoder = self.config.export.vocoder
        pipeline = build_pipeline(
            self.config, unet, condition_encoder, vocoder and MMAudioVocoder.from_pretrained(vocoder)
        )
        with atomic_folder(folder) as temporary:
            pipeline.save_pretrained(temporary)
