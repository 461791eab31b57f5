"""The vocoder's configuration: pydantic models that mirror `configs/vocoder_*.yaml`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from .config import ConfigError, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section


class FrontEndConfig(Section):
    """What the vocoder is conditioned on; the defaults are NVIDIA's 44 kHz, 128 bands, 256x."""

    sample_rate: Annotated[int, Field(ge=8000, le=192000)] = 44100  # Hz
    n_fft: PositiveInt = 1024
    hop_length: PositiveInt = 256
    n_mels: PositiveInt = 128
    fmin: NonNegativeFloat = 0.0  # Hz
    fmax: PositiveFloat | None = None  # Hz; none is half the sampling rate
    mean: float = -5.0  # rough mean and standard deviation of log-mels: the first layer is initialised for them
    std: PositiveFloat = 2.5


class GeneratorConfig(Section):
    """BigVGAN-v2's generator. A stage halves the channels; the transposed kernels are twice their rate."""

    upsample_initial_channel: PositiveInt = 256
    upsample_rates: tuple[PositiveInt, ...] = (4, 4, 2, 2, 2, 2)
    resblock_kernel_sizes: tuple[PositiveInt, ...] = (3,)
    resblock_dilation_sizes: tuple[tuple[PositiveInt, ...], ...] = ((1, 3, 5),)

    @model_validator(mode="after")
    def _fits(self) -> GeneratorConfig:
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            raise ValueError("resblock_dilation_sizes has to hold one list for each of resblock_kernel_sizes")
        if self.upsample_initial_channel % 2 ** len(self.upsample_rates):
            raise ValueError(
                f"upsample_initial_channel ({self.upsample_initial_channel}) has to be a multiple of "
                f"{2 ** len(self.upsample_rates)}: every stage halves it"
            )
        if odd := [rate for rate in self.upsample_rates if rate % 2]:
            raise ValueError(f"upsample_rates {odd} are odd: a kernel of twice the rate could not be centred")
        if even := [size for size in self.resblock_kernel_sizes if size % 2 == 0]:
            raise ValueError(f"resblock_kernel_sizes {even} are even: they could not be centred")
        return self


class VocoderTrainConfig(Section):
    crop_frames: Annotated[int, Field(ge=8)] = 32  # mel frames of an example
    batch_size: PositiveInt = 8
    lr: PositiveFloat = 1e-3
    lr_warmup_steps: NonNegativeInt = 100
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.8
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    weight_decay: NonNegativeFloat = 0.0
    grad_clip: PositiveFloat = 10.0  # largest norm of the gradient
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    max_train_steps: PositiveInt = 5000  # the learning rate decays to zero (cosine) towards this step
    checkpointing_minutes: PositiveFloat = 10.0
    checkpoints_total_limit: PositiveInt = 2
    cpu_threads: PositiveInt | None = None  # none: as OMP_NUM_THREADS says, or all cores


class VocoderLossConfig(Section):
    mel: NonNegativeFloat = 1.0  # L1 of log-mels at several resolutions
    mr_stft: NonNegativeFloat = 1.0  # auraloss' spectral convergence and L1 of log magnitudes


class VocoderDataConfig(Section):
    clean_music_dir: Path = Path("data/clean")  # with the inventory.jsonl that `training.corpora` writes
    min_level_db: float = -45.0  # RMS that an example is brought to, dB below full scale, uniform
    max_level_db: float = -12.0
    num_threads: PositiveInt = 1  # threads that decode music ahead

    @model_validator(mode="after")
    def _fits(self) -> VocoderDataConfig:
        if not self.min_level_db <= self.max_level_db <= 0:
            raise ValueError("levels need min_level_db <= max_level_db <= 0")
        return self


class VocoderEvalConfig(Section):
    val_every_steps: PositiveInt = 500
    num_clips: PositiveInt = 12  # fixed clips of the validation split
    clip_seconds: PositiveFloat = 3.0


class VocoderConfig(Section):
    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "vocoder"
    seed: NonNegativeInt = 0
    mel: FrontEndConfig = Field(default_factory=FrontEndConfig)
    model: GeneratorConfig = Field(default_factory=GeneratorConfig)
    train: VocoderTrainConfig = Field(default_factory=VocoderTrainConfig)
    loss: VocoderLossConfig = Field(default_factory=VocoderLossConfig)
    data: VocoderDataConfig = Field(default_factory=VocoderDataConfig)
    eval: VocoderEvalConfig = Field(default_factory=VocoderEvalConfig)

    @model_validator(mode="after")
    def _fits(self) -> VocoderConfig:
        product = math.prod(self.model.upsample_rates)
        if product != self.mel.hop_length:
            raise ValueError(
                f"model.upsample_rates multiply to {product}, but have to give mel.hop_length ({self.mel.hop_length})"
            )
        return self


def load_vocoder_config(path: Path | str) -> VocoderConfig:
    """Reads a YAML file.

    Raises:
        ConfigError: If the file cannot be read, a key is unknown or a value is bad. The message names the keys.
    """
    try:
        values: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        return VocoderConfig.model_validate(values)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
        raise ConfigError(f"{path}: " + "; ".join(problems)) from None
