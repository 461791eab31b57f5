"""What the benchmark's clips are made of, beside what `aud2studio inspect` says of them and what training hears.

    python -m training.evaluation.facts --clips data/benchmark/test --acoustics DIR
    python -m training.evaluation.facts --clips data/benchmark/validation --acoustics DIR --material data/material

The first prints how far off `inspect` is. The second prints where the clips lie outside of what training hears, for
there the renderer has to be widened. Give it the validation clips: what was widened to fit the test set would be tuned
on it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import signal
from tqdm.auto import tqdm

from pipeline_aud2studio import Aud2StudioPipeline, shipped_weights
from pipeline_aud2studio.inspection import inspect
from training.data.material import CURVE_HZ, SAMPLE_RATE, Material, band_levels_db
from training.data.rooms import DIRECT_S, energy_ratio_db, t20_s
from training.data.scenes import Scene, SceneRenderer

from .clips import Clip, load_clips, read_responses

CALLED = {"rt60_s": "RT60, s", "drr_db": "DRR, dB", "snr_db": "SNR, dB", "voice": "with voice"}  # of what is known
QUANTILES = [0.05, 0.5, 0.95]
INSIDE = [0.02, 0.98]  # of the training's distribution
MOST_OUTSIDE = 0.1  # share of the clips' values, from which on a row is marked


def balance_db(recording: np.ndarray) -> dict[str, float]:
    """Measures the mean spectrum of a recording (channels, samples) in third octaves, 0 dB from 200 Hz to 4 kHz."""
    frequencies, power = signal.welch(recording, SAMPLE_RATE, nperseg=8192)
    levels_db = band_levels_db(frequencies, power.mean(0))
    names = [f"{hz:.0f} Hz, dB" for hz in CURVE_HZ]
    return {name: float(level) for name, level, hz in zip(names, levels_db, CURVE_HZ, strict=True) if hz > 45}


def of_scene(scene: Scene) -> dict[str, float]:
    """Lists the figures of a scene by the names of `CALLED`, and its balance."""
    figures = {name: scene.labels[name] for name in CALLED}
    if "place" not in scene.recipe:
        figures["drr_db"] = math.nan
    return figures | balance_db(scene.recordings[0])


def of_clip(clip: Clip, acoustics: Path) -> dict[str, float]:
    """Lists the same of a clip, and its `bandwidth_hz`; NaN where there is no such thing. Rooms are measured."""
    figures = dict.fromkeys([*CALLED, "bandwidth_hz"], math.nan)
    if clip.condition != "audience alone":
        figures |= {"voice": float(clip.has_voice), "snr_db": clip.row.get("snr_db", math.nan)}
    if "phone" in clip.row:
        figures["bandwidth_hz"] = clip.row["phone"]["lowpass_hz"]
    if "rir" in clip.row:
        response = read_responses(acoustics / clip.row["rir"], 1)[0]
        figures["rt60_s"] = t20_s(response.astype(np.float64), SAMPLE_RATE)
        figures["drr_db"] = energy_ratio_db(response, SAMPLE_RATE, DIRECT_S)
    return figures | balance_db(clip.recording)


def tabulate_distributions(training: Sequence[dict[str, float]], clips: Sequence[dict[str, float]]) -> str:
    """Writes a row for each figure: the 5 %, 50 % and 95 % quantiles of both, and the share of clips outside.

    That of voices has one value, its mean.
    """
    tables = pd.DataFrame(training), pd.DataFrame(clips)
    lines = [
        f"{len(training)} scenes, {len(clips)} clips: 5, 50 and 95 % quantiles.",
        "",
        "| | training | clips | clips outside, % | |",
        "|---|---|---|---|---|",
    ]
    for name in training[0]:
        ours, theirs = (table[name].dropna() for table in tables)
        if name == "voice":
            lines.append(f"| {CALLED[name]} | {ours.mean():.2f} | {theirs.mean():.2f} | | |")
            continue
        cells = [", ".join(f"{value:.1f}" for value in each.quantile(QUANTILES)) for each in (ours, theirs)]
        low, high = ours.quantile(INSIDE)
        outside = float(np.mean((theirs < low) | (theirs > high)))
        mark = "widen" if outside > MOST_OUTSIDE else ""
        lines.append(f"| {CALLED.get(name, name)} | {' | '.join(cells)} | {100 * outside:.0f} | {mark} |")
    return "\n".join(lines)


def tabulate_errors(found: pd.DataFrame, wanted: pd.DataFrame) -> str:
    """Writes the median error of every figure, and that of always saying the clips' own median, as Markdown.

    Args:
        found, wanted: A row for each clip, a column for each figure.
    """
    rows = []
    for name in ("rt60_s", "drr_db", "snr_db", "bandwidth_hz"):
        known = wanted[name].notna()
        one, other = found[name][known], wanted[name][known]
        is_ratio = name in ("rt60_s", "bandwidth_hz")
        if is_ratio:
            one, other = np.log(one), np.log(other)
        errors = [float(np.median(np.abs(guess - other))) for guess in (one, np.median(other))]
        cells = [f"{100 * math.expm1(error):.0f} %" if is_ratio else f"{error:.1f} dB" for error in errors]
        rows.append([name, len(other), *cells, f"{np.corrcoef(one, other)[0, 1]:.2f}"])
    known = wanted.voice.notna()
    right = ((found.voice > 0.5) == (wanted.voice > 0.5))[known]
    share = max(wanted.voice.mean(), 1 - wanted.voice.mean())
    rows.append(
        ["voice", int(known.sum()), f"{100 * (1 - right.mean()):.0f} % wrong", f"{100 * (1 - share):.0f} %", ""]
    )
    columns = ["", "clips", "median error", "of a constant", "correlation"]
    return pd.DataFrame(rows, columns=columns).to_markdown(index=False, disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one of the tables, see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, metavar="DIR")
    parser.add_argument("--acoustics", type=Path, required=True, metavar="DIR")
    parser.add_argument("--weights", default=str(shipped_weights()), help="folder or repository of the checkpoint")
    parser.add_argument("--material", type=Path, metavar="DIR", help="compare with scenes of it, not with `inspect`")
    parser.add_argument("--count", type=int, default=400, help="scenes")
    options = parser.parse_args(arguments)
    try:
        clips = load_clips(options.clips)
        scenes = SceneRenderer(Material.open(options.material)) if options.material else None
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if scenes is not None:
        training = [of_scene(scenes(row)) for row in tqdm(range(options.count), desc="scenes", unit="scene")]
        print(tabulate_distributions(training, [of_clip(clip, options.acoustics) for clip in clips]))
        return
    pipeline = Aud2StudioPipeline.from_pretrained(options.weights, vocoder=None)
    found = [inspect(pipeline, clip.recording) for clip in tqdm(clips, unit="clip")]
    print(tabulate_errors(pd.DataFrame(found), pd.DataFrame([of_clip(clip, options.acoustics) for clip in clips])))


if __name__ == "__main__":
    main()
