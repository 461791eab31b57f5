"""Weights of a UNet with fewer layers per block, as the beginning of one with more.

A deeper model need not learn anew what a shallower one knows: layers that change nothing are put between those that
are there (Chen et al. 2016, "Net2Net: accelerating learning via knowledge transfer"), and training goes on from the
same function.
"""

from __future__ import annotations

import re

import torch
from diffusers import UNet2DConditionModel

LAYER = re.compile(
    r"(?P<block>(?P<side>down|up)_blocks\.\d+)\.(?P<kind>resnets|attentions)\.(?P<number>\d+)\.(?P<rest>.+)"
)


def grown_state(unet: UNet2DConditionModel, shallower: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """The state of `unet` with which it computes what `shallower` does.

    The further layers come after those of a block that goes down, and behind the first of a block that goes up, where
    the skips that they take are copies of the first one's. Their first convolutions keep the random values of `unet`,
    their last ones are zero: the sum with the input is the input.

    Args:
        unet: A model with at least as many layers per block, otherwise alike.
        shallower: A model with weights.

    Returns:
        A state dict for `unet`.

    Raises:
        ValueError: If `unet` has fewer layers per block, or the models differ in something else.
    """
    layers, before = unet.config["layers_per_block"], shallower.config["layers_per_block"]
    if not isinstance(layers, int) or not isinstance(before, int) or layers < before:
        raise ValueError(f"layers_per_block cannot go from {before} to {layers}")
    weights = shallower.state_dict()
    grown = {}
    for name, value in unet.state_dict().items():
        source = _source(name, before, layers - before)
        if source is None:
            grown[name] = _identity(name, value)
        elif source not in weights or weights[source].shape != value.shape:
            raise ValueError(f"{source} is missing or of another shape")
        else:
            grown[name] = weights[source]
    if len(weights) != sum(_source(name, before, layers - before) is not None for name in grown):
        raise ValueError("the shallower model has weights that the other one has no place for")
    return grown


def _source(name: str, before: int, further: int) -> str | None:
    """Name of the same parameter in the shallower model; none for a layer that it does not have."""
    match = LAYER.fullmatch(name)
    if match is None:
        return name
    number = int(match["number"])
    if match["side"] == "down":
        source = number if number < before else None
    else:
        source = 0 if number == 0 else number - further if number > further else None
    return None if source is None else f"{match['block']}.{match['kind']}.{source}.{match['rest']}"


def _identity(name: str, value: torch.Tensor) -> torch.Tensor:
    """A parameter of a layer that leaves its input as it is."""
    if ".conv2." in name or ".proj_out." in name or name.endswith("conv_shortcut.bias"):
        return torch.zeros_like(value)
    if name.endswith("conv_shortcut.weight"):  # the input comes first, the skip behind it
        identity = torch.zeros_like(value)
        identity[:, : len(value), 0, 0] = torch.eye(len(value))
        return identity
    return value
