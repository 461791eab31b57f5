"""Condition tokens: what the AST encoder says of room, crowd and device, one set of tokens per recording."""

from __future__ import annotations

import torch
from transformers import ASTModel

from .image import Features


def condition_tokens(encoder: ASTModel, features: Features) -> tuple[torch.Tensor, torch.Tensor]:
    """Summarises every recording of a chunk for the UNet's cross-attention.

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
