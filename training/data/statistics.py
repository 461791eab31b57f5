"""What training hears, beside what the validation clips are: where these lie outside, the renderer has to be widened.

    python -m training.data.statistics --material data/material --clips data/benchmark/validation --acoustics DIR

Prints a table in Markdown. Give it the validation clips: what was widened to fit the test set would be tuned on it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from scipy import signal
from tqdm.auto import tqdm

from training.evaluation.clips import Clip, load_clips

from .material import CURVE_HZ, SAMPLE_RATE, Material, band_levels_db
from .rooms import DIRECT_S, energy_ratio_db, t20_s, tidy
from .scenes import Scene, SceneRenderer

QUANTILES = (0.05, 0.5, 0.95)
INSIDE = (0.02, 0.98)  # of the training's distribution
MOST_OUTSIDE = 0.1  # share of the clips' values, from which on a row is marked


def balance_db(recording: np.ndarray) -> dict[str, float]:
    """Measures the mean spectrum of a recording (channels, samples) in third octaves, 0 dB from 200 Hz to 4 kHz."""
    frequencies, power = signal.welch(recording, SAMPLE_RATE, nperseg=8192)
    levels_db = band_levels_db(frequencies, power.mean(0))
    names = [f"{hz:.0f} Hz, dB" for hz in CURVE_HZ]
    return {name: float(level) for name, level, hz in zip(names, levels_db, CURVE_HZ, strict=True) if hz > 45}


def of_scene(scene: Scene) -> dict[str, float]:
    """Lists the figures of a scene."""
    names = {"rt60_s": "RT60, s", "drr_db": "DRR, dB", "snr_db": "SNR, dB", "voice": "with voice"}
    figures = {name: scene.labels[label] for label, name in names.items()}
    if "place" not in scene.recipe:
        figures["DRR, dB"] = math.nan
    return figures | balance_db(scene.recordings[0])


def of_clip(clip: Clip, acoustics: Path) -> dict[str, float]:
    """Lists the figures of a clip; those of the room are measured."""
    figures = {"RT60, s": math.nan, "DRR, dB": math.nan, "SNR, dB": clip.row.get("snr_db", math.nan)}
    if clip.condition == "audience alone":
        figures |= {"SNR, dB": math.nan, "with voice": math.nan}
    else:
        figures["with voice"] = float(clip.has_voice)
    if "rir" in clip.row:
        waveform, sample_rate = soundfile.read(acoustics / clip.row["rir"], always_2d=True)
        response = tidy(waveform.T[np.abs(waveform.T).max(1) > 0][:1], sample_rate, SAMPLE_RATE)[0]
        figures["RT60, s"] = t20_s(response.astype(np.float64), SAMPLE_RATE)
        figures["DRR, dB"] = energy_ratio_db(response, SAMPLE_RATE, DIRECT_S)
    return figures | balance_db(clip.recording)


def tabulate(training: Sequence[dict[str, float]], clips: Sequence[dict[str, float]]) -> str:
    """Writes a row for each figure: the 5 %, 50 % and 95 % quantiles of both, and the share of clips outside.

    Shares (`with voice`) have one value, their mean.
    """
    ours, theirs = ({name: _defined(rows, name) for name in rows[0]} for rows in (training, clips))
    lines = [
        f"{len(training)} scenes, {len(clips)} clips: 5, 50 and 95 % quantiles.",
        "",
        "| | training | clips | clips outside, % | |",
        "|---|---|---|---|---|",
    ]
    for name in ours:
        if name == "with voice":
            lines.append(f"| {name} | {ours[name].mean():.2f} | {theirs[name].mean():.2f} | | |")
            continue
        cells = [", ".join(f"{value:.1f}" for value in np.quantile(each[name], QUANTILES)) for each in (ours, theirs)]
        low, high = np.quantile(ours[name], INSIDE)
        outside = float(np.mean((theirs[name] < low) | (theirs[name] > high)))
        mark = "widen" if outside > MOST_OUTSIDE else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {100 * outside:.0f} | {mark} |")
    return "\n".join(lines)


def _defined(rows: Iterable[dict[str, Any]], name: str) -> np.ndarray:
    values = np.array([row[name] for row in rows])
    return values[~np.isnan(values)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--material", type=Path, default=Path("data/material"))
    parser.add_argument("--clips", type=Path, default=Path("data/benchmark/validation"))
    parser.add_argument("--acoustics", type=Path, required=True, metavar="DIR")
    parser.add_argument("--count", type=int, default=400, help="scenes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        scenes = SceneRenderer(Material.open(options.material), seed=options.seed)
        clips = load_clips(options.clips)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    training = [of_scene(scenes(row)) for row in tqdm(range(options.count), desc="scenes", unit="scene")]
    print(tabulate(training, [of_clip(clip, options.acoustics) for clip in tqdm(clips, desc="clips", unit="clip")]))


if __name__ == "__main__":
    main()
