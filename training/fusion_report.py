"""The fusion benchmark's results in a form to read: statistics as JSON, tables as Markdown, a plot as PNG."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.benchmark_audio import STATES
from training.metrics import mean_interval
from training.report import ALL, markdown_table, save_figure, write_json

Row = Mapping[str, Any]
INPUT, REFERENCE, BEST, AVERAGE = "input", "reference alone", "best alone", "alone on average"
WORSE_DB = 0.5  # below the best single recording
KINDS, CONDITIONS = ("measured", "simulated"), ("room_crowd", "phone")
METRICS = ("si_sdr", "lsd")
PLOT = "recordings.png"


def scores(result: Row, number: int) -> dict[str, Mapping[str, float]]:
    """SI-SDR and log-spectral distance by method of one performance with its first `number` recordings.

    `best alone` is the recording whose restoration has the highest SI-SDR, each against the clean mix at the time of
    its own direct path; `alone on average` is what one of them gives whose choice was luck.
    """
    takes = result["takes"][:number]
    best = max((take["restored"] for take in takes), key=lambda score: float(score["si_sdr"]))
    average = {key: float(np.mean([take["restored"][key] for take in takes])) for key in METRICS}
    single = {INPUT: takes[0]["input"], REFERENCE: takes[0]["restored"], BEST: best, AVERAGE: average}
    return single | result["fused"][str(number)]


def _interval(values: Sequence[float]) -> dict[str, float]:
    low, high = mean_interval(values)
    return {"mean": float(np.mean(values)), "low": low, "high": high}


def figures(results: Sequence[Row], number: int) -> dict[str, dict[str, Any]]:
    """By method: means, means of the differences from the best single recording, and in how many it is worse."""
    by_performance = [scores(result, number) for result in results]
    found: dict[str, dict[str, Any]] = {}
    for method in by_performance[0]:
        if not all(method in one for one in by_performance):
            continue  # a baseline that some were measured without
        values = {key: [one[method][key] for one in by_performance] for key in METRICS}
        gains, over_average = (
            {key: [one[method][key] - one[single][key] for one in by_performance] for key in METRICS}
            for single in (BEST, AVERAGE)
        )
        found[method] = {
            **{key: _interval(of_method) for key, of_method in values.items()},
            **{f"{key}_over_best": _interval(of_method) for key, of_method in gains.items()},
            **{f"{key}_over_average": _interval(of_method) for key, of_method in over_average.items()},
            "median_over_best": float(np.median(gains["si_sdr"])),
            "worse": float(np.mean(np.array(gains["si_sdr"]) < -WORSE_DB)),
            "worst": float(min(gains["si_sdr"])),
        }
    return found


def summarise(
    results: Sequence[Row], numbers: Sequence[int], failed: int, manifest: str, model: str
) -> dict[str, Any]:
    """Figures by number of recordings, kind of venue and condition.

    Args:
        results: Of the performances that did not fail, of which there were `failed` more.
    """
    groups = {ALL: results}
    groups |= {kind: [row for row in results if row["rir_path"].startswith(kind)] for kind in KINDS}
    groups |= {name: [row for row in results if row["condition"] == name] for name in CONDITIONS}
    audio = {state: sum(row["audio"] == state for row in results) for state in STATES}
    return {
        "manifest": manifest,
        "model": Path(model).name,
        "performances": len(results),
        "failed": failed,
        "audio": audio,
        "groups": {
            name: {"performances": len(rows), "numbers": {str(number): figures(rows, number) for number in numbers}}
            for name, rows in groups.items()
            if rows
        },
    }


def markdown(summary: Mapping[str, Any]) -> str:
    """The report: a table for every number of recordings, and one by venue and condition."""
    audio = ", ".join(f"{number} {state}" for state, number in summary["audio"].items() if number)
    everything = summary["groups"][ALL]["numbers"]
    lines = [
        f"# Several recordings: {summary['manifest']}, {summary['performances']} performances",
        "",
        f"Rendered audio against the manifest's fingerprints: {audio}.",
        "",
        "`ours` is given all recordings; `mean`, `coherence` and `nara_wpe` make one of them, which is then restored"
        f" like a single one. `{BEST}`: the restoration with the highest SI-SDR among the same recordings, each"
        " against the clean mix at the time of its own direct path; choosing it takes the clean mix."
        f" `{AVERAGE}`: the mean of the same restorations. `oracle weights`: the sum of them that is nearest to the"
        " clean mix, which nobody has. Everything else is measured against the clean mix at the time of the"
        " reference's direct path. [95 % interval of the mean]. Where an SI-SDR is far below 0 dB, next to nothing of"
        " the clean mix is there, and what little there is spreads the decibels: hence the medians.",
    ]
    if summary["failed"]:
        lines += ["", f"{summary['failed']} performances failed and are left out."]
    for number, methods in everything.items():
        lines += ["", f"## {number} {'recording' if number == '1' else 'recordings'}", ""]
        lines += markdown_table(
            [
                "Method",
                "SI-SDR, dB",
                f"over {AVERAGE}",
                f"over {BEST}",
                "median",
                f"> {WORSE_DB} dB below it",
                "worst",
                "LSD, dB",
                "change",
            ],
            [_line(name, found) for name, found in methods.items()],
        )
    lines += ["", "## SI-SDR over the best single recording restored alone, dB", ""]
    header = [f"{name} ({group['performances']})" for name, group in summary["groups"].items()]
    rows = [
        [number, method]
        + [_cell(group["numbers"][number][method]["si_sdr_over_best"]) for group in summary["groups"].values()]
        for number, methods in everything.items()
        for method in methods
        if method not in (INPUT, BEST, AVERAGE)
    ]
    lines += markdown_table(["Recordings", "Method", *header], rows)
    return "\n".join(lines) + "\n"


def overview(summary: Mapping[str, Any]) -> list[list[str]]:
    """Number, method, SI-SDR over one alone on average and over the best one (with the median), and log-spectral
    distance over the best one, in dB, of all performances, for the card."""
    return [
        [
            number,
            method,
            _cell(found["si_sdr_over_average"]),
            f"{_cell(found['si_sdr_over_best'])}, median {found['median_over_best']:+.2f}",
            _cell(found["lsd_over_best"]),
        ]
        for number, methods in summary["groups"][ALL]["numbers"].items()
        for method, found in methods.items()
        if number != "1" and method not in (INPUT, BEST, AVERAGE)
    ]


def _cell(found: Mapping[str, float]) -> str:
    return f"{found['mean']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


def _line(name: str, found: Mapping[str, Any]) -> list[str]:
    if name == BEST:
        over_average = _cell(found["si_sdr_over_average"])
        return [
            name,
            f"{found['si_sdr']['mean']:.2f}",
            over_average,
            *4 * ["-"],
            f"{found['lsd']['mean']:.2f}",
            "-",
        ]
    return [
        name,
        f"{found['si_sdr']['mean']:.2f}",
        _cell(found["si_sdr_over_average"]),
        _cell(found["si_sdr_over_best"]),
        f"{found['median_over_best']:+.2f}",
        f"{100 * found['worse']:.0f} %",
        f"{found['worst']:+.2f}",
        f"{found['lsd']['mean']:.2f}",
        _cell(found["lsd_over_best"]),
    ]


def write_report(folder: Path, summary: Mapping[str, Any]) -> None:
    """`summary.json`, `report.md` and `recordings.png`, in `folder`."""
    write_json(folder / "summary.json", summary)
    temporary = folder / ".report.md.part"
    temporary.write_text(markdown(summary), encoding="utf-8")
    os.replace(temporary, folder / "report.md")
    plot(folder / PLOT, summary["groups"][ALL]["numbers"])


def plot(path: Path, numbers: Mapping[str, Mapping[str, Any]]) -> None:
    """What fusing gains over the single recordings, against the number of recordings."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = [name for name in next(iter(numbers.values())) if name not in (INPUT, BEST, AVERAGE)]
    shown = (
        ("si_sdr_over_average", "SI-SDR over one recording restored alone, on average, dB"),
        ("si_sdr_over_best", "SI-SDR over the best of them, dB"),
        ("lsd_over_best", "Log-spectral distance over the best of them, dB"),
    )
    figure, panels = pyplot.subplots(1, len(shown), figsize=(15, 4), layout="constrained")
    for axes, (key, title) in zip(panels, shown, strict=True):
        for place, method in enumerate(methods):
            found = [by_method[method][key] for by_method in numbers.values()]
            means = np.array([one["mean"] for one in found])
            errors = [[one["mean"] - one["low"] for one in found], [one["high"] - one["mean"] for one in found]]
            # Side by side, so that the intervals can be told apart.
            at = np.array([int(number) for number in numbers]) + 0.04 * (place - (len(methods) - 1) / 2)
            axes.errorbar(at, means, yerr=np.array(errors), marker="o", capsize=3, linewidth=1.2, label=method)
        axes.axhline(0.0, color="black", linewidth=0.8)
        axes.set_xticks([int(number) for number in numbers])
        axes.set_xlabel("recordings")
        axes.set_title(title, fontsize=10)
    panels[0].legend(fontsize=8)
    save_figure(figure, path)
    pyplot.close(figure)
