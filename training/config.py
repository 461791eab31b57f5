"""The training configuration: pydantic models that mirror the YAML files in `configs/`.

Every key has a default, so a YAML file states only what differs. Unknown keys and bad values are errors that name
the key.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline_aud2studio.features import PATCH

AST_PATCH = 16  # edge of the condition encoder's patches, in bands and frames

MixedPrecision = Literal["no", "fp16", "bf16"]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names every offending key."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


Config = TypeVar("Config", bound=Section)


class AudioConfig(Section):
    sample_rate: Annotated[int, Field(ge=8000, le=192000)] = 44100  # Hz
    clip_seconds: PositiveFloat = 8.0  # length of a training example and of a chunk; rounded, see chunk_frames
    mono: Literal[True] = True  # the model restores one channel; a stereo recording's other one is a further recording


class MelConfig(Section):
    n_fft: PositiveInt = 1024
    hop_length: PositiveInt = 256
    n_mels: PositiveInt = 128
    fmin: NonNegativeFloat = 0.0  # Hz
    fmax: PositiveFloat | None = None  # Hz; none is half the sampling rate
    mean: float = -5.0  # of log-mels at the normal level, nats; with std it brings them to zero mean and unit variance
    std: PositiveFloat = 2.0
    correction_std: PositiveFloat = 2.0  # standard deviation of the clean log-mel less the input's


class ModelConfig(Section):
    base_channels: PositiveInt | None = None  # channels of the first level (64); each further one has twice as many
    layers: PositiveInt | None = None  # number of levels (4)
    block_out_channels: tuple[PositiveInt, ...] | None = None  # the levels' channels, instead of the two keys above
    attention_resolutions: tuple[PositiveInt, ...] = (16, 8)  # downsampling factors of the mel image with attention
    attention_head_dim: PositiveInt = 32
    layers_per_block: PositiveInt = 1
    norm_num_groups: PositiveInt = 32
    max_recordings: Annotated[int, Field(ge=1, le=8)] = 4
    overlap_frames: NonNegativeInt = 32  # pixels of 23 ms that neighbouring chunks share at inference
    conditioning: Literal["cross_attention", "film"] = "cross_attention"  # film: scale and shift of every layer
    conditioning_dim: PositiveInt = 128  # width of the condition encoder
    conditioning_layers: PositiveInt = 2
    conditioning_heads: PositiveInt = 4

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of every level."""
        if self.block_out_channels is not None:
            return self.block_out_channels
        return tuple((self.base_channels or 64) * 2**level for level in range(self.layers or 4))

    @property
    def level_factors(self) -> tuple[int, ...]:
        """Downsampling factor of the mel image at every level."""
        return tuple(PATCH * 2**level for level in range(len(self.channels)))

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        if self.block_out_channels is not None and (self.base_channels or self.layers) is not None:
            raise ValueError("block_out_channels stands for base_channels and layers: give one or the other")
        if unknown := sorted(set(self.attention_resolutions) - set(self.level_factors)):
            raise ValueError(
                f"attention_resolutions {unknown} are none of the levels' factors {list(self.level_factors)}"
            )
        if wrong := [c for c in self.channels if c % self.norm_num_groups]:
            raise ValueError(f"channels {wrong} are no multiples of norm_num_groups ({self.norm_num_groups})")
        if wrong := [c for c in self.channels if c % min(c, self.attention_head_dim)]:
            raise ValueError(f"channels {wrong} are no multiples of attention_head_dim ({self.attention_head_dim})")
        if self.conditioning_dim % self.conditioning_heads:
            raise ValueError(
                f"conditioning_dim ({self.conditioning_dim}) is no multiple of conditioning_heads "
                f"({self.conditioning_heads})"
            )
        return self


class SchedulerConfig(Section):
    name: Literal["ddpm", "ddim", "dpm++", "unipc"] = "dpm++"
    num_inference_steps: PositiveInt = 8  # the default of the exported pipeline
    num_train_timesteps: PositiveInt = 1000
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    prediction_type: Literal["v_prediction", "sample"] = "v_prediction"  # zero terminal SNR excludes epsilon


class OptimizerConfig(Section):
    """How weights are updated and kept; the UNet's and the vocoder's training share it."""

    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: AdamW for what is no matrix
    lr: PositiveFloat = 4e-4
    lr_schedule: Literal["constant", "cosine"] = "constant"
    lr_warmup_steps: NonNegativeInt = 200
    lr_decay_steps: PositiveInt | None = None  # cosine: the last steps that decay to zero; none: all after the warm-up
    max_train_steps: PositiveInt | None = None
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    weight_decay: NonNegativeFloat = 0.01
    grad_clip: PositiveFloat = 1.0  # largest norm of the gradient
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    max_train_minutes: PositiveFloat | None = None  # counted over all resumed runs
    cpu_threads: PositiveInt | None = None  # threads a process on a CPU; none: all cores, shared among the processes
    checkpointing_steps: PositiveInt | None = None
    checkpointing_minutes: PositiveFloat = 10.0
    checkpoints_total_limit: PositiveInt | None = 2

    @model_validator(mode="after")
    def _ends(self) -> OptimizerConfig:
        if self.lr_schedule == "cosine" and self.max_train_steps is None:
            raise ValueError("lr_schedule: cosine has to know max_train_steps")
        return self


class TrainConfig(OptimizerConfig):
    batch_size: PositiveInt = 2  # scenes of a step and process; each gives three examples of 8 s
    micro_batch_size: PositiveInt = 4  # examples computed together: a matter of memory
    gradient_accumulation_steps: PositiveInt = 1  # batches per optimizer step
    gradient_checkpointing: bool = False
    ema: bool = True
    snr_gamma: PositiveFloat | None = None  # min-SNR weighting of the diffusion loss (Hang et al. 2023); none: off
    # Of 1000 steps each, since no scene comes twice; unless max_train_steps or max_train_minutes is reached before.
    epochs: PositiveInt = 100
    mixed_precision: MixedPrecision = "no"

    @model_validator(mode="before")
    @classmethod
    def _read_fp16(cls, values: Any) -> Any:
        """`fp16: true` is short for `mixed_precision: fp16`."""
        if not isinstance(values, Mapping) or "fp16" not in values:
            return values
        fp16, rest = values["fp16"], {key: value for key, value in values.items() if key != "fp16"}
        if fp16 is None:
            return rest
        if not isinstance(fp16, bool):
            raise ValueError(f"fp16 has to be true or false, got {fp16!r}")
        if fp16 and rest.get("mixed_precision", "fp16") != "fp16":
            raise ValueError("fp16: true is short for mixed_precision: fp16; they contradict each other")
        return {"mixed_precision": "fp16" if fp16 else "no", **rest}


class LossConfig(Section):
    """Weights of the loss terms, and for which part of a batch the gains are supervised."""

    diffusion: NonNegativeFloat = 0.05
    compressed_stft: NonNegativeFloat = 400.0
    band_energy: NonNegativeFloat = 0.5
    si_sdr: NonNegativeFloat = 0.05
    labels: NonNegativeFloat = 0.1
    predictive_fraction: Annotated[float, Field(ge=0, le=1)] = 0.75  # part of the batch at the last timestep

    @property
    def weights(self) -> dict[str, float]:
        """Factors of the terms by name."""
        return self.model_dump(exclude={"predictive_fraction"})


def _address_or_path(value: Any) -> Any:
    """Addresses stay strings: a path would take one of the two slashes."""
    return value if isinstance(value, str) and "://" in value else Path(value) if isinstance(value, str) else value


class DataConfig(Section):
    clean_music_dir: Path = Path("data/clean")
    rir_dir: Path = Path("data/rirs")
    noise_dir: Path = Path("data/noise")
    # Recordings with their studio version: a file or folder of training.data.real_pairs, or hf://datasets/ORG/NAME.
    pairs_manifest: Annotated[Path | str, BeforeValidator(_address_or_path)] = Path("data/pairs.jsonl")
    material: Path = Path("data/material")  # what scenes are rendered from: training.data.material prepares it
    real_share: Annotated[float, Field(ge=0, le=1)] = 0.0  # of the scenes: excerpts of `pairs_manifest`
    validation_clips: Path | None = None  # what training.evaluation.clips rendered; none: no validation
    num_workers: NonNegativeInt = 0  # processes that render, beside the one that trains


class EvalConfig(Section):
    metrics: tuple[str, ...] = ("si_sdr", "log_spectral_distance")  # functions of metrics.py; si_sdr picks the best
    val_every_steps: PositiveInt = 1000
    num_clips: PositiveInt = 80  # the first clips of data.validation_clips


class ExportConfig(Section):
    half_precision: bool = True
    vocoder: Path | None = None  # folder of an MMAudioVocoder that becomes part of the exported pipeline
    griffin_lim_iterations: NonNegativeInt = 0  # after the vocoder, for one as small as vocoder_tiny.yaml's


def _none_as_empty(value: Any) -> Any:
    """A section whose keys are all commented out is `None` in YAML."""
    return {} if value is None else value


def _section(section: type[Section]) -> Any:
    return Field(default_factory=section)


class TrainingConfig(Section):
    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "experiment"
    seed: NonNegativeInt = 0
    audio: Annotated[AudioConfig, BeforeValidator(_none_as_empty)] = _section(AudioConfig)
    mel: Annotated[MelConfig, BeforeValidator(_none_as_empty)] = _section(MelConfig)
    model: Annotated[ModelConfig, BeforeValidator(_none_as_empty)] = _section(ModelConfig)
    scheduler: Annotated[SchedulerConfig, BeforeValidator(_none_as_empty)] = _section(SchedulerConfig)
    train: Annotated[TrainConfig, BeforeValidator(_none_as_empty)] = _section(TrainConfig)
    loss: Annotated[LossConfig, BeforeValidator(_none_as_empty)] = _section(LossConfig)
    data: Annotated[DataConfig, BeforeValidator(_none_as_empty)] = _section(DataConfig)
    eval: Annotated[EvalConfig, BeforeValidator(_none_as_empty)] = _section(EvalConfig)
    export: Annotated[ExportConfig, BeforeValidator(_none_as_empty)] = _section(ExportConfig)

    @property
    def chunk_frames(self) -> int:
        """Frames of the image, of four hops, in a training example and in a chunk at inference: `clip_seconds` in
        whole
        pixels of the lowest level and whole patches of the condition encoder."""
        pixel = math.lcm(AST_PATCH, self.model.level_factors[-1] // PATCH)
        frames = self.audio.clip_seconds * self.audio.sample_rate / (PATCH * self.mel.hop_length)
        return max(1, round(frames / pixel)) * pixel

    @property
    def clip_samples(self) -> int:
        """Samples of a training example."""
        return self.chunk_frames * PATCH * self.mel.hop_length

    @model_validator(mode="after")
    def _fits(self) -> TrainingConfig:
        if self.mel.n_mels % (pixel := math.lcm(AST_PATCH, self.model.level_factors[-1])):
            raise ValueError(
                f"mel.n_mels ({self.mel.n_mels}) has to be a multiple of {pixel}, "
                "in which both the UNet's lowest level and the condition encoder's patches fit"
            )
        if self.model.overlap_frames > self.chunk_frames // 2:
            raise ValueError(
                f"model.overlap_frames ({self.model.overlap_frames}) is more than half a clip of "
                f"{self.chunk_frames} frames (audio.clip_seconds)"
            )
        if self.mel.fmin >= (self.mel.fmax or self.audio.sample_rate / 2):
            raise ValueError(f"mel.fmin ({self.mel.fmin}) has to be below mel.fmax")
        if self.mel.fmax is not None and self.mel.fmax > self.audio.sample_rate / 2:
            raise ValueError(
                f"mel.fmax ({self.mel.fmax}) is above half of audio.sample_rate ({self.audio.sample_rate})"
            )
        if self.mel.n_fft % self.mel.hop_length or self.mel.n_fft < 2 * self.mel.hop_length:
            raise ValueError(f"mel.n_fft ({self.mel.n_fft}) has to be a multiple, at least twice, of mel.hop_length")
        return self


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Reads a YAML file.

    Args:
        path: The file.
        overrides: `section.key=value` texts that replace values of the file; the value is read as YAML.

    Raises:
        ConfigError: If the file cannot be read, a key is unknown or a value is bad. The message names the keys.
    """
    return parse_config(read_values(path, overrides), source=str(path))


def read_values(path: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The nested mapping of a YAML file with its overrides, not yet checked; see :func:`load_config`."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{path} has to hold keys and values, not a {type(values).__name__}")
    for override in overrides:
        _apply(override, values)
    return values


def parse_config(values: Mapping[str, Any], source: str = "configuration") -> TrainingConfig:
    """Checks a nested mapping; `source` is named in errors."""
    return parse_as(TrainingConfig, values, source)


def parse_as(kind: type[Config], values: Mapping[str, Any], source: str) -> Config:
    """Checks a nested mapping against a model of a configuration; `source` is named in errors."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(detail, kind) for detail in error.errors()]
        raise ConfigError(f"{source}: {'; '.join(lines)}") from None


def _apply(override: str, values: dict[str, Any]) -> None:
    key, separator, text = override.partition("=")
    *sections, name = key.strip().split(".")
    if not separator or not name:
        raise ConfigError(f"'{override}' has to look like section.key=value")
    for section in sections:
        inner = values.setdefault(section, {})
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"'{override}': {section} is not a section")
        values = inner
    try:
        values[name] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"'{override}': the value is not YAML: {error}") from error


def _explain(detail: Any, kind: type[BaseModel]) -> str:
    """One line for one of pydantic's errors: the key, what is wrong, and for an unknown key the closest valid one."""
    location = [str(part) for part in detail["loc"]]
    key = ".".join(location)
    if detail["type"] == "extra_forbidden":
        known = _known_keys(kind, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key '{key}'; {hint}"
    message = detail["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = "" if detail["type"] == "value_error" else f", got {detail['input']!r}"
    return f"{key}: {message}{given}" if key else f"{message}{given}"


def _known_keys(model: type[BaseModel], sections: Sequence[str]) -> list[str]:
    for section in sections:
        model = _section_type(model.model_fields[section].annotation)
    extra = ["fp16"] if model is TrainConfig else []
    return [*model.model_fields, *extra]


def _section_type(annotation: Any) -> type[BaseModel]:
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return _section_type(get_args(annotation)[0])
    return annotation
