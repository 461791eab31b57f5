"""Muon: momentum whose matrices are made orthogonal, and AdamW for what is no matrix.

`torch.optim.Muon` takes matrices only; nearly all weights here are convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from pipeline_aud2studio.precision import preferred_dtype

# Keller Jordan's quintic, which brings singular values of 0.002 to 1 into 0.7 to 1.2 in five iterations.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
RMS_OF_ADAM = 0.2  # typical root mean square of AdamW's update, with which the two share a learning rate


class Muon(Optimizer):
    """Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).

    A matrix is updated by its Nesterov momentum with all singular values set to about one, scaled like AdamW's update
    (Liu et al., "Muon is scalable for LLM training", 2025, equation 4). A convolution is the matrix
    (out, in * height * width).

    Args:
        matrices: Weights of two or more dimensions inside the network.
        others: All other parameters; AdamW updates them.
        lr: Learning rate of both.
        momentum: Of the matrices.
        betas, weight_decay: As in AdamW; the weight decay is that of both.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._adamw = AdamW(others, lr=lr, betas=betas, weight_decay=weight_decay)
        self.param_groups += self._adamw.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        # Both look at one state, which `load_state_dict` may have replaced.
        self._adamw.state, self._adamw.param_groups = self.state, self.param_groups[1:]
        loss = self._adamw.step(closure)
        group = self.param_groups[0]
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            buffer = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
            buffer.lerp_(parameter.grad, 1 - group["momentum"])
            matrix = parameter.grad.lerp(buffer, group["momentum"]).flatten(1)
            # As its authors do: the iteration corrects itself, and takes a third of the time where bfloat16 is fast.
            update = orthogonalized(matrix.to(preferred_dtype(matrix.device.type))).reshape(parameter.shape)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * RMS_OF_ADAM * max(matrix.shape) ** 0.5)
        return loss


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """`matrix` (rows, columns) with its singular values brought near one by Newton and Schulz' iteration."""
    a, b, c = NEWTON_SCHULZ
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp_min(1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = wide @ wide.T
        wide = a * wide + torch.addmm(gram, gram, gram, beta=b, alpha=c) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
