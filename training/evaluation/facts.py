"""How far off `aud2studio inspect` is: its figures of the benchmark's clips, against what these were rendered from.

python -m training.evaluation.facts --clips data/benchmark/test --acoustics DIR
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from pipeline_aud2studio import Aud2StudioPipeline, shipped_weights
from pipeline_aud2studio.inspection import inspect
from training.data.statistics import of_clip

from .clips import Clip, load_clips

CALLED = {"rt60_s": "RT60, s", "drr_db": "DRR, dB", "snr_db": "SNR, dB"}  # in the table of the clips


def truth(clip: Clip, acoustics: Path) -> dict[str, float]:
    """Lists what a clip was rendered from, by the names of :func:`inspect`; NaN where there is no such thing."""
    known = of_clip(clip, acoustics)
    figures = {name: known[called] for name, called in CALLED.items()}
    figures["bandwidth_hz"] = clip.row["phone"]["lowpass_hz"] if "phone" in clip.row else math.nan
    return figures | {"voice": known.get("with voice", math.nan)}


def tabulate(found: pd.DataFrame, wanted: pd.DataFrame) -> str:
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
    """Prints the table, see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, metavar="DIR")
    parser.add_argument("--acoustics", type=Path, required=True, metavar="DIR")
    parser.add_argument("--weights", default=str(shipped_weights()), help="folder or repository of the checkpoint")
    options = parser.parse_args(arguments)
    try:
        clips = load_clips(options.clips)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    pipeline = Aud2StudioPipeline.from_pretrained(options.weights, vocoder=None)
    found = [inspect(pipeline, clip.recording) for clip in tqdm(clips, unit="clip")]
    print(tabulate(pd.DataFrame(found), pd.DataFrame([truth(clip, options.acoustics) for clip in clips])))


if __name__ == "__main__":
    main()
