"""The networks of the pipeline as ONNX Runtime computes them, with what the pipeline asks of torch's.

    pipeline = load_onnx_pipeline(Path("onnx"))  # a folder that `aud2studio export-onnx` wrote

The STFT, the image and the read-outs stay torch's; they are a few per cent of the work.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import MMAudioVocoder, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn
from tqdm.auto import tqdm
from transformers import ASTConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from .. import shipped_weights
from ..conditioning import FILM
from ..features import PATCH
from ..pipeline import Aud2StudioPipeline

MODEL = "model.onnx"
INSTALL = "pip install 'aud2studio[onnx]'"


class OnnxNetwork(nn.Module):
    """A network in a file, computed on the CPU in the precision that the file has.

    Args:
        folder: Holds `model.onnx`.
        config: What torch's network is configured with.

    Raises:
        ValueError: ONNX Runtime is not installed.
    """

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, folder: Path, config: Any) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError:
            raise ValueError(f"ONNX Runtime is not installed: {INSTALL}") from None
        onnxruntime.disable_telemetry_events()
        content = (folder / MODEL).read_bytes()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.config = config

    def computed(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Runs the file's network on its inputs, in their order."""
        names = [each.name for each in self.session.get_inputs()]
        feed = {name: each.contiguous().numpy() for name, each in zip(names, inputs, strict=True)}
        return torch.from_numpy(self.session.run(None, feed)[0])


class OnnxUNet(OnnxNetwork):
    """In place of `UNet2DConditionModel`."""

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
    ) -> UNet2DConditionOutput:
        """See `UNet2DConditionModel.forward`. The mask has to be true everywhere: the file's network has none."""
        assert encoder_attention_mask is None or encoder_attention_mask.all(), "the pipeline stacks what exists"
        condition = class_labels if encoder_hidden_states is None else encoder_hidden_states
        assert condition is not None
        return UNet2DConditionOutput(sample=self.computed(sample, timestep.to(torch.int64), condition))


class OnnxConditionEncoder(OnnxNetwork):
    """In place of `ASTForAudioClassification`."""

    def __init__(self, folder: Path, config: Any) -> None:
        super().__init__(folder, config)
        # The file's network has its last normalisation within.
        self.audio_spectrogram_transformer = nn.Module()
        self.audio_spectrogram_transformer.layernorm = nn.Identity()

    def forward(self, input_values: torch.Tensor, output_hidden_states: bool = True) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=None, hidden_states=(self.computed(input_values),))


class OnnxVocoder(OnnxNetwork):
    """In place of `MMAudioVocoder`."""

    def forward(self, log_mel: torch.Tensor) -> DecoderOutput:
        return DecoderOutput(sample=self.computed(log_mel))


def load_onnx_pipeline(folder: Path) -> Aud2StudioPipeline:
    """The pipeline of a folder that `aud2studio export-onnx` wrote."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    settings = {name: value for name, value in index.items() if name[0] != "_" and not isinstance(value, list)}
    scheduler_class = getattr(diffusers, index["scheduler"][1])
    unet, vocoder = (
        diffusers.configuration_utils.FrozenDict(kind.load_config(folder / name))
        for kind, name in ((UNet2DConditionModel, "unet"), (MMAudioVocoder, "vocoder"))
    )
    return Aud2StudioPipeline(
        unet=OnnxUNet(folder / "unet", unet),
        scheduler=scheduler_class.from_pretrained(folder / "scheduler"),
        condition_encoder=OnnxConditionEncoder(
            folder / "condition_encoder", ASTConfig.from_pretrained(folder / "condition_encoder")
        ),
        vocoder=OnnxVocoder(folder / "vocoder", vocoder),
        **settings,
    )


# --- The export ------------------------------------------------------------------------------------------------------

MAX_ERROR = 1e-3  # of the largest value of an output
# Layers whose weights become int8; the others are too few or, as the convolutions of the vocoder, too delicate.
QUANTISED = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True)
class Network:
    """A network to export: torch's, its inputs by their names, and which of their axes may have any length."""

    module: nn.Module
    inputs: Mapping[str, torch.Tensor]
    dynamic: Mapping[str, tuple[int, ...]]

    def grown(self) -> dict[str, torch.Tensor]:
        """Other inputs, longer by one along every axis that may be."""
        generator = torch.Generator().manual_seed(1)
        return {
            name: torch.randn(
                [size + (axis in self.dynamic[name]) for axis, size in enumerate(each.shape)], generator=generator
            )
            if each.is_floating_point()
            else each
            for name, each in self.inputs.items()
        }


class _Called(nn.Module):
    """A network and how it is called with its inputs, as a module for torch's exporter."""

    def __init__(self, network: nn.Module, call: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.call(self.network, *inputs)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("--out", required=True, type=Path, metavar="DIR", help="the folder to write, for `--backend onnx --model DIR`")
    add("--model", metavar="PATH_OR_REPO", help="model folder or Hub repository (default: the shipped weights)")
    add("--int8", action="store_true", help="weights of the UNet in 8 bits: a third of the size, and less exact")


def run(args: argparse.Namespace) -> None:
    """Writes the folder, whole or not at all.

    Raises:
        ValueError: a library or the model is missing, the folder exists, or ONNX Runtime computes something else.
    """
    from ..loading import check_model, load_pipeline, new_folder

    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: {INSTALL}") from None
    with new_folder(args.out) as part:
        model = args.model or str(shipped_weights())
        check_model(model)
        errors = export(load_pipeline(model, "cpu", "float32", None), part, args.int8)
    figures = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    print(f"{args.out}: `aud2studio --backend onnx --model {args.out}` restores with it; relative error {figures}")


def networks(pipeline: Aud2StudioPipeline) -> dict[str, Network]:
    """The pipeline's networks with inputs as it gives them."""
    unet, encoder, config = pipeline.unet, pipeline.condition_encoder, pipeline.config
    generator = torch.Generator().manual_seed(0)
    shape = 2, unet.config.in_channels, config.n_mels // PATCH, pipeline.chunk_frames
    image = torch.randn(shape, generator=generator)
    is_film = unet.config.class_embed_type == FILM
    width = (unet.config.projection_class_embeddings_input_dim,) if is_film else (18, encoder.config.hidden_size)
    condition = {"class_labels" if is_film else "encoder_hidden_states": torch.randn(2, *width, generator=generator)}
    spectrogram = torch.randn(2, pipeline.chunk_frames, config.n_mels, generator=generator)
    log_mel = torch.randn(2, config.n_mels, 48, generator=generator)
    last = torch.tensor(pipeline.scheduler.config.num_train_timesteps - 1)

    def call_unet(
        network: nn.Module, sample: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        tokens, labels = (None, condition) if is_film else (condition, None)
        return network(sample, timestep, tokens, class_labels=labels, return_dict=False)[0]

    return {
        "unet": Network(
            _Called(unet, call_unet),
            {"sample": image, "timestep": last, **condition},
            {"sample": (0,), "timestep": (), **{name: tuple(range(len(width))) for name in condition}},
        ),
        "condition_encoder": Network(
            _Called(encoder.audio_spectrogram_transformer, lambda network, x: network(x).last_hidden_state),
            {"input_values": spectrogram},
            {"input_values": (0,)},
        ),
        "vocoder": Network(
            _Called(pipeline.vocoder, lambda network, x: network(x, return_dict=False)[0]),
            {"log_mel": log_mel},
            {"log_mel": (0, 2)},
        ),
    }


@torch.no_grad()
def export(pipeline: Aud2StudioPipeline, folder: Path, int8: bool = False) -> dict[str, float]:
    """Writes a folder for `onnx_networks.load_onnx_pipeline`.

    Args:
        pipeline: On the CPU, in float32.
        int8: Quantise the UNet's weights to 8 bits; its inputs are quantised as they come.

    Returns:
        For every network the largest deviation of the float32 file from torch, over the largest value.

    Raises:
        ValueError: A network computes something else in ONNX Runtime.
    """
    folder.mkdir()
    pipeline.save_config(folder)  # model_index.json
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    errors = {}
    for name, network in tqdm(networks(pipeline).items(), desc="exporting", unit="network", leave=False):
        part = folder / name
        part.mkdir()
        component = pipeline.components[name]
        # What transformers calls saving a configuration is diffusers' `save_config`.
        save = component.config.save_pretrained if name == "condition_encoder" else component.save_config
        save(part)
        _write(network, part / MODEL)
        errors[name] = deviation(network, part / MODEL)
        if not errors[name] < MAX_ERROR:
            raise ValueError(f"ONNX Runtime computes another {name}: relative error {errors[name]:.1e}")
    if int8:
        _quantise(folder / "unet" / MODEL)
    return errors


def _write(network: Network, path: Path) -> None:
    lengths = {name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) or None for name, axes in network.dynamic.items()}
    # The exporter warns of what it does not need here.
    for logger in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.module.eval(),
            tuple(network.inputs.values()),
            str(path),
            input_names=[*network.inputs],
            dynamic_shapes=(tuple(lengths.values()),),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@torch.no_grad()
def deviation(network: Network, path: Path) -> float:
    """Largest difference between a file's output and torch's, over torch's largest value, on other inputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = network.grown()
    found = session.run(None, {name: each.numpy() for name, each in inputs.items()})[0]
    wanted = network.module(*inputs.values()).numpy()
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def _quantise(path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    part = path.with_suffix(".part")
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends a step that changes nothing here
    try:
        # ONNX Runtime has integer convolutions for unsigned weights only.
        quantize_dynamic(path, part, op_types_to_quantize=[*QUANTISED], weight_type=QuantType.QUInt8)
    finally:
        root.setLevel(level)
    os.replace(part, path)
