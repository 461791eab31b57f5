"""Which precision the networks get where nobody says, and what is done where one overflows in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from diffusers.utils import logging
from torch import nn

logger = logging.get_logger(__name__)


class NonFiniteError(ValueError):
    """A network gives NaN or infinite values in float32 too."""


def preferred_dtype(device: str) -> torch.dtype:
    """bfloat16 where the device multiplies in it: CUDA, and CPUs with AVX-512 BF16 or AMX; float32 elsewhere.

    A CPU without these instructions converts back and forth, and is slower than in float32.
    """
    if device.startswith("cuda"):
        return torch.bfloat16
    if device == "cpu":
        # A torch that cannot tell what the CPU does is taken for one that runs on none of these.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
            return torch.bfloat16
    return torch.float32


Result = TypeVar("Result", torch.Tensor, tuple[torch.Tensor, torch.Tensor])


def finite_or_again(compute: Callable[[], Result], networks: Mapping[str, nn.Module], where: str) -> Result:
    """Computes, and does it again with all networks in float32 if the result is not finite.

    The networks get their own precision back, to the bit: float32 holds every half-precision number.

    Args:
        compute: Runs the networks.
        networks: By name.
        where: Names the place in messages, as "at 12.0 s".

    Raises:
        NonFiniteError: The result is not finite in float32 either.
    """
    result = compute()
    if _is_finite(result):
        return result
    lower = {name: network for name, network in networks.items() if _dtype(network) != torch.float32}
    names = " and ".join(networks)
    if lower:
        precision = ", ".join(f"{name} in {str(_dtype(each)).removeprefix('torch.')}" for name, each in lower.items())
        logger.warning(f"The output of {precision} is not finite {where}: it is computed again in float32.")
        dtypes = {name: _dtype(network) for name, network in lower.items()}
        try:
            for network in lower.values():
                network.float()
            result = compute()
        finally:
            for name, network in lower.items():
                network.to(dtypes[name])
        if _is_finite(result):
            return result
    raise NonFiniteError(
        f"The output of {names} is not finite {where}, in float32: the weights are damaged, or do not fit the rest."
    )


def _is_finite(result: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> bool:
    parts = (result,) if isinstance(result, torch.Tensor) else result
    # A sum holds whatever NaN or infinity one of its terms has.
    return all(bool(torch.isfinite(part.sum())) for part in parts)


def _dtype(network: nn.Module) -> torch.dtype:
    return network.dtype  # type: ignore[return-value]  # of diffusers' and transformers' models
