"""The benchmark's results in a form to read: statistics as JSON, tables as Markdown, plots as PNG."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.artifacts import ARTIFACTS, INDICATORS, rates
from training.benchmark_audio import STATES
from training.degrade import CONDITIONS
from training.metrics import mean_interval

Row = Mapping[str, Any]
ALL = "all"
NUM_WORST = 10
GENRES = Path(__file__).parent / "benchmark" / "genres.json"  # by collection


@dataclass(frozen=True)
class Column:
    """A figure of the report: its key in the results, its title with the unit, and what is worth knowing about it."""

    key: str
    title: str
    digits: int
    note: str


COLUMNS = (
    Column("si_sdr", "SI-SDR, dB", 2, "against the clean mix; higher is better"),
    Column("si_sdr_improvement", "SI-SDR improvement, dB", 2, "over the input, against the clean mix"),
    Column(
        "si_sdr_early_improvement",
        "SI-SDR improvement, early, dB",
        2,
        "over the input, against the direct sound and the first 50 ms of its reflections",
    ),
    Column("mr_stft", "MR-STFT", 3, "multi-resolution STFT distance, level-matched; lower is better"),
    Column("lsd", "LSD, dB", 2, "log-spectral distance, level-matched; lower is better"),
    Column("sdr", "SDR, dB", 2, "level-matched, against the clean mix; higher is better"),
    Column(
        "late_tail_db", "Late tail, dB", 1, "what is left of the known room, late over early sound; lower is drier"
    ),
    Column("visqol", "ViSQOL", 2, "audio mode, MOS-LQO 1 to 4.7, made for coded music; higher is better"),
    Column("zimtohrli", "Zimtohrli", 3, "psychoacoustic distance, made for small differences; lower is better"),
    Column("srmr", "SRMR", 2, "made for speech: drums and distortion count as reverberation; higher is drier"),
    Column("pesq", "PESQ", 2, "wide band, only where somebody speaks in the clean music; higher is better"),
    Column("level_change_lu", "Level change, LU", 2, "loudness of the result against the recording's"),
    Column("real_time_factor", "Real-time factor", 3, "seconds of work per second of audio; lower is faster"),
    Column("cpu_factor", "Processor time", 3, "seconds of all cores per second of audio"),
    Column("peak_memory_mb", "Peak memory, MB", 0, "of the process during the call, libraries and weights included"),
)
PLOTTED = ("si_sdr_improvement", "si_sdr_early_improvement", "mr_stft", "lsd")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def summarise(
    results: Sequence[Row], broken: Mapping[str, str], manifest: str, threads: int, cores: int | None
) -> dict[str, Any]:
    """Mean, median and 95 % interval of every figure, per system and condition, genre and venue.

    Args:
        results: one per clip and system.
        broken: systems that could not be loaded, and why.
    """
    clips = {result["row_id"]: result["audio"] for result in results}
    audio = {state: list(clips.values()).count(state) for state in STATES}
    genres: dict[str, str] = json.loads(GENRES.read_text(encoding="utf-8"))
    systems: dict[str, Any] = {}
    for name in dict.fromkeys(result["system"] for result in results):
        of_system = [result for result in results if result["system"] == name]
        done = [result for result in of_system if "error" not in result]
        improvements = [result["si_sdr_improvement"] for result in done]
        worst = sorted(done, key=lambda result: float(result["si_sdr_improvement"]))[:NUM_WORST]
        systems[name] = {
            "failed": len(of_system) - len(done),
            "better_than_input": float(np.mean(np.array(improvements) > 0)) if done else None,
            "figures": {
                condition: _figures([row for row in done if condition in (ALL, row["condition"])])
                for condition in (ALL, *CONDITIONS)
            },
            "artifacts": rates(done),
            "genres": _by(done, lambda row: genres.get(str(row["music_path"]).split("/")[0], "unknown")),
            "venues": _by(done, lambda row: "simulated" if row["venue"].startswith("simulated") else row["venue"]),
            "worst": [
                {
                    key: row[key]
                    for key in ("row_id", "condition", "venue", "music_path", "si_sdr_improvement", "si_sdr")
                }
                for row in worst
            ],
        }
    return {
        "manifest": manifest,
        "clips": len(clips),
        "audio": audio,
        "threads": threads,
        "cores": cores,
        "broken": dict(broken),
        "systems": systems,
    }


def _by(rows: Sequence[Row], group: Callable[[Row], str]) -> dict[str, Any]:
    names = sorted({group(row) for row in rows})
    return {name: _figures([row for row in rows if group(row) == name]) for name in names}


def _figures(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    figures = {}
    for column in COLUMNS:
        values = [float(row[column.key]) for row in rows if column.key in row]
        if values:
            low, high = mean_interval(values)
            mean, median = float(np.mean(values)), float(np.median(values))
            figures[column.key] = {"mean": mean, "median": median, "low": low, "high": high}
    return figures


def write_report(folder: Path, summary: Mapping[str, Any], results: Sequence[Row]) -> None:
    """`summary.json`, `report.md` and the plots, in `folder`."""
    write_json(folder / "summary.json", summary)
    temporary = folder / ".report.md.part"
    temporary.write_text(markdown(summary), encoding="utf-8")
    os.replace(temporary, folder / "report.md")
    _plot(folder, summary, results)


def artifact_table(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """How often artefacts occur, a row per indicator and a column per system; None if that was not measured."""
    systems = {name: found for name, system in summary["systems"].items() if (found := system.get("artifacts"))}
    if not systems:
        return None
    rows = [
        [ARTIFACTS[indicator.artifact].title, f"{indicator.text}; above {indicator.limit:.2g}"]
        + [_rate(found.get(indicator.key), indicator.digits) for found in systems.values()]
        for indicator in INDICATORS
        if any(indicator.key in found for found in systems.values())
    ]
    note = "Share of clips in which an indicator is above its limit, [95 % interval], and the indicator's mean."
    return {"title": "Artefacts", "note": note, "header": ["Artefact", "Indicator", *systems], "rows": rows}


def _rate(found: Mapping[str, float] | None, digits: int) -> str:
    if found is None:
        return "-"
    rate, low, high = (f"{100 * found[key]:.0f}" for key in ("rate", "low", "high"))
    return f"{rate} % [{low}, {high}], {found['mean']:+.{digits}f}"


def markdown(summary: Mapping[str, Any]) -> str:
    """The report as Markdown: an overview, a table per figure, the worst clips, and what is to be known about it."""
    audio = ", ".join(f"{number} {state}" for state, number in summary["audio"].items() if number)
    lines = [
        f"# Benchmark: {summary['manifest']}, {summary['clips']} clips",
        "",
        f"Rendered audio against the manifest's fingerprints: {audio}.",
        f"{summary['threads']} threads on {summary['cores']} cores.",
        "",
        *markdown_table(
            ["System", "SI-SDR, dB", "improvement [95 %]", "early", "better than input", "MR-STFT", "LSD, dB", "RTF"],
            [_overview(name, system) for name, system in summary["systems"].items()],
        ),
    ]
    artifacts = artifact_table(summary)
    for table in (*frechet_tables(summary.get("frechet", {})), *([artifacts] if artifacts else [])):
        lines += ["", f"## {table['title']}", "", table["note"], "", *markdown_table(table["header"], table["rows"])]
    measured = {key for system in summary["systems"].values() for key in system["figures"][ALL]}
    for column in COLUMNS:
        if column.key not in measured:
            continue
        lines += ["", f"## {column.title}", "", f"{column.note}. Mean, (median), [95 % interval of the mean].", ""]
        cells = [
            [name] + [_cell(system["figures"][condition], column) for condition in (*CONDITIONS, ALL)]
            for name, system in summary["systems"].items()
        ]
        lines += markdown_table(["System", *CONDITIONS, ALL], cells)
    lines += ["", f"## The {NUM_WORST} clips with the least improvement", ""]
    for name, system in summary["systems"].items():
        if name == "input":
            continue
        lines += [f"{name}:", ""]
        cells = [
            [
                str(clip["row_id"]),
                clip["condition"],
                clip["venue"],
                clip["music_path"],
                f"{clip['si_sdr']:.2f}",
                f"{clip['si_sdr_improvement']:+.2f}",
            ]
            for clip in system["worst"]
        ]
        lines += [*markdown_table(["Row", "Condition", "Venue", "Music", "SI-SDR, dB", "improvement"], cells), ""]
    trouble = [f"{name}: not run, {reason}" for name, reason in summary["broken"].items()]
    trouble += [f"{name}: failed on {it['failed']} clips" for name, it in summary["systems"].items() if it["failed"]]
    if trouble:
        lines += ["## Failures", "", *(f"- {line}" for line in trouble), ""]
    return "\n".join(lines)


def frechet_tables(distances: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A table per embedding, with all that a Fréchet distance means nothing without: title, note, header, rows."""
    tables = []
    for name, report in distances.items():
        note = (
            f"{report['title']}. Reference: {report['reference']}, {report['reference_clips']} clips,"
            f" {report['reference_windows']} windows. All clips at -14 LUFS. `clean` is the floor, `input` the"
            " ceiling; closed: the share of the gap between them. [95 % interval over clips]."
        )
        rows = []
        for system, found in report["systems"].items():
            value = f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
            closed = "-"
            if "closed" in found:
                share, low, high = (100 * found[key] for key in ("closed", "closed_low", "closed_high"))
                closed = f"{share:.0f} % [{low:.0f}, {high:.0f}]"
            rows.append([system, value, closed, f"{found['clips']:.0f}", f"{found['windows']:.0f}"])
        header = ["System", "Distance", "Closed", "Clips", "Windows"]
        tables.append({"title": f"Fréchet distance, {name}", "note": note, "header": header, "rows": rows})
    return tables


def _overview(name: str, system: Mapping[str, Any]) -> list[str]:
    figures = system["figures"][ALL]
    if not figures:
        return [name, *["-"] * 7]
    improvement = figures["si_sdr_improvement"]
    return [
        name,
        f"{figures['si_sdr']['mean']:.2f}",
        f"{improvement['mean']:+.2f} [{improvement['low']:+.2f}, {improvement['high']:+.2f}]",
        f"{figures['si_sdr_early_improvement']['mean']:+.2f}",
        f"{100 * system['better_than_input']:.0f} %",
        f"{figures['mr_stft']['mean']:.3f}",
        f"{figures['lsd']['mean']:.2f}",
        f"{figures['real_time_factor']['median']:.3f}",
    ]


def _cell(figures: Mapping[str, Mapping[str, float]], column: Column) -> str:
    if column.key not in figures:
        return "-"
    mean, median, low, high = (
        f"{figures[column.key][key]:.{column.digits}f}" for key in ("mean", "median", "low", "high")
    )
    return f"{mean} ({median}) [{low}, {high}]"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def _plot(folder: Path, summary: Mapping[str, Any], results: Sequence[Row]) -> None:
    """A bar chart per figure of PLOTTED, and every clip's SI-SDR before and after."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    systems = [name for name, system in summary["systems"].items() if system["figures"][ALL]]
    titles = {column.key: f"{column.title} ({column.note})" for column in COLUMNS}
    groups = (*CONDITIONS, ALL)
    for key in PLOTTED:
        figure, axes = pyplot.subplots(figsize=(10, 4.5), layout="constrained")
        width = 0.85 / max(len(systems), 1)
        for number, name in enumerate(systems):
            figures = [summary["systems"][name]["figures"][group].get(key) for group in groups]
            places = [place + number * width for place, found in enumerate(figures) if found]
            means = [found["mean"] for found in figures if found]
            errors = [
                [found["mean"] - found["low"] for found in figures if found],
                [found["high"] - found["mean"] for found in figures if found],
            ]
            axes.bar(places, means, width, yerr=errors, label=name, error_kw={"linewidth": 0.8})
        axes.set_xticks([place + 0.425 - width / 2 for place in range(len(groups))], groups)
        axes.axhline(0.0, color="black", linewidth=0.8)
        axes.set_title(titles[key], fontsize=10)
        axes.legend(fontsize=8, ncols=3)
        save_figure(figure, folder / f"{key}.png")
        pyplot.close(figure)

    figure, axes = pyplot.subplots(figsize=(6, 6), layout="constrained")
    for name in systems:
        done = [row for row in results if row["system"] == name and "error" not in row]
        before = [row["si_sdr"] - row["si_sdr_improvement"] for row in done]
        style = {"color": "black", "marker": "_"} if name == "input" else {"marker": "."}
        axes.scatter(before, [row["si_sdr"] for row in done], s=18, label=name, **style)
    axes.set_xlabel("SI-SDR of the recording, dB")
    axes.set_ylabel("SI-SDR of the result, dB")
    axes.legend(fontsize=8)
    save_figure(figure, folder / "clips.png")
    pyplot.close(figure)


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG, all or nothing."""
    temporary = path.with_name(f".{path.name}.part")
    figure.savefig(temporary, dpi=120, format="png")
    os.replace(temporary, path)
