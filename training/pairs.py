"""The audio of a manifest row, whatever its kind: rendered now, rendered before, or really recorded."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from training.degrade import EARLY_S, RenderedPair, render
from training.sources import Roots, inside, read_span


def load_pair(row: Mapping[str, Any], roots: Roots) -> RenderedPair:
    """Recordings and target of a checked manifest row."""
    if row["kind"] == "synthetic":
        return render(row, roots)
    if row["kind"] == "rendered":
        return _read_rendered(row, roots)
    raise ValueError(f"manifest row {row['row_id']}: real pairs are not supported yet")


def _read_rendered(row: Mapping[str, Any], roots: Roots) -> RenderedPair:
    def read(path: str) -> np.ndarray:
        return read_span(inside(roots.pairs_dir, path), row["offset_s"], row["seconds"], row["sample_rate"])

    return RenderedPair(
        recordings=np.stack([read(path) for path in row["recordings"]]),
        clean=read(row["clean"]),
        early=read(row["early"]),
        early_response=np.zeros((row["channels"], round(EARLY_S * row["sample_rate"])), dtype=np.float32),
        sample_rate=row["sample_rate"],
    )
