"""The alignment benchmark's judgement: errors against known clocks, the table and the plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.data.material import SAMPLE_RATE, Material, Sound
from training.evaluation.alignment import Take, crowds_apart, record, score, tabulate


def take(start_s: float, drift_ppm: float, polarity: int = 1) -> Take:
    return Take(start_s, 100.0, drift_ppm, polarity, 10.0, 44100, {})


def estimate(offset_s: float, drift_ppm: float, accepted: bool = True) -> dict[str, Any]:
    segment = {"start_s": 0.0, "end_s": 100.0, "offset_s": offset_s, "drift_ppm": drift_ppm}
    return {"accepted": accepted, "confidence": 1.0, "polarity": -1, "processor_s": 2.0, "segments": [segment]}


def test_the_error_is_the_largest_over_the_shared_time() -> None:
    takes = [take(5.0, 0.0), take(25.0, 100.0, -1), take(25.0, 100.0)]
    right, wrong = score([estimate(20.0, 100.0), estimate(20.00005, 99.0)], takes)
    assert right["max_error_ms"] == pytest.approx(0.0, abs=1e-6) and right["polarity_right"]
    assert right["shared_s"] == pytest.approx(80.0)
    # 0.05 ms at first, and a millionth of 80 s more at last.
    assert wrong["max_error_ms"] == pytest.approx(0.13, abs=1e-4) and not wrong["polarity_right"]
    assert wrong["drift_error_ppm"] == pytest.approx(-1.0)


def test_the_table_counts_what_was_accepted() -> None:
    rows = score([estimate(0.0, 0.0), estimate(0.00005, 0.0), estimate(1.0, 0.0, False)], [take(0.0, 0.0)] * 4)
    cases = [{"results": rows}, {"results": rows[:1]}]
    impostors = [{"results": [{"accepted": accepted}]} for accepted in (False, True)]

    table = tabulate(cases, impostors)

    assert table.startswith("4 recordings in 2 cases, 2 pairs")
    found = {line.split(" | ")[0][2:]: line.split(" | ")[-1][:-2] for line in table.splitlines() if line[:2] == "| "}
    assert found["accepted, %"] == "75.0" and found["accepted falsely, %"] == "50.0"
    assert found["error <= 0.1 ms, %"] == "100.0" and found["error <= 0.02 ms, %"] == "66.7"
    assert found["median error, ms"] == "0.0000" and found["processor time, s"] == "2.0"


def test_recorders_have_audiences_of_their_own(tmp_path: Path) -> None:
    kinds = ("applause", "speech", "music")
    sounds = [Sound(tmp_path / f"{kind}{n}.npy", kind, "", "", "", 100) for kind in kinds for n in range(4)]
    apart = crowds_apart(Material(tmp_path, tuple(sounds), (), (), ()), 2)
    mine, theirs = ({sound.path.stem for sound in each.sounds} for each in apart)
    assert mine == {"applause0", "applause2", "speech0", "speech2"}
    assert theirs == {"applause1", "applause3", "speech1", "speech3"}


def test_a_recording_is_where_and_as_its_take_says(tmp_path: Path) -> None:
    """White noise through a recorder that adds nothing but a start, a polarity and a clock 100 millionths too fast."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "crowd.npy", rng.integers(-9, 9, (1, SAMPLE_RATE), np.int16))
    sounds = [Sound(tmp_path / "crowd.npy", kind, "", "", "", SAMPLE_RATE) for kind in ("applause", "speech")]
    material = Material(tmp_path, tuple(sounds), (), (), ())
    concert = rng.standard_normal(8 * SAMPLE_RATE).astype(np.float32)
    silent = Take(2.0, 5.0, 100.0, -1, 200.0, 44100, {"spread_db": 0.0, "tilt_db": 0.0})
    found = record(rng, material, concert, np.eye(2, 64), silent)
    assert found.shape == (2, round(5 * SAMPLE_RATE * 1.0001)) and np.abs(found).max() == pytest.approx(0.5)
    for at_s in (1.0, 4.0):
        event = round((2 + at_s) * SAMPLE_RATE)
        first = round(at_s * 1.0001 * SAMPLE_RATE)
        mine, theirs = found[0, first - 500 : first + 500], concert[event - 500 : event + 500]
        correlation = np.correlate(mine, theirs, "full") / np.linalg.norm(mine) / np.linalg.norm(theirs)
        peak = int(np.argmax(np.abs(correlation)))
        assert peak == 999 and correlation[peak] < -0.6  # between two samples
