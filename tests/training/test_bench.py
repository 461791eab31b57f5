"""The speed table: what is measured is measured once, and the parts add up to the whole."""

import json

import numpy as np
import pytest

from training import bench, bench_case
from training.bench_case import Case, Stages, recording


def test_a_part_within_a_part_counts_for_itself(monkeypatch):
    times = iter([0.0, 1.0, 4.0, 6.0, 7.0, 17.0])
    monkeypatch.setattr(bench_case.time, "perf_counter", lambda: next(times))
    stages = Stages()
    with stages.part("outer"):  # 0 to 7, without what is within
        stages.wrapped("inner", lambda: None)()  # 1 to 4
        stages.enter("inner")  # 6 to ...
        stages.leave()  # 7
    assert dict(stages.seconds) == {"outer": 1.0 + 2.0 + 10.0, "inner": 3.0 + 1.0}


@pytest.mark.parametrize(("seconds", "channels"), [(1.0, 1), (30.0, 2)])
def test_the_recording_has_its_length_and_channels(seconds, channels):
    waveform = recording(seconds, channels)
    assert waveform.shape == (channels, round(44100 * seconds)) and waveform.dtype == np.float32
    period = recording(12.0, channels)
    np.testing.assert_array_equal(waveform[:, -44100:], np.tile(period, 3)[:, waveform.shape[1] - 44100 :][:, :44100])


def test_cases_differ_from_the_default_in_one_thing():
    base = Case(seconds=60.0)
    cases = bench.plan(base, threads=2, long_s=600.0)
    assert {case.recordings for case in cases.values()} == {1, 2, 3, 4}
    assert {case.steps for case in cases.values() if case.reconstruction == "vocoder"} == {1, 2, 4, 8, 50}
    assert {case.backend for case in cases.values()} == {"torch", "onnx", "onnx-int8"}
    assert {case.system for case in cases.values()} == {"aud2studio", *bench.PEERS}
    assert len({case.key for case in cases.values()}) == len(cases)
    assert all(case.dtype == "float32" for name, case in cases.items() if name != "bfloat16")


def test_the_shipped_weights_are_measured_once(tmp_path, capsys, monkeypatch):
    out = tmp_path / "b" / "bench.json"
    arguments = ["--out", str(out), "--seconds", "4", "--only", "default"]
    assert bench.main(arguments) == 0
    results = json.loads(out.read_text())
    (found,) = results["cases"].values()
    assert found["rtf"] == pytest.approx(found["seconds"] / 4)
    parts = found["stages_s"]
    assert set(parts) == {"read", "features", "condition_encoder", "unet", "read-out", "write"}
    assert sum(parts.values()) == pytest.approx(found["seconds"], rel=0.05)
    assert 200 < found["peak_rss_mb"] < 4000 and found["import_s"] > 0.5 > 0 < found["load_s"]

    monkeypatch.setattr(bench, "measure", lambda case: pytest.fail("measured again"))
    assert bench.main(arguments) == 0
    table = capsys.readouterr().out
    assert f"| default | {found['rtf']:.3f} | {1 / found['rtf']:.1f} |" in table and "Outside the networks" in table


def test_a_case_that_fails_says_so_in_its_row(tmp_path):
    found = bench.measure(Case(system="nobody", seconds=1.0))
    assert set(found) == {"error"} and "unknown system 'nobody'" in found["error"]
    cases = {"default": Case(system="nobody", seconds=1.0)}
    assert "unknown system" in bench.tabulate(cases, {"cases": {cases["default"].key: found}})


def test_an_unknown_case_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--out", str(tmp_path / "x.json"), "--only", "nothing"])
    assert "unknown case 'nothing'" in capsys.readouterr().err
