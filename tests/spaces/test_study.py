"""Studies: their YAML, what is built of them, and the answers' store."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyloudnorm
import pytest
import soundfile
from study_files import write_study

from spaces_app.listening_test import Preference, Rating, Store
from spaces_app.study import RATE, build, draft, load_study, low_anchor, read_config


def test_every_stimulus_has_the_loudness_of_its_reference(tmp_path: Path) -> None:
    notices = build(read_config(write_study(tmp_path)), tmp_path / "study", progress=False)
    assert notices == []
    study = load_study(tmp_path / "study")
    for excerpt in ("one", "two", "warm-up"):
        loudness = {}
        for condition in study.conditions:
            waveform, rate = soundfile.read(study.audio(excerpt, condition))
            assert rate == RATE and waveform.shape == (RATE, 2) and np.abs(waveform).max() <= 1
            loudness[condition] = pyloudnorm.Meter(rate).integrated_loudness(waveform)
        assert set(loudness) == {"restored", "recording", "reference", "anchor"}
        np.testing.assert_allclose(list(loudness.values()), loudness["reference"], atol=0.05)
    short = build(read_config(write_study(tmp_path / "long", seconds=15.0)), tmp_path / "long" / "study", False)
    assert short[0] == "warm-up lasts 1.2 s, 15 s were wanted"


def test_the_anchor_has_the_filter_of_the_recommendation() -> None:
    """BS.1534-3: +-0.1 dB up to 3.5 kHz, 25 dB down at 4 kHz, 50 dB at 4.5 kHz."""
    impulse = np.zeros((1, RATE), dtype=np.float32)
    impulse[0, RATE // 2] = 1
    response_db = 20 * np.log10(np.abs(np.fft.rfft(low_anchor(impulse)[0])) + 1e-9)
    frequencies = np.fft.rfftfreq(RATE, 1 / RATE)
    assert np.abs(response_db[(frequencies > 20) & (frequencies <= 3500)]).max() <= 0.1
    assert response_db[frequencies >= 4000].max() <= -25
    assert response_db[frequencies >= 4500].max() <= -50


def test_every_listener_has_an_order_of_his_own_and_keeps_it(tmp_path: Path) -> None:
    build(read_config(write_study(tmp_path)), tmp_path / "study", progress=False)
    study = load_study(tmp_path / "study")
    codes = [f"LISTENER{number}" for number in range(400)]
    first = [study.stimuli(code, "one").index("restored") for code in codes]
    counts = np.bincount(first, minlength=4)
    assert counts.min() > 70  # 100 are expected, with a standard deviation of 9
    assert [study.stimuli(code, "one") for code in codes] == [study.stimuli(code, "one") for code in codes]
    assert any(study.stimuli(code, "one") != study.stimuli(code, "two") for code in codes)
    tokens = {study.token(code, "one", name) for code in codes for name in study.conditions}
    assert len(tokens) == 1600 and not any(name in token for token in tokens for name in study.conditions)
    assert study.condition("X", "one", study.token("X", "one", "anchor")) == "anchor"
    assert study.condition("Y", "one", study.token("X", "one", "anchor")) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"titel": "x"}, "titel: Extra inputs are not permitted"),
        ({"seconds": -1}, "seconds"),
        ({"excerpts": ["one", "../etc/passwd"]}, "excerpts.1"),
        ({"excerpts": ["one", "one"]}, "one is there twice"),
        ({"training": "one"}, "one is there twice, or is that for training"),
        ({"preference": ["restored", "nobody"]}, "nobody is not among the systems"),
        ({"systems": {"anchor": "restored"}}, "anchor is a condition that every study has already"),
    ],
)
def test_bad_studies_are_refused_by_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(write_study(tmp_path, **changes))


def test_files_that_are_missing_or_of_another_length_are_named(tmp_path: Path) -> None:
    config = read_config(write_study(tmp_path))
    soundfile.write(tmp_path / "restored" / "two.flac", np.zeros(44_100 * 3), 44_100)
    with pytest.raises(ValueError, match="two of restored lasts 3.00 s, its reference 1.20 s"):
        build(config, tmp_path / "study", progress=False)
    (tmp_path / "restored" / "two.flac").unlink()
    with pytest.raises(ValueError, match="restored holds 0 recordings called two"):
        build(config, tmp_path / "study", progress=False)
    assert not (tmp_path / "study").exists()


def test_a_draft_takes_clips_of_every_condition(tmp_path: Path) -> None:
    lines = []
    for system in ("input", "faithful", "ceiling", "reference"):
        (tmp_path / "kept" / system).mkdir(parents=True)
        for number in range(12):
            condition = ["audience", "room", "phone"][number % 3]
            lines.append(json.dumps({"name": f"{number:04d}", "system": system, "condition": condition}))
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    content = draft(tmp_path, 6, 0, "title")
    assert set(content["systems"]) == {"input", "faithful", "ceiling"}
    assert content["preference"] == ["faithful", "input"]
    assert sorted(int(name) % 3 for name in content["excerpts"]) == [0, 0, 1, 1, 2, 2]
    assert content["training"] not in content["excerpts"]
    with pytest.raises(ValueError, match="12 clips, 12 and one for training"):
        draft(tmp_path, 12, 0, "title")
    with pytest.raises(ValueError, match="--keep"):
        draft(tmp_path / "nothing", 6, 0, "title")


def test_answers_are_rows_and_bad_ones_leave_no_trace(tmp_path: Path) -> None:
    store = Store(tmp_path / "ratings.sqlite")
    store.begin("AB")
    store.rate("AB", "one", "restored", 70)
    store.rate("AB", "one", "restored", 80)  # changed his mind
    store.rate("AB", "two", "anchor", 0)
    store.prefer("AB", "one", "restored", "recording", False)
    for bad in (("AB", "one", "restored", 101), ("nobody", "one", "restored", 50)):
        with pytest.raises(sqlite3.IntegrityError):
            store.rate(*bad)
    again = Store(tmp_path / "ratings.sqlite")  # while the other one is open
    expected = [Rating("AB", "one", "restored", 80), Rating("AB", "two", "anchor", 0)]
    assert store.ratings() == again.ratings() == expected
    assert again.preferences("AB") == [Preference("AB", "one", "restored", "recording", 0)]
    columns = again._do("SELECT name FROM pragma_table_info('listeners')")
    assert columns == [("code",), ("begun",), ("trained",)]
