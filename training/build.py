"""Models, schedulers and the objective that a configuration describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    MMAudioVocoder,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from torch import nn
from transformers import ASTConfig, ASTForAudioClassification

from pipeline_aud2studio import Aud2StudioPipeline
from pipeline_aud2studio.conditioning import FILM, LABELS
from pipeline_aud2studio.features import PATCH, BandImage, image_channels
from pipeline_aud2studio.spectral import BandTransform

from .config import AST_PATCH, OptimizerConfig, TrainingConfig
from .muon import Muon
from .objective import RestorationObjective

SCHEDULERS = {
    "ddpm": DDPMScheduler,
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}


def build_unet(config: TrainingConfig) -> UNet2DConditionModel:
    """Builds a UNet on the patched band image, with attention at the levels of `attention_resolutions`.

    That attention includes the condition's tokens; with `conditioning: film` it is among the image's pixels only, and
    the condition scales and shifts the features of all levels. The last layer starts at zero: an untrained model
    predicts nothing and leaves the recording as it is.
    """
    model = config.model
    attention = [factor in model.attention_resolutions for factor in model.level_factors]
    head_dims = tuple(min(channels, model.attention_head_dim) for channels in model.channels)
    width = model.conditioning_dim
    if model.conditioning == "film":
        kind = "Attn"
        conditioning: dict[str, Any] = {
            "mid_block_type": "UNetMidBlock2D",
            "attention_head_dim": head_dims,
            "resnet_time_scale_shift": "scale_shift",
            "class_embed_type": FILM,
            "projection_class_embeddings_input_dim": (1 + config.mel.n_mels // AST_PATCH) * width,
        }
    else:
        kind = "CrossAttn"
        conditioning = {
            # Diffusers' name for the number of heads of each level, where attention is to tokens.
            "attention_head_dim": tuple(c // head_dim for c, head_dim in zip(model.channels, head_dims, strict=True)),
            "cross_attention_dim": width,
            "encoder_hid_dim": width,
            "encoder_hid_dim_type": "text_proj",
        }
    in_channels, out_channels = image_channels(model.max_recordings)
    unet = UNet2DConditionModel(
        sample_size=(config.mel.n_mels // PATCH, config.chunk_frames),
        in_channels=in_channels,
        out_channels=out_channels,
        block_out_channels=model.channels,
        down_block_types=tuple(f"{kind}DownBlock2D" if attends else "DownBlock2D" for attends in attention),
        up_block_types=tuple(f"{kind}UpBlock2D" if attends else "UpBlock2D" for attends in reversed(attention)),
        layers_per_block=model.layers_per_block,
        norm_num_groups=model.norm_num_groups,
        **conditioning,
    )
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


def build_condition_encoder(config: TrainingConfig) -> ASTForAudioClassification:
    """Builds an audio spectrogram transformer for chunks of `chunk_frames` frames, whose classifier tells the room."""
    width = config.model.conditioning_dim
    return ASTForAudioClassification(
        ASTConfig(
            hidden_size=width,
            num_hidden_layers=config.model.conditioning_layers,
            num_attention_heads=config.model.conditioning_heads,
            intermediate_size=4 * width,
            num_mel_bins=config.mel.n_mels,
            max_length=config.chunk_frames,
            patch_size=AST_PATCH,
            frequency_stride=AST_PATCH,
            time_stride=AST_PATCH,
            problem_type="regression",
            id2label=dict(enumerate(LABELS)),
            label2id={name: number for number, name in enumerate(LABELS)},
        )
    )


def build_scheduler(config: TrainingConfig) -> Any:
    """Builds the sampler that is shipped with the weights."""
    scheduler = SCHEDULERS[config.scheduler.name]
    settings: dict[str, Any] = {"clip_sample": False} if config.scheduler.name in ("ddpm", "ddim") else {}
    return scheduler(
        num_train_timesteps=config.scheduler.num_train_timesteps,
        beta_schedule=config.scheduler.beta_schedule,
        prediction_type=config.scheduler.prediction_type,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        **settings,
    )


def build_image(config: TrainingConfig) -> BandImage:
    """Builds the UNet's image on the configured STFT and bands."""
    mel = config.mel
    fine = BandTransform(config.audio.sample_rate, mel.n_fft, mel.hop_length, mel.n_mels, mel.fmin, mel.fmax)
    return BandImage(fine, config.model.max_recordings, mel.mean, mel.std, mel.correction_std)


def build_objective(
    config: TrainingConfig, unet: UNet2DConditionModel, condition_encoder: ASTForAudioClassification
) -> RestorationObjective:
    """Builds what is minimised. Training always uses DDPM's forward process, with the configured scheduler's betas."""
    return RestorationObjective(
        unet,
        condition_encoder,
        DDPMScheduler.from_config(build_scheduler(config).config, clip_sample=False),
        build_image(config),
        predictive_fraction=config.loss.predictive_fraction,
        weights=config.loss.weights,
        snr_gamma=config.train.snr_gamma,
    )


# Where the network meets the image: rows and columns of these matrices are channels with a meaning of their own.
ENDS = ("conv_in.", "conv_out.", "embeddings.")


def build_optimizer(train: OptimizerConfig, model: nn.Module, ends: Sequence[str] = ENDS) -> torch.optim.Optimizer:
    """Builds the optimizer of a model's parameters; Muon leaves those with one of `ends` in their name to AdamW."""
    betas = (train.adam_beta1, train.adam_beta2)
    if train.optimizer == "adamw":
        return torch.optim.AdamW(
            model.parameters(), lr=train.lr, betas=betas, weight_decay=train.weight_decay, fused=True
        )
    named = list(model.named_parameters())
    inside = [parameter.dim() >= 2 and not any(end in name for end in ends) for name, parameter in named]
    matrices = [parameter for (_, parameter), is_inside in zip(named, inside, strict=True) if is_inside]
    others = [parameter for (_, parameter), is_inside in zip(named, inside, strict=True) if not is_inside]
    return Muon(matrices, others, lr=train.lr, betas=betas, weight_decay=train.weight_decay)


def build_pipeline(
    config: TrainingConfig,
    unet: UNet2DConditionModel,
    condition_encoder: ASTForAudioClassification,
    vocoder: MMAudioVocoder | None = None,
) -> Aud2StudioPipeline:
    """Builds the pipeline that users get; without a vocoder it has the faithful read-out only."""
    mel, model = config.mel, config.model
    return Aud2StudioPipeline(
        unet,
        build_scheduler(config),
        condition_encoder,
        vocoder,
        sample_rate=config.audio.sample_rate,
        n_fft=mel.n_fft,
        hop_length=mel.hop_length,
        n_mels=mel.n_mels,
        fmin=mel.fmin,
        fmax=mel.fmax,
        overlap_frames=model.overlap_frames,
        mel_mean=mel.mean,
        mel_std=mel.std,
        correction_std=mel.correction_std,
        default_num_inference_steps=config.scheduler.num_inference_steps,
        griffin_lim_iterations=config.export.griffin_lim_iterations,
    )
