"""The speed table: what is measured is measured once, and the parts add up to the whole."""

import json

import numpy as np
import pytest
import torch

from pipeline_aud2studio import Aud2StudioPipeline, shipped_weights
from training import bench
from training.bench_case import Case, Stages, pieces, recording


def test_a_part_within_a_part_counts_for_itself():
    times = iter([0.0, 1.0, 4.0, 6.0, 7.0, 17.0])
    stages = Stages(lambda: next(times))
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


def test_takes_to_align_are_one_performance_with_a_lag_and_noise():
    first, second = (np.concatenate([*pieces(20.0, 1, take=take)], axis=1)[0] for take in (0, 1))
    assert first.shape == second.shape == (20 * 44100,)
    overlap = first[4410:], second[: len(second) - 4410]
    assert np.std(overlap[0] - overlap[1]) == pytest.approx(np.sqrt(2) * 1e-3, rel=0.02)
    assert np.std(first - second) > 0.05


def test_cases_differ_from_the_default_in_one_thing():
    base = Case(seconds=60.0)
    cases = bench.plan(base, threads=2, long_s=600.0)
    assert {case.recordings for case in cases.values()} == {1, 2, 3, 4}
    assert {case.steps for case in cases.values() if case.reconstruction == "vocoder"} == {1, 2, 4, 8, 50}
    assert {case.backend for case in cases.values()} == {"torch", "onnx", "onnx-int8"}
    assert {case.system for case in cases.values()} == {"aud2studio", *bench.PEERS}
    assert len({case.key for case in cases.values()}) == len(cases)
    assert all(case.dtype == "float32" for name, case in cases.items() if name != "bfloat16")


def quality_of_the_pipelines_call() -> float:
    """SI-SDR of four seconds of the example, by the formula."""
    pipeline = Aud2StudioPipeline.from_pretrained(shipped_weights())
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    restored = pipeline(recording(4.0, 2), 44100, generator=generator).audios[0].astype(np.float64)
    clean = recording(4.0, 2, "clean")
    ratios = []
    for estimate, target in zip(restored, clean, strict=True):
        projection = estimate @ target / (target @ target) * target
        ratios.append(10 * np.log10(np.sum(projection**2) / np.sum((estimate - projection) ** 2)))
    return float(np.mean(ratios))


def test_the_shipped_weights_are_measured_once(tmp_path, capsys, monkeypatch):
    out = tmp_path / "b" / "bench.json"
    arguments = ["--out", str(out), "--seconds", "4", "--only", "default"]
    assert bench.main(arguments) == 0
    results = json.loads(out.read_text())
    (found,) = results["cases"].values()
    assert found["rtf"] == pytest.approx(found["seconds"] / 4)
    parts = found["stages_s"]
    assert set(parts) == {"read", "features", "condition_encoder", "unet", "read-out", "write"}
    assert sum(parts.values()) == pytest.approx(found["cpu_s"], rel=0.05)
    assert found["si_sdr_db"] == pytest.approx(quality_of_the_pipelines_call(), abs=0.05)
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
