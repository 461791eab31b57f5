"""The errors of `inspect`: what clips are made of, and the table against numbers worked out by hand."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from training.evaluation.clips import Clip
from training.evaluation.facts import of_clip, tabulate_errors


def test_the_truth_is_what_the_clip_was_rendered_from(acoustics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clip, "recording", np.random.default_rng(0).standard_normal((1, 44100)).astype(np.float32))
    row = {"name": "0", "condition": "phone", "voice": True, "rir": "rir/arena.wav", "snr_db": 7.0}
    figures = of_clip(Clip(acoustics, row | {"phone": {"lowpass_hz": 9000}}), acoustics)
    assert figures["snr_db"] == 7.0 and figures["bandwidth_hz"] == 9000 and figures["voice"] == 1.0
    assert 0.01 < figures["rt60_s"] < 10 and -40 < figures["drr_db"] < 40
    plain = of_clip(Clip(acoustics, {"name": "1", "condition": "clean", "voice": False}), acoustics)
    assert math.isnan(plain["rt60_s"]) and math.isnan(plain["snr_db"]) and plain["voice"] == 0.0


def test_the_table_says_how_far_off_the_median_clip_is() -> None:
    wanted = pd.DataFrame(
        {
            "rt60_s": [1.0, 2.0, 4.0, math.nan],
            "drr_db": [-5.0, 0.0, 5.0, math.nan],
            "snr_db": [0.0, 10.0, 20.0, math.nan],
            "bandwidth_hz": [8000.0, 8000.0, 16000.0, math.nan],
            "voice": [1.0, 0.0, 0.0, math.nan],
        }
    )
    found = wanted.fillna(1.0) * [1.5, 1.0, 1.0, 1.0, 0.9] + [0.0, 2.0, -3.0, 0.0, 0.0]
    found.loc[2, "voice"] = 0.8
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tabulate_errors(found, wanted).splitlines()]
    assert lines[2] == ["rt60_s", "3", "50 %", "100 %", "1.00"]
    assert lines[3] == ["drr_db", "3", "2.0 dB", "5.0 dB", "1.00"]
    assert lines[4] == ["snr_db", "3", "3.0 dB", "10.0 dB", "1.00"]
    assert lines[5][:4] == ["bandwidth_hz", "3", "0 %", "0 %"]
    assert lines[6][:4] == ["voice", "3", "33 % wrong", "33 %"]
