"""`aud2studio align`: recordings of one performance, written on one clock.

The command line's own file hands `aud2studio align ...` over: `add_arguments(parser)`, then `run(args)`, which returns
the exit status and raises ValueError for what the user can put right and OSError for what the disk refuses.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..files import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, atomic_path, check_writable, write_blocks
from . import Alignment, AlignmentResult, align
from .clock import Recording


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    folder = "folder for the aligned recordings: WAV, 32-bit float, as long as the reference"
    add("--inputs", nargs="+", required=True, type=Path, metavar="PATH", help="two or more recordings")
    add("--save-dir", required=True, type=Path, metavar="DIR", help=folder)
    add("--report", type=Path, metavar="JSON", help="write offsets, drifts, polarities, confidences and residuals")
    add("--plot", type=Path, metavar="PNG", help="draw lag against time, with the lines that were fitted")
    add("--reference", type=int, metavar="N", help="which input sets the clock, from 1 (default: the best one)")
    add("--force", action="store_true", help="use recordings that seem to be of another performance, too")
    add("--sample-rate", type=int, metavar="HZ", help="of the aligned recordings (default: the reference's)")
    add("--overwrite", action="store_true", help="replace what exists already")


def run(args: argparse.Namespace) -> int:
    """Aligns, writes, and says in a line each where the recordings lie."""
    check_arguments(args)
    recordings = [Recording(path) for path in args.inputs]
    outputs = plan_outputs(recordings, args.save_dir)
    args.save_dir.mkdir(parents=True, exist_ok=True)
    for path in (*outputs, *filter(None, (args.report, args.plot))):
        check_writable(path, args.overwrite)

    # The refusals are told below, in the same lines as the rest.
    logging.getLogger("pipeline_aud2studio.alignment").setLevel(logging.ERROR)
    reference = None if args.reference is None else args.reference - 1
    result = align(recordings, args.sample_rate, reference, args.force, progress=True)
    for index in result.accepted:
        form = result.recordings[index].num_channels, result.num_samples, round(result.sample_rate), "FLOAT"
        blocks = tqdm(result.blocks(index), desc=outputs[index].name, unit="block", leave=False)
        write_blocks(outputs[index], blocks, *form)
    if args.report is not None:
        with atomic_path(args.report) as temporary:
            temporary.write_text(json.dumps(result.report(), indent=1) + "\n", encoding="utf-8")
    if args.plot is not None:
        plot_lags(args.plot, result)
    for index, alignment in enumerate(result.alignments):
        print(describe(alignment, is_reference=index == result.reference))
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Raises a ValueError for arguments that cannot be followed."""
    if len(args.inputs) < 2:
        raise ValueError("--inputs needs at least two recordings to align")
    if args.reference is not None and not 1 <= args.reference <= len(args.inputs):
        raise ValueError(
            f"--reference has to be 1 to {len(args.inputs)}, the number of an input, got {args.reference}"
        )
    if args.sample_rate is not None and not MIN_SAMPLE_RATE <= args.sample_rate <= MAX_SAMPLE_RATE:
        raise ValueError(f"--sample-rate has to be {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz, got {args.sample_rate}")
    if args.plot is not None and args.plot.suffix.lower() != ".png":
        raise ValueError(f"--plot writes PNG: {args.plot} has to end in .png")
    if args.save_dir.exists() and not args.save_dir.is_dir():
        raise ValueError(f"--save-dir {args.save_dir} is a file, not a folder")


def plan_outputs(recordings: Sequence[Recording], folder: Path) -> list[Path]:
    """A file in `folder` for every recording, named as it is.

    Raises:
        ValueError: two would have the same name, or one would replace its own input.
    """
    outputs: list[Path] = []
    for recording in recordings:
        assert recording.path is not None
        output = folder / f"{recording.path.stem}.wav"
        if output in outputs:
            raise ValueError(f"two recordings would both be written to {output}: rename one of them")
        if output.exists() and output.samefile(recording.path):
            raise ValueError(f"{output} is an input: choose another --save-dir")
        outputs.append(output)
    return outputs


def describe(alignment: Alignment, is_reference: bool) -> str:
    """One line about one recording."""
    if is_reference:
        return f"{alignment.name}: reference"
    if not alignment.accepted:
        return f"{alignment.name}: left out, it {alignment.reason}"
    jumps = len(alignment.jumps)
    return (
        f"{alignment.name}: starts at {alignment.offset_s:+.6f} s, drift {alignment.drift_ppm:+.2f} ppm,"
        f" polarity {'inverted' if alignment.polarity < 0 else 'equal'}, confidence {alignment.confidence:.2f},"
        f" residual {1e3 * float(np.median(np.abs(alignment.residuals_s))):.3f} ms"
        + (f", {jumps} jump{'s' if jumps > 1 else ''}" if jumps else "")
    )


def plot_lags(path: Path, result: AlignmentResult) -> None:
    """Write a PNG: for every measured recording its lag against time with the fit, and what remains of it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [each for index, each in enumerate(result.alignments) if index != result.reference and each.segments]
    figure = Figure(figsize=(9.6, 3.4 * max(len(shown), 1)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for row, alignment in enumerate(shown):
        lag_axes, residual_axes = (figure.add_subplot(len(shown), 2, 2 * row + column) for column in (1, 2))
        times_s, lags_s = alignment.window_times_s, alignment.window_lags_s
        lag_axes.plot(times_s, 1e3 * (lags_s - alignment.offset_s), ".", markersize=4, label="windows")
        for number, segment in enumerate(alignment.segments):
            ends = np.array([segment.start_s, segment.end_s])
            fitted = np.asarray(segment.to_reference(ends)) - ends - alignment.offset_s
            lag_axes.plot(ends, 1e3 * fitted, "C1-", linewidth=1, label="fit" if number == 0 else None)
        lag_axes.set_title(describe(alignment, is_reference=False).partition(",")[0], fontsize=9)
        lag_axes.set_ylabel("lag - offset, ms")
        lag_axes.legend(fontsize=8)
        residual_axes.plot(times_s, 1e3 * alignment.residuals_s, ".", markersize=4)
        agreeing = np.abs(alignment.residuals_s) <= np.quantile(np.abs(alignment.residuals_s), 0.9)
        reach_ms = 1e3 * max(float(np.abs(alignment.residuals_s[agreeing]).max()), 2e-5)
        residual_axes.set_ylim(-1.5 * reach_ms, 1.5 * reach_ms)
        residual_axes.set_title(
            f"drift {alignment.drift_ppm:+.2f} ppm, confidence {alignment.confidence:.2f}", fontsize=9
        )
        residual_axes.set_ylabel("residual, ms")
        for axes in (lag_axes, residual_axes):
            axes.set_xlabel("time in the recording, s")
            axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
