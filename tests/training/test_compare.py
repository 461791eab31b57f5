import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from training.compare import main, paired, read_clips


def write(folder: Path, system: str, values: np.ndarray, manifest: str = "m") -> None:
    clips = folder / "clips" / system
    clips.mkdir(parents=True)
    for clip, value in enumerate(values):
        row = {"row_id": clip, "condition": ("crowd", "room")[clip % 2], "si_sdr": value}
        row["identity"] = {"row": f"{manifest}{clip}"}
        (clips / f"{clip:05d}.json").write_text(json.dumps(row))


def test_the_difference_of_pairs_is_seen_where_their_spread_hides_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    before = 20 * rng.standard_normal(60)
    change = 0.5 + 0.5 * rng.standard_normal(60)
    write(tmp_path / "a", "faithful", before)
    write(tmp_path / "b", "faithful", before + change)
    rows = paired(read_clips(tmp_path / "a", "faithful"), read_clips(tmp_path / "b", "faithful"))
    everything = next(row for row in rows if row["condition"] == "all")
    assert everything["clips"] == 60
    assert everything["mean"] == pytest.approx(change.mean())
    half = norm.ppf(0.975) * change.std() / np.sqrt(60)
    assert everything["high"] - everything["low"] == pytest.approx(2 * half, rel=0.1)
    assert everything["larger"] == np.mean(change > 0)
    # The signed-rank statistic's normal approximation, by hand.
    ranks = np.argsort(np.argsort(np.abs(change))) + 1
    statistic, mean, variance = ranks[change > 0].sum(), 60 * 61 / 4, 60 * 61 * 121 / 24
    expected = 2 * norm.sf(abs(statistic - mean) / np.sqrt(variance))
    assert everything["p"] == pytest.approx(expected, rel=0.5) and everything["p"] < 1e-6
    crowd = next(row for row in rows if row["condition"] == "crowd")
    assert crowd["clips"] == 30 and crowd["mean"] == pytest.approx(change[::2].mean())


def test_equal_results_have_no_p(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", "faithful", np.arange(8.0))
    assert main([str(tmp_path / "a"), str(tmp_path / "a"), "--out", str(tmp_path / "table.md")]) == 0
    assert "| all | 8 | +0.000 [+0.000, +0.000] | 0 % | - |" in capsys.readouterr().out
    assert "a/faithful against a/faithful" in (tmp_path / "table.md").read_text()


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", "faithful", np.arange(8.0))
    write(tmp_path / "b", "faithful", np.arange(8.0), manifest="other")
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert main([str(tmp_path / "a"), str(tmp_path / "a"), "--system", "faithful", "nosuch"]) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 2 and "different manifests" in errors[0] and "no results of nosuch" in errors[1]
