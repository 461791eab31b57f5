"""The analysis of answers whose outcome is known."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from scipy import stats

from spaces_app.analysis import analyze, by_condition, comparisons, holm, markdown, plot, preference_share, screened
from spaces_app.listening_test import Preference, Rating

EXCERPTS = [f"e{number}" for number in range(20)]
GENRES = {excerpt: "rock" if number < 10 else "folk" for number, excerpt in enumerate(EXCERPTS)}


def listener(code: str, seed: int, restored: float, recording: float, hidden: int = 100) -> list[Rating]:
    rng = np.random.default_rng(seed)
    ratings = []
    for excerpt in EXCERPTS:
        for condition, mean in (("restored", restored), ("recording", recording), ("anchor", 20)):
            ratings.append(Rating(code, excerpt, condition, int(np.clip(rng.normal(mean, 5), 0, 100))))
        ratings.append(Rating(code, excerpt, "reference", hidden))
    return ratings


def frame(rows: list[Rating] | list[Preference]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=type(rows[0])._fields)


def test_listeners_who_miss_the_hidden_reference_are_left_out() -> None:
    """More than 15 % of the items below 90: 4 of 20 are, 3 of 20 are not."""
    careful, careless = listener("careful", 0, 60, 40), listener("careless", 1, 60, 40)
    for ratings, misses in ((careful, 3), (careless, 4)):
        hidden = [index for index, rating in enumerate(ratings) if rating.condition == "reference"]
        for index in hidden[:misses]:
            ratings[index] = Rating(ratings[index].code, ratings[index].excerpt, "reference", 89)
    kept, excluded = screened(frame(careful + careless))
    assert set(kept.code) == {"careful"} and excluded == {"careless": 0.2}


def test_means_and_intervals_by_genre() -> None:
    """Against the t interval by hand."""
    ratings = [r for seed in range(15) for r in listener(f"L{seed}", seed, 60, 40)]
    found = by_condition(frame(ratings), GENRES).set_index(["genre", "condition"])
    assert list(found.index.unique("genre")) == ["all", "rock", "folk"]
    scores = np.array([r.score for r in ratings if r.condition == "restored" and GENRES[r.excerpt] == "folk"])
    half = stats.t.ppf(0.975, 149) * scores.std(ddof=1) / np.sqrt(150)
    assert list(found.loc["folk", "restored"]) == pytest.approx(
        [150, scores.mean(), scores.mean() - half, scores.mean() + half]
    )
    assert list(found.loc["all", "reference"]) == [300, 100, 100, 100]
    (single,) = by_condition(frame(ratings[:1]), {}).query("genre == 'all'").itertuples()
    assert single.mean == ratings[0].score and np.isnan(single.low)


def test_wilcoxon_over_listeners() -> None:
    """15 listeners who all agree: the exact two-sided p is 2 / 2^15; no difference at all has a p of 1."""
    ratings = [r for seed in range(15) for r in listener(f"L{seed}", seed, 60, 40)]
    tests = {(test["first"], test["second"]): test for test in comparisons(frame(ratings))}
    test = tests["recording", "restored"]
    assert test["listeners"] == 15 and test["p"] == pytest.approx(2 / 2**15)
    assert test["difference"] == pytest.approx(-20, abs=1.0)
    assert test["p_holm"] == pytest.approx(6 * 2 / 2**15)  # six pairs, all with this p
    same = [Rating(r.code, r.excerpt, "copy", r.score) for r in ratings if r.condition == "restored"]
    tests = {(test["first"], test["second"]): test for test in comparisons(frame(ratings + same))}
    assert tests["copy", "restored"]["p"] == tests["copy", "restored"]["p_holm"] == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_preference_share_has_the_exact_interval() -> None:
    """8 of 10: Clopper and Pearson's interval by the quantiles of the beta distribution; p is 2 * 56 / 1024."""
    answers = [Preference("a", f"e{n}", *(("new", "old") if n < 8 else ("old", "new")), 0) for n in range(10)]
    answers.append(Preference("a", "e10", "new", "old", 1))
    found = preference_share(frame(answers), "new")
    assert found is not None and (found["share"], found["decided"], found["ties"]) == (0.8, 10, 1)
    assert found["low"] == pytest.approx(stats.beta.ppf(0.025, 8, 3))
    assert found["high"] == pytest.approx(stats.beta.ppf(0.975, 9, 2))
    assert found["p"] == pytest.approx(2 * 56 / 1024)
    assert preference_share(frame(answers[-1:]), "new") is None


def test_the_report_reads_and_draws(tmp_path: Path) -> None:
    ratings = [r for seed in range(5) for r in listener(f"L{seed}", seed, 60, 40)]
    ratings += listener("deaf", 9, 60, 40, hidden=30)
    answers = [Preference(f"L{seed}", "e0", "restored", "recording", 0) for seed in range(5)]
    answers.append(Preference("deaf", "e0", "recording", "restored", 0))
    report = analyze(frame(ratings), frame(answers), GENRES, "restored")
    assert report["listeners"] == 5 and report["excluded"] == {"deaf": 1.0}
    assert report["preference"]["result"]["share"] == 1.0  # the deaf one's answer does not count
    text = markdown(report)
    assert re.search(r"\| reference +\| +100 \| +100 +\| +100 +\| +100 +\|", text)
    assert text.index("| restored ") < text.index("| recording ") < text.index("| anchor ")
    plot(tmp_path / "plot.png", report)
    picture = imread(tmp_path / "plot.png")
    assert picture.shape == (540, 1080, 4) and np.ptp(picture) > 0.5
