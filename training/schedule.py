"""What changes with the step: the learning rate, the decay of the averaged weights, and every step's own seed."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from .config import OptimizerConfig

Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


def learning_rate(step: int, train: OptimizerConfig) -> float:
    """Learning rate of the optimizer step `step`, counted from 0.

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
    """Decay of the averaged weights after `num_updates` updates: `min(decay, (1 + n) / (10 + n))`.

    The early values, those of diffusers and TensorFlow, let go of the random initial weights.
    """
    return min(decay, (1 + num_updates) / (10 + num_updates))


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of `model` whose weights are an exponential moving average; the first update copies the weights."""

    @torch.no_grad()
    def update(averages: Tensors, weights: Tensors, num_updates: torch.Tensor | int) -> None:
        torch._foreach_lerp_(list(averages), list(weights), 1 - ema_decay(int(num_updates), decay))

    return AveragedModel(model, multi_avg_fn=update)


def step_seed(seed: int, step: int, rank: int, part: int) -> int:
    """Seed of the noise of one part of one step on one process, independent of all others.

    Noise that is a function of where training stands needs no saved generator state to resume to the bit.
    """
    return int(np.random.SeedSequence([seed, step, rank, part]).generate_state(1, np.uint64)[0] >> np.uint64(1))
