"""What a listening study found: means with intervals, tests, preferences, without unreliable listeners."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from spaces_app.ratings import Preference, Rating
from spaces_app.study import REFERENCE

LEAST_SCORE, MOST_MISSES = 90, 0.15  # BS.1534-3, 4.1.2: post-screening by the hidden reference
ALL = "all"


def screened(ratings: Sequence[Rating]) -> tuple[list[Rating], dict[str, float]]:
    """Ratings of the reliable listeners, and what share of the hidden references each excluded one missed.

    A listener is excluded who rates the hidden reference below 90 in more than 15 % of the items.
    """
    missed: dict[str, list[bool]] = defaultdict(list)
    for rating in ratings:
        if rating.condition == REFERENCE:
            missed[rating.code].append(rating.score < LEAST_SCORE)
    shares = {code: float(np.mean(flags)) for code, flags in missed.items()}
    excluded = {code: share for code, share in shares.items() if share > MOST_MISSES}
    return [rating for rating in ratings if rating.code not in excluded], excluded


def mean_with_interval(values: Sequence[float], confidence: float = 0.95) -> dict[str, float]:
    """Mean and Student's t interval; without an interval's ends for a single value."""
    sample = np.asarray(values, dtype=np.float64)
    result = {"count": float(len(sample)), "mean": float(sample.mean())}
    if len(sample) > 1:
        half = stats.t.ppf(0.5 + confidence / 2, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample))
        result |= {"low": result["mean"] - float(half), "high": result["mean"] + float(half)}
    return result


def by_condition(ratings: Sequence[Rating], genres: Mapping[str, str]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and 95 % interval by genre (`all` first) and condition, over all ratings of listeners and excerpts."""
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for rating in ratings:
        for group in (ALL, genres.get(rating.excerpt, "unknown")):
            groups[group][rating.condition].append(rating.score)
    return {
        group: {condition: mean_with_interval(scores) for condition, scores in sorted(found.items())}
        for group, found in groups.items()
    }


def comparisons(ratings: Sequence[Rating]) -> list[dict[str, Any]]:
    """Wilcoxon's signed-rank test of every two conditions over the listeners' means, corrected after Holm.

    Over listeners, not over single ratings: those of one listener depend on each other.
    """
    means: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for rating in ratings:
        means[rating.condition][rating.code].append(rating.score)
    tests = []
    for first, second in combinations(sorted(means), 2):
        both = sorted(means[first].keys() & means[second].keys())
        difference = np.array([np.mean(means[first][code]) - np.mean(means[second][code]) for code in both])
        if len(both) < 2:
            continue
        p = float(stats.wilcoxon(difference).pvalue) if difference.any() else 1.0
        pair: dict[str, Any] = {"first": first, "second": second, "listeners": len(both)}
        tests.append({**pair, "difference": float(difference.mean()), "p": p})
    for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = p
    return tests


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number: Holm, "A simple sequentially rejective multiple test procedure" (1979)."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return [float(p) for p in corrected]


def preference_share(preferences: Sequence[Preference], system: str) -> dict[str, float] | None:
    """Share of the answers that prefer a system, without ties, and Clopper and Pearson's exact interval (1934)."""
    decided = [preference for preference in preferences if not preference.tie]
    if not decided:
        return None
    wins = sum(preference.preferred == system for preference in decided)
    test = stats.binomtest(wins, len(decided))
    interval = test.proportion_ci(method="exact")
    return {
        "share": wins / len(decided),
        "low": float(interval.low),
        "high": float(interval.high),
        "p": float(test.pvalue),
        "decided": float(len(decided)),
        "ties": float(len(preferences) - len(decided)),
    }


def analyze(
    ratings: Sequence[Rating], preferences: Sequence[Preference], genres: Mapping[str, str], system: str | None
) -> dict[str, Any]:
    """The whole analysis; `system` is the one whose preference share is given."""
    kept, excluded = screened(ratings)
    listeners = {rating.code for rating in kept}
    considered = [preference for preference in preferences if preference.code not in excluded]
    return {
        "listeners": len(listeners),
        "excluded": excluded,
        "scores": by_condition(kept, genres),
        "tests": comparisons(kept),
        "preference": None if system is None else {"system": system, "result": preference_share(considered, system)},
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The analysis as tables."""
    lines = [f"{report['listeners']} listeners; {len(report['excluded'])} left out, who missed the hidden reference."]
    for group, found in report["scores"].items():
        lines += ["", f"## {group}", "", "| Condition | Mean [95 %] | Ratings |", "| --- | --- | --- |"]
        for condition, figures in sorted(found.items(), key=lambda item: -item[1]["mean"]):
            interval = f" [{figures['low']:.1f}, {figures['high']:.1f}]" if "low" in figures else ""
            lines.append(f"| {condition} | {figures['mean']:.1f}{interval} | {figures['count']:.0f} |")
    if report["tests"]:
        lines += ["", "## Differences (Wilcoxon over listeners, Holm)", ""]
        lines += ["| First | Second | Difference | p | p, corrected |", "| --- | --- | --- | --- | --- |"]
        for test in report["tests"]:
            numbers = f"{test['difference']:+.1f} | {test['p']:.2g} | {test['p_holm']:.2g}"
            lines.append(f"| {test['first']} | {test['second']} | {numbers} |")
    if report["preference"] and report["preference"]["result"]:
        found = report["preference"]["result"]
        lines += ["", "## Preference", ""]
        lines.append(
            f"{report['preference']['system']} is preferred in {100 * found['share']:.0f} %"
            f" [{100 * found['low']:.0f}, {100 * found['high']:.0f}] of {found['decided']:.0f} answers (p ="
            f" {found['p']:.2g}), {found['ties']:.0f} ties left out."
        )
    return "\n".join(lines) + "\n"


def plot(path: Path, report: Mapping[str, Any]) -> None:
    """PNG: means and intervals of every condition, a colour per genre."""
    figure = Figure(figsize=(9, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    conditions = sorted(report["scores"][ALL], key=lambda name: -report["scores"][ALL][name]["mean"])
    groups = list(report["scores"])
    for number, group in enumerate(groups):
        found = report["scores"][group]
        places = np.arange(len(conditions)) + 0.6 * (number / max(len(groups) - 1, 1) - 0.5) * (len(groups) > 1)
        shown = [(x, found[name]) for x, name in zip(places, conditions, strict=True) if name in found]
        means = [figures["mean"] for _, figures in shown]
        reach = [
            [figures["mean"] - figures.get("low", figures["mean"]) for _, figures in shown],
            [figures.get("high", figures["mean"]) - figures["mean"] for _, figures in shown],
        ]
        axes.errorbar([x for x, _ in shown], means, yerr=reach, fmt="o", capsize=3, label=group)
    axes.set_xticks(range(len(conditions)), conditions)
    axes.set_ylim(0, 100)
    axes.set_ylabel("score, mean and 95 % interval")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, format="png")
    part.replace(path)
