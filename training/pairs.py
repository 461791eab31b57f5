"""The audio of a manifest row, whatever its kind: rendered now, rendered before, or really recorded."""

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_aud2studio.alignment import AlignmentResult, align
from pipeline_aud2studio.clock import blocks_on_reference_clock
from training.degrade import EARLY_S, RenderedPair, render
from training.sources import Roots, inside, read_span


def load_pair(row: Mapping[str, Any], roots: Roots) -> RenderedPair:
    """Recordings and target of a checked manifest row."""
    loaders = {"synthetic": render, "rendered": _read_rendered, "real": _read_real}
    return loaders[row["kind"]](row, roots)


def _read_rendered(row: Mapping[str, Any], roots: Roots) -> RenderedPair:
    def read(path: str) -> np.ndarray:
        return read_span(inside(roots.pairs_dir, path), row["offset_s"], row["seconds"], row["sample_rate"])

    return RenderedPair(
        recordings=np.stack([read(path) for path in row["recordings"]]),
        clean=read(row["clean"]),
        early=read(row["early"]),
        early_response=no_response(row),
        sample_rate=row["sample_rate"],
    )


def _read_real(row: Mapping[str, Any], roots: Roots) -> RenderedPair:
    """An excerpt of audience recordings on the clock of the clean one, `offset_s` into it.

    Nobody knows the level of the direct path in a real recording: the clean excerpt gets the level of the first
    recording. There is no early target either; the clean one stands in for it.
    """
    clean_path = inside(roots.pairs_dir, row["clean"])
    paths = tuple(inside(roots.pairs_dir, path) for path in row["recordings"])
    sample_rate = row["sample_rate"]
    try:
        result = _aligned(clean_path, paths, sample_rate)
    except ValueError as error:
        raise ValueError(f"manifest row {row['row_id']}: {error}") from error
    samples = round(row["seconds"] * sample_rate)
    recordings = []
    for alignment, recording in zip(result.alignments[1:], result.recordings[1:], strict=True):
        if not alignment.accepted:
            raise ValueError(f"manifest row {row['row_id']}: {alignment.name} {alignment.reason}")
        segments = tuple(
            replace(segment, offset_s=segment.offset_s - row["offset_s"]) for segment in alignment.segments
        )
        blocks = blocks_on_reference_clock(recording, segments, samples, sample_rate)
        recordings.append(_with_channels(alignment.polarity * np.concatenate(list(blocks), axis=-1), row["channels"]))
    clean = _with_channels(read_span(clean_path, row["offset_s"], row["seconds"], sample_rate), row["channels"])
    gain = np.sqrt(np.mean(np.square(recordings[0])) / max(float(np.mean(np.square(clean))), 1e-12))
    clean = (gain * clean).astype(np.float32)
    return RenderedPair(np.stack(recordings), clean, clean, no_response(row), sample_rate)


@functools.lru_cache(maxsize=32)
def _aligned(clean: Path, recordings: tuple[Path, ...], sample_rate: int) -> AlignmentResult:
    """Whole files are aligned, once; the excerpts of all rows are cut from the result."""
    return align([clean, *recordings], sample_rate, reference=0)


def storage_gain(pair: RenderedPair) -> float:
    """What keeps a pair from clipping in a file; one for all of it, as their levels relative to each other matter."""
    peak = max(float(np.abs(part).max()) for part in (pair.recordings, pair.clean, pair.early))
    return min(1.0, 0.99 / max(peak, 1e-9))


def _with_channels(waveform: np.ndarray, channels: int) -> np.ndarray:
    if channels == 1:
        return waveform.mean(axis=0, keepdims=True)
    return np.ascontiguousarray(np.broadcast_to(waveform[:2], (2, waveform.shape[-1])))


def no_response(row: Mapping[str, Any]) -> np.ndarray:
    """The early response of a pair that comes with its early target."""
    response = np.zeros((row["channels"], round(EARLY_S * row["sample_rate"])), dtype=np.float32)
    response[:, 0] = 1.0
    return response
