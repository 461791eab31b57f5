"""aud2studio: audience recordings of concerts in, studio-like audio out."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import Aud2StudioPipeline

# ONNX Runtime would write an id of this machine for it as soon as it is imported, whoever does that.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def shipped_weights() -> Path:
    """Folder of the checkpoint that comes with the package, laid out like a Hub repository."""
    return Path(__file__).parent / "weights"


def __getattr__(name: str) -> Any:
    """Imports the pipeline when it is asked for: the command line says what is wrong with a file before that."""
    if name != "Aud2StudioPipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # The libraries make a million objects on import, all of which stay: looking for garbage among them takes a second.
    collects = gc.isenabled()
    gc.disable()
    try:
        import diffusers

        from .pipeline import Aud2StudioPipeline
    finally:
        if collects:
            gc.enable()
    # `DiffusionPipeline.from_pretrained` looks the class of `model_index.json` up in diffusers itself.
    diffusers.Aud2StudioPipeline = Aud2StudioPipeline
    globals()[name] = Aud2StudioPipeline
    return Aud2StudioPipeline


# `import pipeline_aud2studio` makes the class known to diffusers. Only the command line, by its name or `python -m`,
# waits: it has to catch Ctrl-C before the libraries are there.
if os.path.basename(sys.argv[0] if sys.argv else "") not in ("aud2studio", "-m"):
    __getattr__("Aud2StudioPipeline")

__all__ = ["Aud2StudioPipeline", "shipped_weights"]
