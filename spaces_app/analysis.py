"""What a listening study found: means with intervals, tests, preferences, without unreliable listeners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from pipeline_aud2studio.files import atomic_path
from spaces_app.study import REFERENCE

LEAST_SCORE, MOST_MISSES = 90, 0.15  # BS.1534-3, 4.1.2: post-screening by the hidden reference
ALL = "all"
SCORES = ["genre", "condition", "count", "mean", "low", "high"]


def screened(ratings: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, float]]:
    """Keeps the ratings of reliable listeners; says what share of the hidden references each excluded one missed.

    A listener is excluded who rates the hidden reference below 90 in more than 15 % of the items.

    Args:
        ratings: Columns `code`, `excerpt`, `condition`, `score`, here and below.
    """
    hidden = ratings[ratings.condition == REFERENCE]
    shares = (hidden.score < LEAST_SCORE).groupby(hidden.code).mean()
    excluded = shares[shares > MOST_MISSES]
    return ratings[~ratings.code.isin(excluded.index)], excluded.to_dict()


def by_condition(ratings: pd.DataFrame, genres: Mapping[str, str]) -> pd.DataFrame:
    """Averages all ratings by genre (`all` first) and condition, with Student's 95 % interval (NaN of one rating)."""
    own = ratings.assign(genre=ratings.excerpt.map(lambda excerpt: genres.get(excerpt, "unknown")))
    groups = pd.concat([ratings.assign(genre=ALL), own]).groupby(["genre", "condition"], sort=False).score
    table = groups.agg(["count", "mean", "sem"]).reset_index()
    half = stats.t.ppf(0.975, table["count"] - 1) * table.pop("sem")
    return table.assign(low=table["mean"] - half, high=table["mean"] + half)


def comparisons(ratings: pd.DataFrame) -> list[dict[str, Any]]:
    """Tests every two conditions over the listeners' means (Wilcoxon's signed ranks), corrected after Holm.

    Over listeners, not over single ratings: those of one listener depend on each other.
    """
    means = ratings.pivot_table(index="code", columns="condition", values="score")
    tests = []
    for first, second in combinations(sorted(means), 2):
        difference = (means[first] - means[second]).dropna()
        if len(difference) < 2:
            continue
        p = float(stats.wilcoxon(difference).pvalue) if difference.any() else 1.0
        pair: dict[str, Any] = {"first": first, "second": second, "listeners": len(difference)}
        tests.append({**pair, "difference": float(difference.mean()), "p": p})
    for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = p
    return tests


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p values for their number: Holm, "A simple sequentially rejective multiple test procedure" (1979)."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return [float(p) for p in corrected]


def preference_share(preferences: pd.DataFrame, system: str) -> dict[str, float] | None:
    """Counts how many answers prefer a system, without ties; Clopper and Pearson's exact interval (1934)."""
    decided = preferences[preferences.tie == 0]
    if decided.empty:
        return None
    wins = int((decided.preferred == system).sum())
    test = stats.binomtest(wins, len(decided))
    interval = test.proportion_ci(method="exact")
    return {
        "share": wins / len(decided),
        "low": float(interval.low),
        "high": float(interval.high),
        "p": float(test.pvalue),
        "decided": len(decided),
        "ties": len(preferences) - len(decided),
    }


def analyze(
    ratings: pd.DataFrame, preferences: pd.DataFrame, genres: Mapping[str, str], system: str | None
) -> dict[str, Any]:
    """Does the whole analysis; `system` is the one whose preference share is given."""
    kept, excluded = screened(ratings)
    considered = preferences[~preferences.code.isin(excluded)]
    return {
        "listeners": kept.code.nunique(),
        "excluded": excluded,
        "scores": by_condition(kept, genres).to_dict("records"),
        "tests": comparisons(kept),
        "preference": None if system is None else {"system": system, "result": preference_share(considered, system)},
    }


def markdown(report: Mapping[str, Any]) -> str:
    """Writes the analysis as tables."""
    parts = [f"{report['listeners']} listeners; {len(report['excluded'])} left out, who missed the hidden reference."]
    for genre, rows in pd.DataFrame(report["scores"], columns=SCORES).groupby("genre", sort=False):
        table = rows.drop(columns="genre").sort_values("mean", ascending=False).round(1)
        parts += [f"## {genre}", table.to_markdown(index=False)]
    if report["tests"]:
        parts += ["## Differences (Wilcoxon over listeners, Holm)"]
        parts += [pd.DataFrame(report["tests"]).to_markdown(index=False, floatfmt=".2g")]
    if report["preference"] and report["preference"]["result"]:
        found = report["preference"]["result"]
        parts.append("## Preference")
        parts.append(
            f"{report['preference']['system']} is preferred in {100 * found['share']:.0f} %"
            f" [{100 * found['low']:.0f}, {100 * found['high']:.0f}] of {found['decided']} answers (p ="
            f" {found['p']:.2g}), {found['ties']} ties left out."
        )
    return "\n\n".join(parts) + "\n"


def plot(path: Path, report: Mapping[str, Any]) -> None:
    """Draws means and intervals of every condition as PNG, a colour per genre."""
    figure = Figure(figsize=(9, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    scores = pd.DataFrame(report["scores"])
    of_all = scores[scores.genre == ALL].sort_values("mean", ascending=False)
    conditions = {condition: place for place, condition in enumerate(of_all.condition)}
    genres = list(scores.groupby("genre", sort=False))
    for number, (genre, rows) in enumerate(genres):
        places = rows.condition.map(conditions) + 0.6 * ((number + 0.5) / len(genres) - 0.5)
        axes.errorbar(places, rows["mean"], yerr=rows.high - rows["mean"], fmt="o", capsize=3, label=genre)
    axes.set_xticks(range(len(conditions)), [*conditions])
    axes.set_ylim(0, 100)
    axes.set_ylabel("score, mean and 95 % interval")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
