"""What `blend` puts where a recording ends, and whether it leaves alone what is there.

    python -m training.evaluate_blend --data data --out build/benchmark

Cuts the clean excerpts of the benchmark off at 8 and at 12 kHz, restores them with `blend` and with `faithful`, and
writes `blend.json`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import signal
from tqdm.auto import tqdm

from training.baselines import Waveform
from training.evaluate import Row, read_manifest
from training.evaluate_extremes import clean_excerpts
from training.metrics import mean_interval
from training.report import write_json
from training.sources import Roots
from training.systems import Model, System, build_system

LIMITS_HZ = (8000.0, 12000.0)
TOP_HZ = 16000.0  # above it much of the music has nothing: it comes from lossy files
LOW_PASS_TAPS = 1025
EDGE = 1.05  # the filter's slope lies within this factor of the limit, on both sides
LOWEST_HZ = 100.0
HEADROOM = (
    0.1  # the pieces are played so much lower: a result that would clip is lowered as a whole, and the two differ
)
THIRD_OCTAVE = 2 ** (1 / 3)
SILENT_DB = -90.0  # bands of the clean music below this, full scale at 0, are not compared


def cut_off(waveform: Waveform, sample_rate: int, limit_hz: float) -> Waveform:
    """(channels, samples) without what is above a frequency, by a symmetric filter of no delay."""
    taps = signal.firwin(LOW_PASS_TAPS, limit_hz, window=("kaiser", 10.0), fs=sample_rate)
    return signal.oaconvolve(waveform, taps[None], mode="same", axes=-1).astype(np.float32)


def band_levels_db(waveform: Waveform, sample_rate: int, edges_hz: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Power between neighbouring frequencies in dB, the mean over the channels: `(edges - 1)`."""
    frequencies, density = signal.welch(waveform, sample_rate, nperseg=4096)
    power = density.mean(axis=0) * frequencies[1]
    bands = zip(edges_hz[:-1], edges_hz[1:], strict=True)
    sums = [power[(frequencies >= low) & (frequencies < high)].sum() for low, high in bands]
    return 10 * np.log10(np.array(sums) + 1e-20)


def compare(
    blended: Waveform, faithful: Waveform, clean: Waveform, sample_rate: int, limit_hz: float
) -> dict[str, Any]:
    """Levels in dB: of the blend and of the faithful result above the limit against the clean music, which is silent
    there in some pieces (then None); the largest and the mean difference between the two below, in third-octaves."""
    above = np.array([EDGE * limit_hz, TOP_HZ])
    level, alone, wanted = (band_levels_db(each, sample_rate, above)[0] for each in (blended, faithful, clean))
    count = int(np.log(limit_hz / EDGE / LOWEST_HZ) / np.log(THIRD_OCTAVE))
    edges = LOWEST_HZ * THIRD_OCTAVE ** np.arange(count + 1)
    below = band_levels_db(blended, sample_rate, edges) - band_levels_db(faithful, sample_rate, edges)
    below = np.abs(below[band_levels_db(clean, sample_rate, edges) > SILENT_DB])
    has_highs = wanted > SILENT_DB
    return {
        "above_db": float(level - wanted) if has_highs else None,
        "faithful_above_db": float(alone - wanted) if has_highs else None,
        "below_db": float(below.mean()),
        "below_largest_db": float(below.max()),
    }


def evaluate(
    rows: Sequence[Row], roots: Roots, blend: System, faithful: System, limit: int | None
) -> list[dict[str, Any]]:
    """A row for every piece and limit."""
    results = []
    for path, excerpt, sample_rate in tqdm(clean_excerpts(rows, roots)[:limit], desc="cut off", unit="piece"):
        clean = HEADROOM * excerpt
        for limit_hz in LIMITS_HZ:
            recording = cut_off(clean, sample_rate, limit_hz)
            restored = [system.run(recording, clean, sample_rate) for system in (blend, faithful)]
            figures = compare(restored[0], restored[1], clean, sample_rate, limit_hz)
            results.append({"music_path": path, "limit_hz": limit_hz, **figures})
    return results


def summarise(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the pieces, by limit."""
    summary = []
    for limit_hz in LIMITS_HZ:
        rows = [row for row in results if row["limit_hz"] == limit_hz]
        highs = [row for row in rows if row["above_db"] is not None]
        above = [row["above_db"] for row in highs]
        summary.append(
            {
                "limit_hz": limit_hz,
                "pieces": len(rows),
                "pieces_with_highs": len(highs),
                "above_db": float(np.mean(above)),
                "above_interval": mean_interval(above),
                "above_distance_db": float(np.mean(np.abs(above))),
                "faithful_above_db": float(np.mean([row["faithful_above_db"] for row in highs])),
                "below_db": float(np.mean([row["below_db"] for row in rows])),
                "below_largest_db": max(row["below_largest_db"] for row in rows),
            }
        )
    return summary


def tabulate(summary: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| cut off at | pieces | above, faithful, dB | above, blend, dB | distance, dB | below, blend to faithful, dB "
        "| largest, dB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in summary:
        low, high = row["above_interval"]
        lines.append(
            f"| {row['limit_hz'] / 1000:g} kHz | {row['pieces_with_highs']} of {row['pieces']} "
            f"| {row['faithful_above_db']:+.1f} | {row['above_db']:+.1f} [{low:+.1f}, {high:+.1f}] "
            f"| {row['above_distance_db']:.1f} | {row['below_db']:.3f} | {row['below_largest_db']:.2f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate_blend", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--manifest", type=Path, default=Path("training/benchmark/test.jsonl"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with clean, rirs and noise")
    parser.add_argument("--out", type=Path, default=Path("build/benchmark"), help="folder of blend.json")
    parser.add_argument("--model", default=Model.path, help="folder or repository of the checkpoint")
    parser.add_argument("--limit", type=int, help="this many pieces only")
    options = parser.parse_args(argv)
    roots = Roots(*(options.data / name for name in ("clean", "rirs", "noise")))
    try:
        rows = read_manifest(options.manifest)
        blend, faithful = (build_system(name, Model(options.model)) for name in ("blend", "faithful"))
        results = evaluate(rows, roots, blend, faithful, options.limit)
    except (ValueError, OSError) as error:
        print(f"evaluate_blend: {error}", file=sys.stderr)
        return 1
    summary = summarise(results)
    write_json(options.out / "blend.json", {"summary": summary, "pieces": results})
    print(tabulate(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
