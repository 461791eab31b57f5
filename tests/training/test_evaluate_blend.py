"""The measures of a blend on noise, whose spectrum is known, and on results that are known to be right or wrong."""

import numpy as np
import pytest

from training.evaluate import Row
from training.evaluate_blend import LIMITS_HZ, band_levels_db, compare, cut_off, evaluate, summarise, tabulate
from training.sources import Roots
from training.systems import System

RATE = 44_100
NOISE = 0.1 * np.random.default_rng(0).standard_normal((2, 6 * RATE)).astype(np.float32)


def test_white_noise_has_its_share_in_every_band() -> None:
    """A power of 0.01 over half the sampling rate, of which a band has its width."""
    levels = band_levels_db(NOISE, RATE, np.array([1000.0, 2000.0, 6000.0]))
    assert levels == pytest.approx(10 * np.log10(0.01 * np.array([1000, 4000]) / (RATE / 2)), abs=0.1)


@pytest.mark.parametrize("limit_hz", LIMITS_HZ)
def test_what_is_cut_off_is_gone_and_the_rest_is_untouched(limit_hz: float) -> None:
    cut = cut_off(NOISE, RATE, limit_hz)
    tone = np.sin(2 * np.pi * 0.9 * limit_hz / RATE * np.arange(RATE))[None].astype(np.float32)
    np.testing.assert_allclose(cut_off(tone, RATE, limit_hz)[:, 2000:-2000], tone[:, 2000:-2000], atol=1e-4)
    above = np.array([1.05 * limit_hz, 16000.0])
    assert band_levels_db(cut, RATE, above)[0] < band_levels_db(NOISE, RATE, above)[0] - 80


@pytest.mark.parametrize("limit_hz", LIMITS_HZ)
def test_levels_of_a_blend(limit_hz: float) -> None:
    """1 % more everywhere is 0.086 dB; the faithful result has nothing above the limit."""
    figures = compare(1.01 * NOISE, cut_off(NOISE, RATE, limit_hz), NOISE, RATE, limit_hz)
    assert figures["above_db"] == pytest.approx(20 * np.log10(1.01), abs=1e-3)
    assert figures["faithful_above_db"] < -80
    assert figures["below_db"] == pytest.approx(20 * np.log10(1.01), abs=2e-3)
    assert figures["below_largest_db"] == pytest.approx(20 * np.log10(1.01), abs=5e-3)


def test_highs_that_the_music_does_not_have_are_not_asked_for() -> None:
    dull = cut_off(NOISE, RATE, 7000.0)
    figures = compare(dull, dull, dull, RATE, 8000.0)
    assert figures["above_db"] is figures["faithful_above_db"] is None
    assert figures["below_db"] == 0.0


def test_systems_by_piece_and_limit(corpus: Roots) -> None:
    row = {
        "music_stems": [],
        "music_offset_s": 1.0,
        "lead_in_s": 0.5,
        "seconds": 2.0,
        "sample_rate": RATE,
        "channels": 2,
    }
    rows: list[Row] = [{**row, "music_path": f"train{number}.flac"} for number in (0, 1)]
    perfect = System("perfect", lambda recording, clean, rate: clean, "1")
    idle = System("idle", lambda recording, clean, rate: recording, "1")
    results = evaluate(rows, corpus, perfect, idle, None)
    assert [(result["music_path"], result["limit_hz"]) for result in results] == [
        (f"train{number}.flac", limit) for number in (0, 1) for limit in LIMITS_HZ
    ]
    summary = summarise(results)
    assert [row["pieces"] for row in summary] == [2, 2]
    assert all(row["above_db"] == row["above_distance_db"] == 0.0 for row in summary)
    assert len(tabulate(summary).splitlines()) == 4
    assert len(evaluate(rows, corpus, perfect, idle, 1)) == 2
