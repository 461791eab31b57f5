"""aud2studio: audience recordings of concerts in, studio-like audio out."""

import gc
from pathlib import Path

# The libraries make a million objects on import, all of which stay: looking for garbage among them takes a second.
_collects = gc.isenabled()
gc.disable()
try:
    import diffusers

    from .pipeline import Aud2StudioPipeline
finally:
    if _collects:
        gc.enable()

# `DiffusionPipeline.from_pretrained` looks the class of `model_index.json` up in diffusers itself.
diffusers.Aud2StudioPipeline = Aud2StudioPipeline


def shipped_weights() -> Path:
    """Folder of the checkpoint that comes with the package, laid out like a Hub repository."""
    return Path(__file__).parent / "weights"


__all__ = ["Aud2StudioPipeline", "shipped_weights"]
