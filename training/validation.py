"""Validation through the path that users take: the pipeline, on a fixed set of clips."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline_aud2studio import Aud2StudioPipeline
from pipeline_aud2studio.spectral import BandTransform

from .evaluation import metrics
from .evaluation.clips import SAMPLE_RATE, Clip

logger = logging.getLogger(__name__)

Metric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
METRICS: dict[str, Metric] = {
    "si_sdr": metrics.si_sdr,
    "sdr": metrics.sdr,
    "multi_resolution_stft": metrics.multi_resolution_stft,
    "log_spectral_distance": metrics.log_spectral_distance,
}
PICTURED_CLIPS = 4


@dataclass(frozen=True)
class Report:
    """What a validation found: means over the clips, and the restored clips (channels, samples)."""

    scores: dict[str, float]
    restored: list[np.ndarray]


def find_metrics(names: Iterable[str]) -> dict[str, Metric]:
    """The metrics with these names; those that need more than a pair of clips are skipped with a notice."""
    wanted = list(names)
    for name in wanted:
        if name not in METRICS:
            logger.warning("The metric %s is not available in validation and is skipped.", name)
    return {name: METRICS[name] for name in wanted if name in METRICS}


def validate(
    pipeline: Aud2StudioPipeline,
    clips: Sequence[Clip],
    chosen: dict[str, Metric],
    seed: int = 0,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Report | None:
    """Restores the clips at the pipeline's default steps and averages the metrics against the early sound.

    Returns:
        `NAME` and `NAME_change` (against the recording as it is) of every metric, and the change of every group,
        `NAME_change/CONDITION`, `NAME_change/voice` and `NAME_change/no voice`; nothing if the run was asked to stop
        meanwhile.
    """
    rows: list[tuple[set[str], dict[str, float]]] = []
    restored = []
    for number, clip in enumerate(clips):
        if stop_requested():
            return None
        generator = torch.Generator().manual_seed(seed + number)
        audio = pipeline(clip.recording, SAMPLE_RATE, generator=generator).audios[0]
        restored.append(audio)
        estimate, recording, early = (torch.from_numpy(part.copy()) for part in (audio, clip.recording, clip.early))
        row = {}
        for name, metric in chosen.items():
            row[name] = float(metric(estimate, early).mean())
            row[f"{name}_change"] = row[name] - float(metric(recording, early).mean())
        rows.append(({clip.condition, "voice" if clip.has_voice else "no voice"}, row))
    scores = _means(row for _, row in rows)
    for group in sorted(set[str]().union(*(groups for groups, _ in rows))):
        of_group = _means(row for groups, row in rows if group in groups)
        scores |= {f"{name}_change/{group}": of_group[f"{name}_change"] for name in chosen}
    return Report(scores, restored)


def _means(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    collected = list(rows)
    return {name: float(np.mean([row[name] for row in collected])) for name in (collected[0] if collected else {})}


def mel_picture(transform: BandTransform, waveforms: Iterable[np.ndarray]) -> np.ndarray:
    """Log-mels of `waveforms` (samples), one above the other: RGB (height, width, 3), 0 to 255."""
    from matplotlib import colormaps  # slow to import, and only validation needs it

    mels = [transform.log_mel(transform.stft(torch.from_numpy(waveform))).flip(0).numpy() for waveform in waveforms]
    mel = np.concatenate(mels)
    low, high = np.quantile(mel, [0.02, 0.998])
    scaled = np.clip((mel - low) / max(high - low, 1e-6), 0, 1)
    return (colormaps["magma"](scaled)[..., :3] * 255).astype(np.uint8)


def write_pictures(
    trackers: Sequence[Any], transform: BandTransform, clips: Iterable[Mapping[str, np.ndarray]], step: int
) -> None:
    """Shows spectrograms of the first clips in every tracker, and plays them where it is TensorBoard.

    Args:
        clips: The waveforms (samples) of every clip by name, to be shown one above the other.
    """
    for number, clip in enumerate(itertools.islice(clips, PICTURED_CLIPS)):
        picture = mel_picture(transform, clip.values())
        for tracker in trackers:
            if tracker.name == "tensorboard":
                tracker.writer.add_image(f"validation/{number}", picture, step, dataformats="HWC")
                for name, waveform in clip.items():
                    level = max(1.0, float(np.abs(waveform).max()))
                    tracker.writer.add_audio(
                        f"validation/{number}/{name}", waveform[None] / level, step, transform.sample_rate
                    )
            elif hasattr(tracker, "log_images"):
                tracker.log_images({f"validation/{number}": picture[None]}, step=step)
