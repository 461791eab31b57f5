"""What the AST encoder says of room, crowd and device, one set of tokens per recording, and how the UNet takes it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import ASTForAudioClassification

from .features import PATCH, Features

# What the encoder's classifier tells of a recording: natural logarithms of seconds and of Hz, dB, dB, and a logit.
LABELS = ("log_rt60_s", "drr_db", "snr_db", "log_bandwidth_hz", "voice")
LABEL_SCALES = (1.0, 10.0, 10.0, 1.0, 1.0)  # by which it gives them divided, and less these:
LABEL_MEANS = (0.0, 0.0, 10.0, 9.4, 0.0)
FILM = "projection"  # `class_embed_type` of a UNet that takes the condition as scale and shift of its features


def unet_condition(
    unet: UNet2DConditionModel, encoder: ASTForAudioClassification, features: Features
) -> dict[str, Any]:
    """The arguments by which the UNet is told the condition; its configuration says how it takes them.

    By cross-attention: all tokens and their mask. By FiLM (Perez et al., 2018): their mean over the recordings that
    exist, row by row, as `class_labels` (batch, K * width), which the UNet adds to the embedding of the timestep.

    Args:
        unet: What is to be called, in the precision that it will have.
        encoder, features: See :func:`condition_tokens`.
    """
    return condition_arguments(unet, *condition_tokens(encoder, features), features.present)


def condition_arguments(
    unet: UNet2DConditionModel, tokens: torch.Tensor, mask: torch.Tensor, present: torch.Tensor
) -> dict[str, Any]:
    """See :func:`unet_condition`, of tokens and mask that are there already."""
    tokens = tokens.to(unet.dtype)
    if unet.config.class_embed_type != FILM:
        return {"encoder_hidden_states": tokens, "encoder_attention_mask": mask}
    of_recordings = tokens.unflatten(1, (present.shape[1], -1)).flatten(2)  # (batch, R, K * width), zero where missing
    pooled = of_recordings.sum(1) / present.sum(1, keepdim=True).to(tokens.dtype)
    return {"encoder_hidden_states": None, "class_labels": pooled}


def condition_tokens(encoder: ASTForAudioClassification, features: Features) -> tuple[torch.Tensor, torch.Tensor]:
    """Summarises every recording of a chunk.

    The encoder's patch tokens are averaged over time (a room does not change within a chunk) and keep their frequency.

    Args:
        encoder: AST with `max_length` equal to the chunk's frames; its classifier is not asked.
        features: The chunk's recordings.

    Returns:
        Tokens (batch, R * K, width) and a mask (batch, R * K), true where the recording exists. `K` is the class token
        plus one token for each row of patches.

    Raises:
        ValueError: If the chunk's length is not the one that the encoder has positions for.
    """
    return tokens_and_labels(encoder, features)[:2]


def tokens_and_labels(
    encoder: ASTForAudioClassification, features: Features
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens and mask, see :func:`condition_tokens`, and what the classifier says of each recording (existing, 5)."""
    output = encoder(encoder_input(encoder, features), output_hidden_states=True)
    # What `ASTModel` calls its last hidden state.
    hidden = encoder.audio_spectrogram_transformer.layernorm(output.hidden_states[-1])
    return *tokens_of(hidden, encoder.config, features.present), output.logits


def encoder_input(encoder: ASTForAudioClassification, features: Features) -> torch.Tensor:
    """The spectrograms (existing recordings, frames, mel) of a chunk, four mel frames averaged into one.

    Raises:
        ValueError: If the chunk's length is not the one that the encoder has positions for.
    """
    frames, config = features.planes.shape[-1], encoder.config
    if frames != config.max_length:
        raise ValueError(f"The condition encoder takes chunks of {config.max_length} frames, got {frames}.")
    averaged = features.log_mel[features.present].unflatten(-1, (frames, PATCH)).mean(-1)
    return averaged.transpose(1, 2).to(encoder.dtype)


def tokens_of(hidden: torch.Tensor, config: Any, present: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask, see :func:`condition_tokens`, of the encoder's output (existing, 2 + rows * columns, width)."""
    rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    patches = hidden[:, 2:].unflatten(1, (rows, -1)).mean(2)  # the second special token is DeiT's, for distillation
    existing = torch.cat([hidden[:, :1], patches], dim=1)  # (existing, K, width)
    tokens = existing.new_zeros(*present.shape, *existing.shape[1:])
    tokens[present] = existing
    mask = present[:, :, None].expand(-1, -1, tokens.shape[2])
    return tokens.flatten(1, 2), mask.flatten(1)
