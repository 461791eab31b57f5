"""What a configuration costs, without a GPU: operations, parameters and memory, and what that means on a card.

    python -m training.budget --config training/configs/base.yaml

Operations are counted by `torch.utils.flop_counter` on the meta device, which computes shapes and nothing else, a
multiply and an add as two; memory is what lives at once there. Time on the card is operations over an assumed rate.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import MMAudioVocoder, UNet2DConditionModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import ASTModel

from training.build import build_condition_encoder, build_unet
from training.config import AST_PATCH, TrainingConfig, load_config
from training.memory import CHECKPOINTED_SHARE, activation_bytes, plan_batches

SECONDS = 10.0
CARD = "RTX 4060 Ti, 16 GB"
# Of 44 TFLOP/s that its tensor cores reach in fp16 with float32 sums, convolutions of this size get about a quarter.
EFFECTIVE_FLOPS = 12e12
CONTEXT_BYTES = 600e6  # CUDA's own, and its libraries' work space
CARD_BYTES = 16e9
# NVIDIA's bigvgan_v2_44khz_128band_256x, which the front end of `base` fits.
VOCODER: dict[str, Any] = {
    "num_mels": 128,
    "upsample_initial_channel": 1536,
    "upsample_rates": (4, 4, 2, 2, 2, 2),
    "upsample_kernel_sizes": (8, 8, 4, 4, 4, 4),
}


class LiveBytes(TorchDispatchMode):
    """Peak of the bytes of the tensors that an inference makes and that live at the same time; views count once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._holders: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor)
        return out

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._holders:
            self._holders[key] = 0
            self.now += size
            self.peak = max(self.peak, self.now)
        self._holders[key] += 1
        weakref.finalize(tensor, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if self._holders[key] == 0:
            del self._holders[key]
            self.now -= size


@dataclass(frozen=True)
class Cost:
    """Of one call: operations, and the bytes that its activations need at the most."""

    flops: float
    activation_bytes: float


def measure(call: Callable[[], object]) -> Cost:
    """Cost of a call on meta tensors, without gradients."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad():
        with counter:
            call()
        with LiveBytes() as live:
            call()
    return Cost(float(counter.get_total_flops()), float(live.peak))


def saved_bytes(forward: Callable[[], torch.Tensor]) -> float:
    """Bytes that autograd keeps of a forward pass, parameters aside."""
    kept: dict[int, int] = {}
    held = []  # so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            held.append(tensor)
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward()
    del out
    return float(sum(kept.values()))


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _inputs(config: TrainingConfig, frames: int, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """A UNet call's tensors for one recording in mono, on the meta device."""
    model = config.model
    channels = (1 + 3 * model.max_recordings) * model.patch_size**2
    tokens = 1 + config.mel.n_mels // AST_PATCH
    height, width = config.mel.n_mels // model.patch_size, frames // model.patch_size
    condition = torch.empty(batch, tokens, model.conditioning_dim, dtype=dtype, device="meta")
    return {
        "sample": torch.empty(batch, channels, height, width, dtype=dtype, device="meta"),
        "timestep": torch.empty(batch, dtype=torch.long, device="meta"),
        "encoder_hidden_states": None if model.conditioning == "film" else condition,
        "class_labels": condition.flatten(1) if model.conditioning == "film" else None,
    }


def budget(config: TrainingConfig) -> dict[str, Any]:
    """Everything that the command prints: operations in FLOP, memory in bytes, time in seconds.

    Inference is of 10 s in mono in fp16 (the vocoder in float32), with the configured number of steps.
    """
    with torch.device("meta"):
        unet: UNet2DConditionModel = build_unet(config)
        encoder: ASTModel = build_condition_encoder(config)
        vocoder = MMAudioVocoder(**VOCODER)
    pixel = config.model.level_factors[-1]
    frames = math.ceil(SECONDS * config.audio.sample_rate / config.mel.hop_length / pixel) * pixel
    counts = {name: parameters(each) for name, each in (("unet", unet), ("encoder", encoder), ("vocoder", vocoder))}

    unet.half().eval()
    encoder.half().eval()
    vocoder.eval()
    call = measure(lambda: unet(**_inputs(config, frames, 1, torch.float16)))
    spectrogram = torch.empty(1, config.chunk_frames, config.mel.n_mels, dtype=torch.float16, device="meta")
    encoding = measure(lambda: encoder(spectrogram))
    chunks = math.ceil(frames / config.chunk_frames)
    mel = torch.empty(1, VOCODER["num_mels"], frames, device="meta")
    vocoding = measure(lambda: vocoder(mel))
    steps = config.scheduler.num_inference_steps
    generative = steps * call.flops + chunks * encoding.flops + vocoding.flops
    faithful = call.flops + chunks * encoding.flops
    weights = 2 * (counts["unet"] + counts["encoder"]) + 4 * counts["vocoder"]
    memory = weights + CONTEXT_BYTES + max(call.activation_bytes, encoding.activation_bytes, vocoding.activation_bytes)

    micro_batch, checkpointing = plan_batches(config)
    unet.float().train()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    inputs = _inputs(config, config.chunk_frames, micro_batch, torch.float32)
    kept = saved_bytes(lambda: unet(**inputs).sample.sum())
    if checkpointing:  # on the way back a block is computed again and kept as a whole
        kept = max(kept, micro_batch * CHECKPOINTED_SHARE * activation_bytes(config))
    trained = counts["unet"] + counts["encoder"]
    states = 3 if config.train.optimizer == "muon" else 4  # weights, gradients, momentum, and Adam's second moment
    training = 4 * trained * (states + config.train.ema) + kept + CONTEXT_BYTES
    return {
        "parameters": counts,
        "seconds": SECONDS,
        "steps": steps,
        "unet_call_flops": call.flops,
        "condition_encoder_flops": chunks * encoding.flops,
        "vocoder_flops": vocoding.flops,
        "activation_bytes": {
            "unet": call.activation_bytes,
            "condition_encoder": encoding.activation_bytes,
            "vocoder": vocoding.activation_bytes,
        },
        "inference_bytes": memory,
        "predicted_seconds": {
            "faithful": faithful / EFFECTIVE_FLOPS,
            "vocoder": generative / EFFECTIVE_FLOPS,
        },
        "training_step": {
            "micro_batch": micro_batch,
            "gradient_checkpointing": checkpointing,
            "kept_activation_bytes": kept,
            "bytes": training,
            "fits": training < CARD_BYTES,
        },
        "assumptions": {"card": CARD, "effective_flops": EFFECTIVE_FLOPS, "context_bytes": CONTEXT_BYTES},
    }


def describe(found: dict[str, Any]) -> str:
    """The budget in lines to read."""
    counts, step, times = found["parameters"], found["training_step"], found["predicted_seconds"]
    flops = {name: found[f"{name}_flops"] / 1e12 for name in ("unet_call", "condition_encoder", "vocoder")}
    activations = {name: size / 1e9 for name, size in found["activation_bytes"].items()}
    return "\n".join(
        [
            f"parameters:      UNet {counts['unet'] / 1e6:.1f} M, condition encoder {counts['encoder'] / 1e6:.1f} M,"
            f" vocoder {counts['vocoder'] / 1e6:.1f} M (NVIDIA's 44 kHz)",
            f"operations:      UNet call {flops['unet_call']:.3f} TFLOP, condition encoder"
            f" {flops['condition_encoder']:.3f}, vocoder {flops['vocoder']:.3f}, for {found['seconds']:g} s in mono",
            f"activations:     UNet {activations['unet']:.2f} GB, condition encoder"
            f" {activations['condition_encoder']:.2f}, vocoder {activations['vocoder']:.2f}",
            f"inference:       {found['inference_bytes'] / 1e9:.2f} GB; faithful {times['faithful']:.2f} s, vocoder in"
            f" {found['steps']} steps {times['vocoder']:.2f} s",
            f"a training step: {step['bytes'] / 1e9:.2f} GB in float32 with micro-batches of {step['micro_batch']},"
            f" gradient checkpointing {'on' if step['gradient_checkpointing'] else 'off'}"
            f" ({'fits' if step['fits'] else 'DOES NOT FIT'} {CARD_BYTES / 1e9:.0f} GB)",
            f"assumed:         {CARD} at {EFFECTIVE_FLOPS / 1e12:g} TFLOP/s, {CONTEXT_BYTES / 1e9:g} GB for CUDA",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m training.budget", description=description)
    parser.add_argument("--config", type=Path, required=True, help="a preset of training/configs")
    parser.add_argument("--json", action="store_true", help="numbers for a program")
    options = parser.parse_args(argv)
    try:
        found = budget(load_config(options.config, []))
    except (ValueError, OSError) as error:
        print(f"budget: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=1) if options.json else describe(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
