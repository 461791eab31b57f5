"""Weights of a vocoder, as the beginning of one with stages before its first.

A stage costs as much as the samples it computes. One that does not upsample works on the mel's frames, hundreds of
times fewer than the waveform's samples: there, a vocoder is made wider and deeper at hardly any cost. As in `grow.py`,
it begins with the same function.
"""

from __future__ import annotations

import torch
from diffusers import MMAudioVocoder


def grown_state(vocoder: MMAudioVocoder, smaller: MMAudioVocoder) -> dict[str, torch.Tensor]:
    """The state of `vocoder` with which it computes what `smaller` does.

    A further stage hands on the first half of its channels; the residual branches that follow add nothing yet. What is
    new before these zeros keeps the random values of `vocoder`.

    Args:
        vocoder: A model with stages of rate 1 before those of `smaller`, otherwise alike.
        smaller: A model with weights.

    Returns:
        A state dict for `vocoder`.

    Raises:
        ValueError: If the models differ in something else.
    """
    further = len(vocoder.config["upsample_rates"]) - len(smaller.config["upsample_rates"])
    if tuple(vocoder.config["upsample_rates"]) != (1,) * further + tuple(smaller.config["upsample_rates"]):
        raise ValueError(
            f"upsample_rates cannot go from {list(smaller.config['upsample_rates'])} to "
            f"{list(vocoder.config['upsample_rates'])}: only stages of rate 1 can be put before the first"
        )
    further_blocks = further * vocoder.num_kernels
    weights = smaller.state_dict()
    grown, new = {}, 0
    for name, value in vocoder.state_dict().items():
        part, _, rest = name.partition(".")
        number, _, kind = rest.partition(".")
        before = {"ups": further, "resblocks": further_blocks}.get(part, 0)
        source = f"{part}.{int(number) - before}.{kind}" if before else name
        if before and int(number) < before:
            grown[name] = _identity(part, kind, value)
            new += 1
        elif source not in weights:
            raise ValueError(f"{source} is missing")
        elif part == "conv_pre":
            grown[name] = torch.cat([weights[name], value[len(weights[name]) :]])
        else:
            grown[name] = weights[source]
        if grown[name].shape != value.shape:
            raise ValueError(f"{source} is of another shape")
    if len(weights) != len(grown) - new:
        raise ValueError("the smaller model has weights that the other one has no place for")
    return grown


def _identity(part: str, kind: str, value: torch.Tensor) -> torch.Tensor:
    """A parameter of a stage that hands on the first half of its channels."""
    if part == "ups":
        handed_on = torch.zeros_like(value)
        if kind.endswith("weight"):  # (in, out, taps)
            handed_on[: value.shape[1], :, value.shape[2] // 2] = torch.eye(value.shape[1])
        return handed_on
    return torch.zeros_like(value) if kind.startswith("convs2.") else value
