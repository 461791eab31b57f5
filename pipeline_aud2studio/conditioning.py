"""What the AST encoder says of room, crowd and device, one set of tokens per recording, and how the UNet takes it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import ASTModel

from .image import Features

FILM = "projection"  # `class_embed_type` of a UNet that takes the condition as scale and shift of its features


def unet_condition(unet: UNet2DConditionModel, encoder: ASTModel, features: Features) -> dict[str, Any]:
    """The arguments by which the UNet is told the condition; its configuration says how it takes them.

    By cross-attention: all tokens and their mask. By FiLM (Perez et al., 2018): their mean over the recordings that
    exist, row by row, as `class_labels` (batch, K * width), which the UNet adds to the embedding of the timestep.

    Args:
        unet: What is to be called, in the precision that it will have.
        encoder, features: See :func:`condition_tokens`.
    """
    tokens, mask = condition_tokens(encoder, features)
    tokens = tokens.to(unet.dtype)
    if unet.config.class_embed_type != FILM:
        return {"encoder_hidden_states": tokens, "encoder_attention_mask": mask}
    recordings = features.present.shape[1]
    of_recordings = tokens.unflatten(1, (recordings, -1)).flatten(2)  # (batch, R, K * width), zero where missing
    pooled = of_recordings.sum(1) / features.present.sum(1, keepdim=True).to(tokens.dtype)
    return {"encoder_hidden_states": None, "class_labels": pooled}


def condition_tokens(encoder: ASTModel, features: Features) -> tuple[torch.Tensor, torch.Tensor]:
    """Summarises every recording of a chunk.

    The encoder's patch tokens are averaged over time (a room does not change within a chunk) and keep their frequency.

    Args:
        encoder: AST with `max_length` equal to the chunk's frames.
        features: The chunk's recordings.

    Returns:
        Tokens (batch, R * K, width) and a mask (batch, R * K), true where the recording exists. `K` is the class token
        plus one token for each row of patches.

    Raises:
        ValueError: If the chunk's length is not the one that the encoder has positions for.
    """
    batch, recordings, _, frames = features.log_mel.shape
    config = encoder.config
    if frames != config.max_length:
        raise ValueError(f"The condition encoder takes chunks of {config.max_length} frames, got {frames}.")
    spectrograms = features.log_mel[features.present].transpose(1, 2)  # (existing, frames, bands)
    hidden = encoder(spectrograms.to(encoder.dtype)).last_hidden_state  # (existing, 2 + rows * columns, width)
    rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    patches = hidden[:, 2:].unflatten(1, (rows, -1)).mean(2)  # the second special token is DeiT's, for distillation
    existing = torch.cat([hidden[:, :1], patches], dim=1)  # (existing, K, width)
    tokens = existing.new_zeros(batch, recordings, *existing.shape[1:])
    tokens[features.present] = existing
    mask = features.present[:, :, None].expand(-1, -1, tokens.shape[2])
    return tokens.flatten(1, 2), mask.flatten(1)
