"""Spectrograms below each other, for the eye to compare."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .files import atomic_path

if TYPE_CHECKING:
    from .chunks import Source

WINDOW_SAMPLES = 2048
MAX_FRAMES = 1200  # about one for each pixel of the picture
PIXELS = 1152  # width of the picture
RANGE_DB = 80.0
LOWEST_HZ = 30.0


def spectrogram_db(source: Source, sample_rate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Power over time and frequency, averaged over the channels; a full-scale sine is 0 dB.

    Returns:
        Times in s (frames), frequencies in Hz (bins), levels in dB (bins, frames).
    """
    last = max(0, source.num_samples - WINDOW_SAMPLES)
    starts = np.arange(0, last + 1, max(WINDOW_SAMPLES // 8, last // MAX_FRAMES))
    window = np.hanning(WINDOW_SAMPLES).astype(np.float32)
    power = np.zeros((len(starts), WINDOW_SAMPLES // 2 + 1))
    for number, start in enumerate(starts):
        frame = source.read(int(start), min(int(start) + WINDOW_SAMPLES, source.num_samples))
        padded = np.pad(frame, ((0, 0), (0, WINDOW_SAMPLES - frame.shape[1])))
        power[number] = (np.abs(np.fft.rfft(padded * window) * (2 / window.sum())) ** 2).mean(axis=0)
    times = (starts + WINDOW_SAMPLES / 2) / sample_rate
    return times, np.fft.rfftfreq(WINDOW_SAMPLES, 1 / sample_rate), 10 * np.log10(np.maximum(power.T, 1e-12))


def plot_spectrograms(
    path: str | os.PathLike[str],
    panels: Mapping[str, tuple[Source, int]],
    start_s: float = 0.0,
    width_inches: float = 9.6,
) -> None:
    """Write a PNG with one spectrogram for each title, all on the same axes and the same scale of levels.

    Args:
        panels: what is shown below each title, and its sampling rate in Hz.
        start_s: what the axis calls its beginning, in s.
        width_inches: of the picture, in letters of 10 points; it always has the same number of pixels.
    """
    size = width_inches, (0.98 + 0.2 * width_inches) * len(panels)
    figure = Figure(figsize=size, dpi=PIXELS / width_inches, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(len(panels), sharex=True, sharey=True, squeeze=False)[:, 0]
    spectrograms = {title: spectrogram_db(source, rate) for title, (source, rate) in panels.items()}
    sample_rate = max(rate for _, rate in panels.values())
    loudest_db = max(levels.max() for _, _, levels in spectrograms.values())
    for axes, (title, (times, frequencies, levels)) in zip(all_axes, spectrograms.items(), strict=True):
        low_db, look = loudest_db - RANGE_DB, {"cmap": "magma", "rasterized": True}
        mesh = axes.pcolormesh(times + start_s, frequencies, levels, vmin=low_db, vmax=loudest_db, **look)
        axes.set_yscale("log")
        axes.set_ylim(LOWEST_HZ, sample_rate / 2)
        axes.set_yticks([100, 1000, 10000] if sample_rate > 20000 else [100, 1000], minor=False)
        axes.yaxis.set_major_formatter(lambda hertz, _: f"{hertz / 1000:g}k" if hertz >= 1000 else f"{hertz:g}")
        axes.set_ylabel("Hz")
        axes.set_title(title, loc="left", fontsize=10)
    all_axes[-1].set_xlabel("s")
    figure.colorbar(mesh, ax=list(all_axes), label="dB")
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, format="png")
