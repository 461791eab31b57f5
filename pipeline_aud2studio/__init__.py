"""aud2studio: audience recordings of concerts in, studio-like audio out."""

from pathlib import Path

import diffusers

from .pipeline import Aud2StudioPipeline

# `DiffusionPipeline.from_pretrained` looks the class of `model_index.json` up in diffusers itself.
diffusers.Aud2StudioPipeline = Aud2StudioPipeline


def shipped_weights() -> Path:
    """Folder of the checkpoint that comes with the package, laid out like a Hub repository."""
    return Path(__file__).parent / "weights"


__all__ = ["Aud2StudioPipeline", "shipped_weights"]
