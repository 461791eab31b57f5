"""The vocoder's configuration: pydantic models that mirror `configs/vocoder_*.yaml`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from training.config import (
    NonNegativeFloat,
    NonNegativeInt,
    OptimizerConfig,
    PositiveFloat,
    PositiveInt,
    Section,
    parse_as,
    read_values,
)


class FrontEndConfig(Section):
    """The mel that the vocoder is conditioned on; the defaults are NVIDIA's 44 kHz, 128 bands, 256x."""

    sample_rate: Annotated[int, Field(ge=8000, le=192000)] = 44100  # Hz
    n_fft: PositiveInt = 1024
    hop_length: PositiveInt = 256
    n_mels: PositiveInt = 128
    fmin: NonNegativeFloat = 0.0  # Hz
    fmax: PositiveFloat | None = None  # Hz; none is half the sampling rate
    mean: float = -5.0  # rough mean and standard deviation of log-mels: the first layer is initialised for them
    std: PositiveFloat = 2.5


class GeneratorConfig(Section):
    """BigVGAN-v2's generator. A stage halves the channels; transposed kernels are twice their rate, 3 for rate 1."""

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
        if odd := [rate for rate in self.upsample_rates if rate % 2 and rate > 1]:
            raise ValueError(f"upsample_rates {odd} are odd: a kernel of twice the rate could not be centred")
        if even := [size for size in self.resblock_kernel_sizes if size % 2 == 0]:
            raise ValueError(f"resblock_kernel_sizes {even} are even: they could not be centred")
        return self


class DiscriminatorConfig(Section):
    """The discriminators' sizes; the defaults are BigVGAN's."""

    periods: tuple[PositiveInt, ...] = (2, 3, 5, 7, 11)
    period_channels: PositiveInt = 32  # of the first layer; later ones have up to 32 times as many
    resolutions: tuple[tuple[PositiveInt, PositiveInt, PositiveInt], ...] = (  # n_fft, hop, window
        (1024, 120, 600),
        (2048, 240, 1200),
        (512, 50, 240),
    )
    resolution_channels: PositiveInt = 32
    lr: PositiveFloat = 1e-4  # of AdamW, with the betas, the warm-up and the decay of the train section

    @model_validator(mode="after")
    def _fits(self) -> DiscriminatorConfig:
        if not self.periods and not self.resolutions:
            raise ValueError("there have to be periods or resolutions; without discriminators: loss.adversarial: 0")
        if wrong := [size for size in self.resolutions if not size[1] <= size[2] <= size[0]]:
            raise ValueError(f"resolutions {wrong} are no (n_fft, hop, window) with hop <= window <= n_fft")
        return self


class VocoderTrainConfig(OptimizerConfig):
    crop_frames: Annotated[int, Field(ge=8)] = 32  # mel frames of an example
    batch_size: PositiveInt = 8
    lr: PositiveFloat = 1e-3
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    lr_warmup_steps: NonNegativeInt = 100
    max_train_steps: PositiveInt = 5000
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.8
    weight_decay: NonNegativeFloat = 0.0
    grad_clip: PositiveFloat = 10.0  # largest norm of the gradient, of the generator and of the discriminators


class VocoderLossConfig(Section):
    mel: NonNegativeFloat = 1.0  # L1 of log-mels in nats, the mean over the front end's and these resolutions
    mel_resolutions: tuple[tuple[PositiveInt, PositiveInt, PositiveInt], ...] = (  # n_fft, hop, bands
        (512, 128, 64),
        (2048, 512, 128),
    )
    mr_stft: NonNegativeFloat = 1.0  # auraloss' spectral convergence and L1 of log magnitudes
    adversarial: NonNegativeFloat = 0.0  # least squares, the sum over the discriminators; 0: there are none
    feature_matching: NonNegativeFloat = 2.0  # the sum over the discriminators' layers


class VocoderDataConfig(Section):
    clean_music_dir: Path = Path("data/clean")  # with the inventory.jsonl that `training.data.corpora` writes
    min_level_db: float = -45.0  # RMS that an example is brought to, dB below full scale, uniform
    max_level_db: float = -12.0
    num_threads: PositiveInt = 1  # threads that decode music ahead
    # Fine-tuning: mels that a pipeline restores from degraded recordings, instead of the mels of clean music.
    restored_from: Path | None = None  # folder of the pipeline
    restored_steps: PositiveInt = 1  # of its sampling; 1 is a prediction from pure noise
    material: Path = Path("data/material")  # what the recordings are rendered from: training.data.material prepares it

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
    discriminator: DiscriminatorConfig = Field(default_factory=DiscriminatorConfig)
    data: VocoderDataConfig = Field(default_factory=VocoderDataConfig)
    eval: VocoderEvalConfig = Field(default_factory=VocoderEvalConfig)

    @model_validator(mode="after")
    def _fits(self) -> VocoderConfig:
        product = math.prod(self.model.upsample_rates)
        if product != self.mel.hop_length:
            raise ValueError(
                f"model.upsample_rates multiply to {product}, but have to give mel.hop_length ({self.mel.hop_length})"
            )
        longest = max(n_fft for n_fft, _, _ in (*self.loss.mel_resolutions, *self.discriminator.resolutions))
        if self.train.crop_frames * self.mel.hop_length <= longest // 2:
            raise ValueError(
                f"train.crop_frames ({self.train.crop_frames}) is shorter than half of an STFT of {longest} samples"
            )
        return self


def load_vocoder_config(path: Path | str, overrides: Sequence[str] = ()) -> VocoderConfig:
    """Reads a YAML file; see `config.load_config`."""
    return parse_as(VocoderConfig, read_values(path, overrides), source=str(path))
