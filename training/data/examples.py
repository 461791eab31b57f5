"""Training examples: what the pipeline would see of a scene, cut into chunks, with what is wanted of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pipeline_aud2studio.conditioning import LABEL_MEANS, LABEL_SCALES
from pipeline_aud2studio.features import PATCH, BandImage, Features
from pipeline_aud2studio.prediction import predict_late
from pipeline_aud2studio.takes import assign_slots, level_gain, rms

from .scenes import Scene

EXAMPLES_PER_SCENE = 3
LEVEL_SPREAD_DB = 3.0  # standard deviation of the level: a part of a long recording is not as loud as the whole
Example = dict[str, torch.Tensor]


@torch.no_grad()
def scene_examples(scene: Scene, image: BandImage, chunk_frames: int, rng: np.random.Generator) -> list[Example]:
    """Cuts at most three chunks out of a scene, which do not overlap; one channel of the first recording is restored.

    Every recording comes to the normal level on its own, as in the pipeline, and the target keeps its level in the
    first.

    Args:
        scene: At the image's sampling rate, of at least a chunk.
        image, chunk_frames: As the pipeline has them.
        rng: Draws the channel, the level, and where the chunks begin.

    Returns:
        Examples without a batch dimension: the fields of :class:`Features`; `stft` and `late` (bins, frames); `target`
        (samples), `target_log_mel` (1, mel, mel_frames) and `target_power` (bands, frames); `labels` (labels).
    """
    coarse, hop = image.coarse, image.coarse.hop_length
    num_frames = scene.target.shape[-1] // hop
    spread = 10 ** (float(rng.normal(0.0, LEVEL_SPREAD_DB)) / 20)
    gains = [spread * level_gain(rms(recording)) for recording in scene.recordings]
    recordings = [gain * recording for gain, recording in zip(gains, scene.recordings, strict=True)]
    channels = torch.from_numpy(np.concatenate(recordings)[:, : num_frames * hop]).float()
    target = torch.from_numpy(gains[0] * scene.target[:, : num_frames * hop]).float()

    slots = assign_slots([len(recording) for recording in recordings], image.max_recordings)
    stft, target_stft = coarse.stft(channels), coarse.stft(target)
    # As in the pipeline, the power of all channels of the recording weighs; only one is needed from here on.
    row = int(rng.integers(len(target)))
    late = predict_late(stft, len(target))[row : row + 1]
    target, target_stft = target[row : row + 1], target_stft[row : row + 1]
    features = image.features(stft, late, image.fine.log_mel(image.fine.stft(channels)), slots[row : row + 1])
    target_log_mel = image.fine.log_mel(image.fine.stft(target))[:, None]
    target_power = coarse.average(target_stft.real.square() + target_stft.imag.square())
    labels = scaled_labels(scene.labels)

    count = min(EXAMPLES_PER_SCENE, num_frames // chunk_frames)
    free = num_frames // count - chunk_frames  # of a share of the scene, frames that its chunk leaves
    examples = []
    for share in range(count):
        first = share * (num_frames // count) + int(rng.integers(free + 1))
        frames, mel_frames = slice(first, first + chunk_frames), slice(PATCH * first, PATCH * (first + chunk_frames))
        chunk = features.cut(first, chunk_frames)
        examples.append(
            {name: part[0].clone() for name, part in zip(Features._fields, chunk, strict=True)}
            | {
                "stft": stft[row, :, frames].clone(),
                "late": late[0, :, frames].clone(),
                "target": target[0, first * hop : (first + chunk_frames) * hop].clone(),
                "target_log_mel": target_log_mel[0, ..., mel_frames].clone(),
                "target_power": target_power[0, :, frames].clone(),
                "labels": labels,
            }
        )
    return examples


def scaled_labels(labels: Mapping[str, float]) -> torch.Tensor:
    """What the condition encoder's classifier is to say of a scene (labels), NaN where it has nothing to say."""
    values = [
        math.log(labels["rt60_s"]),
        labels["drr_db"],
        labels["snr_db"],
        math.log(labels["bandwidth_hz"]),
        labels["voice"],
    ]
    return (torch.tensor(values) - torch.tensor(LABEL_MEANS)) / torch.tensor(LABEL_SCALES)


def collate(examples: Sequence[Example]) -> dict[str, Any]:
    """Stacks examples; those with fewer recordings than others get missing ones."""
    slots = max(len(example["present"]) for example in examples)
    for example in examples:
        missing = slots - len(example["present"])
        example["log_mel"] = torch.nn.functional.pad(example["log_mel"], (0, 0, 0, 0, 0, missing))
        example["present"] = torch.nn.functional.pad(example["present"], (0, missing))
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}
