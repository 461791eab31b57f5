"""Alignment put to the test: recordings of one concert must be aligned, those of another performance refused.

    python -m training.evaluation.alignment --material data/material --out build/alignment --cases 100 --impostors 100
    python -m training.evaluation.alignment --hours 3         # the time and memory that two long recordings take

One JSON file per case under `--out`: the same command goes on where it was stopped. Ends with a table in Markdown
(`alignment.md`), with the figures that are aimed at.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm.auto import tqdm

from pipeline_aud2studio.alignment import align
from pipeline_aud2studio.files import atomic_path
from training.data.material import Material
from training.jsonl import write_json

from .alignment_cases import SAMPLE_RATE, Take, make_case, make_impostors, open_material
from .bench import peak_rss_mb, write_recording

GOOD_MS, EXACT_MS = 0.1, 0.02


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the cases, see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--material", type=Path, default=Path("data/material"), help="what training.data.material prepared")
    add("--out", type=Path, default=Path("build/alignment"), help="results and table")
    add("--cases", type=int, default=100)
    add("--impostors", type=int, default=100, help="pairs of different performances")
    add("--minutes", type=float, nargs=2, default=(12.0, 25.0), metavar=("LOW", "HIGH"))
    add("--impostor-minutes", type=float, nargs=2, default=(4.0, 8.0), metavar=("LOW", "HIGH"))
    add("--max-offset-min", type=float, default=10.0, help="between the starts, in minutes")
    add("--max-drift-ppm", type=float, default=300.0)
    add("--seed", type=int, default=0, help="first case's seed")
    add("--temporary", type=Path, help="folder for the recordings of the case at hand (default: system's)")
    add("--hours", type=float, help="measure time and memory with two recordings of this length only")
    args = parser.parse_args(arguments)
    if args.hours:
        print(measure_long(3600 * args.hours, args.temporary))
        return
    material = open_material(Material.open(args.material))

    def case(seed: int, folder: Path) -> dict[str, Any]:
        takes, waveforms, about = make_case(seed, material, args.minutes, args.max_offset_min, args.max_drift_ppm)
        files = save(folder, waveforms, [take.sample_rate for take in takes])
        return {**about, "takes": [vars(take) for take in takes], "results": score(estimates(files), takes)}

    def impostor(seed: int, folder: Path) -> dict[str, Any]:
        waveforms, rates, about = make_impostors(seed, material, args.impostor_minutes)
        return {**about, "results": estimates(save(folder, waveforms, rates))}

    results: dict[str, list[dict[str, Any]]] = {"case": [], "impostor": []}
    for kind, make, count in (("case", case, args.cases), ("impostor", impostor, args.impostors)):
        for seed in tqdm(range(args.seed, args.seed + count), desc=kind, unit="file"):
            path = args.out / f"{kind}-{seed:04d}.json"
            if not path.exists():
                with tempfile.TemporaryDirectory(dir=args.temporary) as folder:
                    write_json(path, make(seed, Path(folder)))
            results[kind].append(json.loads(path.read_text(encoding="utf-8")))
    table = tabulate(results["case"], results["impostor"])
    with atomic_path(args.out / "alignment.md") as temporary:
        temporary.write_text(table, encoding="utf-8")
    print(table)


def measure_long(seconds: float, temporary: Path | None) -> str:
    """Measures time and peak memory of this process for two stereo files at 48 kHz, in one line."""
    with tempfile.TemporaryDirectory(dir=temporary) as folder:
        paths = [Path(folder) / f"{number}.wav" for number in range(2)]
        for number, path in enumerate(paths):
            write_recording(path, seconds, take=number, sample_rate=48000)
        before_mb = peak_rss_mb()
        started, processor = time.perf_counter(), time.process_time()
        result = align(paths, reference=0)
        taken_s, processor_s = time.perf_counter() - started, time.process_time() - processor
        for _ in result.blocks(1):
            pass
        placed_s = time.process_time() - processor - processor_s
    found = result.alignments[1]
    return (
        f"two recordings of {seconds / 3600:g} h: aligned in {taken_s:.0f} s, {processor_s:.0f} s of processor time; "
        f"put on one clock in another {placed_s:.0f} s of it; peak memory {peak_rss_mb():.0f} MB, "
        f"{before_mb:.0f} MB of it before; offset {found.offset_s:.6f} s, drift {found.drift_ppm:.4f} ppm"
    )


def save(folder: Path, waveforms: Sequence[np.ndarray], rates: Sequence[int]) -> list[Path]:
    """Writes 16-bit WAV files of (channels, samples) each."""
    paths = [folder / f"recording{number}.wav" for number in range(len(waveforms))]
    for path, waveform, rate in zip(paths, waveforms, rates, strict=True):
        soundfile.write(path, waveform.T, rate, subtype="PCM_16")
    return paths


def estimates(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Aligns all files with the first: lines, polarity and confidence of each other one, and what it took."""
    processor = time.process_time()
    try:
        # Nothing is refused here, so that the line of a refused recording is known as well.
        alignments = align(files, SAMPLE_RATE, reference=0, force=True).alignments[1:]
    except ValueError as error:
        return [{"accepted": False, "confidence": 0.0, "segments": [], "reason": str(error)} for _ in files[1:]]
    processor_s = (time.process_time() - processor) / len(alignments)
    return [
        {
            "accepted": not alignment.reason,
            "confidence": alignment.confidence,
            "direct_height": alignment.direct_height,
            "polarity": alignment.polarity,
            "segments": [vars(segment) for segment in alignment.segments],
            "processor_s": processor_s,
        }
        for alignment in alignments
    ]


def score(estimates: Sequence[dict[str, Any]], takes: Sequence[Take]) -> list[dict[str, Any]]:
    """Compares every recording's estimate with the truth, over the time that it shares with the first."""
    rows = []
    first = takes[0]
    for take, estimate in zip(takes[1:], estimates, strict=True):
        # The truth: an event at time t of the concert, which the first recording's clock shares but for its start.
        rate = 1 + take.drift_ppm * 1e-6
        begin = max(take.start_s, first.start_s)
        end = min(take.start_s + take.seconds, first.start_s + first.seconds)
        events = np.linspace(begin, end, 50)
        in_recording, in_reference = (events - take.start_s) * rate, events - first.start_s
        row = {key: value for key, value in estimate.items() if key != "segments"}
        if estimate["segments"]:
            segments = estimate["segments"]
            edges = [segment["end_s"] for segment in segments[:-1]]
            holding = [segments[index] for index in np.searchsorted(edges, in_recording)]
            mapped = [
                time_s / (1 + segment["drift_ppm"] * 1e-6) + segment["offset_s"]
                for time_s, segment in zip(in_recording, holding, strict=True)
            ]
            errors_ms = 1e3 * (np.array(mapped) - in_reference)
            row |= {"max_error_ms": float(np.abs(errors_ms).max()), "mean_error_ms": float(errors_ms.mean())}
            row["num_segments"] = len(segments)
            row["drift_error_ppm"] = float(segments[0]["drift_ppm"] - take.drift_ppm)
        if "polarity" in estimate:
            row["polarity_right"] = estimate["polarity"] == take.polarity * first.polarity
        rows.append(row | {"shared_s": float(end - begin)})
    return rows


def tabulate(cases: Sequence[dict[str, Any]], impostors: Sequence[dict[str, Any]]) -> str:
    """Tabulates the figures beside those that are aimed at, as Markdown."""
    recordings = [row for case in cases for row in case["results"]]
    accepted = [row for row in recordings if row["accepted"]]
    errors = np.array([row["max_error_ms"] for row in accepted])
    quantiles = np.quantile(errors, [0.5, 0.95]) if len(errors) else (np.nan, np.nan)
    rows = [
        ("accepted, %", ">= 95", percentage([row["accepted"] for row in recordings])),
        (
            "accepted falsely, %",
            "<= 1",
            percentage([row["accepted"] for pair in impostors for row in pair["results"]]),
        ),
        (f"error <= {GOOD_MS} ms, %", ">= 95", percentage(errors <= GOOD_MS)),
        (f"error <= {EXACT_MS} ms, %", ">= 50", percentage(errors <= EXACT_MS)),
        ("median error, ms", "", f"{quantiles[0]:.4f}"),
        ("95th percentile, ms", "", f"{quantiles[1]:.3f}"),
        ("polarity right, %", "", percentage([row["polarity_right"] for row in accepted])),
        ("processor time, s", "", f"{np.mean([row.get('processor_s', 0.0) for row in recordings]):.1f}"),
    ]
    return "\n".join(
        [
            f"{len(recordings)} recordings in {len(cases)} cases, {len(impostors)} pairs of different performances. "
            "The error is the largest over the shared time, of the recordings accepted.",
            "",
            "| | aimed at | found |",
            "|---|---|---|",
            *(f"| {name} | {aim} | {found} |" for name, aim, found in rows),
            "",
        ]
    )


def percentage(values: Sequence[bool] | np.ndarray) -> str:
    return f"{100 * np.mean(values):.1f}" if len(values) else ""


if __name__ == "__main__":
    main()
