"""The networks of the pipeline as ONNX Runtime computes them, with what the pipeline asks of torch's.

    pipeline = load_onnx_pipeline(Path("onnx"))  # a folder that `aud2studio export-onnx` wrote

The STFT, the image and the read-outs stay torch's; they are a few per cent of the work.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import MMAudioVocoder, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn
from transformers import ASTConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from .pipeline import Aud2StudioPipeline

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
        """What the file's network makes of its inputs, in their order."""
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


def is_onnx_folder(folder: Path) -> bool:
    """Whether `aud2studio export-onnx` wrote a folder."""
    return (folder / "unet" / MODEL).is_file()


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
