"""Alignment put to the test: recordings of one concert must be aligned, those of another performance refused.

    python -m training.evaluation.alignment --material data/material --out build/alignment --cases 100 --impostors 100

One JSON file per case under `--out`: the same command goes on where it was stopped. Ends with a table in Markdown
(`alignment.md`), with the figures that are aimed at, and audio-offset-finder for comparison where it is installed
(`pip install --no-deps audio-offset-finder`, it asks for an older numpy than it needs).

    python -m training.evaluation.alignment --hours 3         # the time and memory that two long recordings take
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from pipeline_aud2studio.alignment import align
from pipeline_aud2studio.alignment.clock import Recording
from pipeline_aud2studio.files import atomic_path
from training.data.material import Material
from training.jsonl import write_json

from .alignment_cases import SAMPLE_RATE, Take, make_case, make_impostors, open_material
from .bench import peak_rss_mb, write_recording

GOOD_MS, EXACT_MS = 0.1, 0.02
# What is aimed at in the table's first four columns, in percent.
TARGETS = (">= 95", "<= 1", ">= 95", ">= 50")
PEER_MODULE = "audio_offset_finder.audio_offset_finder"
PEER_RATE = 8000
PEER_MIN_SCORE = 10.0  # what its documentation calls a reliable match
Files = Sequence[Path]
Method = Callable[[Files], list[dict[str, Any]]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--material", type=Path, default=Path("data/material"), help="what training.data.material prepared"
    )
    parser.add_argument("--out", type=Path, default=Path("build/alignment"), help="results and table")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--impostors", type=int, default=100, help="pairs of different performances")
    parser.add_argument("--minutes", type=float, nargs=2, default=(12.0, 25.0), metavar=("LOW", "HIGH"))
    parser.add_argument("--impostor-minutes", type=float, nargs=2, default=(4.0, 8.0), metavar=("LOW", "HIGH"))
    parser.add_argument("--max-offset-min", type=float, default=10.0, help="between the starts, in minutes")
    parser.add_argument("--max-drift-ppm", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0, help="first case's seed")
    parser.add_argument("--no-peer", action="store_true", help="without audio-offset-finder")
    parser.add_argument(
        "--temporary", type=Path, help="folder for the recordings of the case at hand (default: system's)"
    )
    parser.add_argument("--hours", type=float, help="measure time and memory with two recordings of this length only")
    args = parser.parse_args(arguments)
    if args.hours:
        print(measure_long(3600 * args.hours, args.temporary))
        return
    material = open_material(Material.open(args.material))
    methods: dict[str, Method] = {"aud2studio": run_ours}
    if not args.no_peer and peer_available():
        methods["audio-offset-finder"] = run_peer

    def case(seed: int, folder: Path) -> dict[str, Any]:
        takes, waveforms, about = make_case(seed, material, args.minutes, args.max_offset_min, args.max_drift_ppm)
        files = save(folder, waveforms, [take.sample_rate for take in takes])
        del waveforms
        scores = {name: score(timed(run, files), takes) for name, run in methods.items()}
        return {**about, "takes": [vars(take) for take in takes], "results": scores}

    def impostor(seed: int, folder: Path) -> dict[str, Any]:
        waveforms, rates, about = make_impostors(seed, material, args.impostor_minutes)
        files = save(folder, waveforms, rates)
        del waveforms
        rows = {name: [{**timed(run, files)[0], "segments": None}] for name, run in methods.items()}
        return {**about, "results": rows}

    results: dict[str, list[dict[str, Any]]] = {}
    for kind, make, count in (("case", case, args.cases), ("impostor", impostor, args.impostors)):
        results[kind] = []
        for seed in tqdm(range(args.seed, args.seed + count), desc=kind, unit="file"):
            path = args.out / f"{kind}-{seed:04d}.json"
            if not path.exists():
                with tempfile.TemporaryDirectory(dir=args.temporary) as folder:
                    write_json(path, make(seed, Path(folder)))
            results[kind].append(json.loads(path.read_text(encoding="utf-8")))
    table = tabulate(results["case"], results["impostor"])
    with atomic_path(args.out / "alignment.md") as temporary:
        temporary.write_text(table, encoding="utf-8")
    plot_errors(args.out / "alignment.png", results["case"])
    print(table)


def measure_long(seconds: float, temporary: Path | None) -> str:
    """Time and peak memory of this process for two stereo files at 48 kHz, in one line."""
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
    """16-bit WAV files of (channels, samples) each."""
    paths = [folder / f"recording{number}.wav" for number in range(len(waveforms))]
    for path, waveform, rate in zip(paths, waveforms, rates, strict=True):
        soundfile.write(path, waveform.T, rate, subtype="PCM_16")
    return paths


def timed(run: Method, files: Files) -> list[dict[str, Any]]:
    """The estimates for all files but the first, with the seconds taken for each."""
    started, processor = time.perf_counter(), time.process_time()
    estimates = run(files)
    share = 1 / len(estimates)
    cost = {
        "seconds": share * (time.perf_counter() - started),
        "processor_s": share * (time.process_time() - processor),
    }
    return [{**estimate, **cost} for estimate in estimates]


def run_ours(files: Files) -> list[dict[str, Any]]:
    """Lines, polarity and confidence against the first file."""
    try:
        # Nothing is refused here, so that the line of a refused recording is known as well.
        alignments = align(files, SAMPLE_RATE, reference=0, force=True).alignments[1:]
    except ValueError as error:
        return [{"accepted": False, "confidence": 0.0, "segments": [], "reason": str(error)} for _ in files[1:]]
    return [
        {
            "accepted": not alignment.reason,
            "confidence": alignment.confidence,
            "direct_height": alignment.direct_height,
            "polarity": alignment.polarity,
            "segments": [vars(segment) for segment in alignment.segments],
        }
        for alignment in alignments
    ]


def peer_available() -> bool:
    if importlib.util.find_spec(PEER_MODULE.partition(".")[0]) is None:
        print("audio-offset-finder is not installed: no comparison")
        return False
    return True


def run_peer(files: Files) -> list[dict[str, Any]]:
    """audio-offset-finder: correlation of MFCCs; it knows one offset, no drift and no polarity."""
    find_offset_between_buffers = importlib.import_module(PEER_MODULE).find_offset_between_buffers

    buffers = []
    for path in files:
        recording = Recording(path)
        mono = np.concatenate([recording.mono(*block) for block in recording.blocks(60.0)])
        buffers.append(soxr.resample(mono, recording.sample_rate, PEER_RATE).astype(np.float64))
    estimates = []
    for recording_number in range(1, len(files)):
        found = find_offset_between_buffers(buffers[0], buffers[recording_number], PEER_RATE)
        seconds = len(buffers[recording_number]) / PEER_RATE
        line = {"start_s": 0.0, "end_s": seconds, "offset_s": float(found["time_offset"]), "drift_ppm": 0.0}
        confidence = float(found["standard_score"])
        estimates.append({"accepted": confidence >= PEER_MIN_SCORE, "confidence": confidence, "segments": [line]})
    return estimates


def score(estimates: Sequence[dict[str, Any]], takes: Sequence[Take]) -> list[dict[str, Any]]:
    """Every recording's estimate against the truth, over the time that it shares with the first."""
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
    """The table in Markdown, one line a method; what was computed without a peer does not count for it."""
    methods = dict.fromkeys(name for row in (*cases, *impostors) for name in row["results"])
    recordings = {name: [row for case in cases for row in case["results"].get(name, [])] for name in methods}
    pairs = {name: [row for pair in impostors for row in pair["results"].get(name, [])] for name in methods}
    header = (
        "| | recordings, pairs | accepted, % | accepted falsely, % | error <= 0.1 ms, % | error <= 0.02 ms, % "
        "| median error, ms | 95th percentile, ms | polarity right, % | processor time, s |"
    )
    lines = [
        f"{sum(len(case['takes']) - 1 for case in cases)} recordings in {len(cases)} cases, "
        f"{len(impostors)} pairs of different performances. The error is the largest over the shared time, "
        "of the recordings accepted.",
        "",
        header,
        "|---" * 10 + "|",
        "| aimed at | 100 cases, 100 | " + " | ".join(TARGETS) + " | | | | |",
    ]
    for name in methods:
        accepted = [row for row in recordings[name] if row["accepted"]]
        errors = np.array([row["max_error_ms"] for row in accepted])
        polarities = [row["polarity_right"] for row in accepted if "polarity_right" in row]
        cells = [
            f"{len(recordings[name])}, {len(pairs[name])}",
            percentage([row["accepted"] for row in recordings[name]]),
            percentage([row["accepted"] for row in pairs[name]]),
            percentage(errors <= GOOD_MS),
            percentage(errors <= EXACT_MS),
            f"{np.median(errors):.4f}" if len(errors) else "",
            f"{np.quantile(errors, 0.95):.3f}" if len(errors) else "",
            percentage(polarities),
            f"{np.mean([row['processor_s'] for row in recordings[name]]):.1f}" if recordings[name] else "",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot_errors(path: Path, cases: Sequence[dict[str, Any]]) -> None:
    """A PNG: the share of all recordings that is accepted with an error up to a value, by method."""
    figure = Figure(figsize=(6.4, 3.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name in dict.fromkeys(name for case in cases for name in case["results"]):
        rows = [row for case in cases for row in case["results"].get(name, [])]
        errors = np.sort([row["max_error_ms"] for row in rows if row["accepted"]])
        shares = 100 * np.arange(1, len(errors) + 1) / len(rows)
        axes.step([1e-4, *errors, 1e4], [0, *shares, 100 * len(errors) / len(rows)], where="post", label=name)
    for limit_ms in (EXACT_MS, GOOD_MS):
        axes.axvline(limit_ms, color="gray", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="largest error, ms", ylabel="recordings, %", xlim=(1e-4, 1e4), ylim=(0, 102))
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def percentage(values: Sequence[bool] | np.ndarray) -> str:
    return f"{100 * np.mean(values):.1f}" if len(values) else ""


if __name__ == "__main__":
    main()
