"""The fusion benchmark end to end with a toy model: what is measured, resumed, refused and reported."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training import draw_benchmark, draw_fusion
from training.draw_fusion import draw_rows
from training.equaliser import shift
from training.evaluate import below_full_scale
from training.evaluate_fusion import best_sum, main, parse_takes, read_performances
from training.fusion_baselines import aligned_mean
from training.fusion_report import AVERAGE, BEST, figures, scores, summarise
from training.jsonl import read_rows, write_rows
from training.manifest import versions
from training.metrics import log_spectral_distance, mean_interval, si_sdr
from training.pairs import load_pair
from training.prepare_benchmark import FOLDER
from training.sources import Roots


@pytest.fixture(scope="module")
def manifest(corpus: Roots, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four performances of 1 s in mono, one of every kind."""
    folders = (corpus.clean_music_dir / "inventory.jsonl", corpus.rir_dir / "index.jsonl")
    music, rooms, noise = (
        [row for row in read_rows(index) if row["split"] == "validation"]
        for index in (*folders, corpus.noise_dir / "index.jsonl")
    )
    rooms[0]["kind"] = "measured"
    music = [{**row, "channels": 1} for row in music]
    path = tmp_path_factory.mktemp("manifest") / "fusion.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        for module in (draw_benchmark, draw_fusion):
            patch.setattr(module, "SECONDS", 1.0)
        write_rows(path, draw_rows(corpus, music, rooms, noise, count=4), versions=versions())
    return path


@pytest.fixture(scope="module")
def options(manifest: Path, corpus: Roots, toy_model: Path) -> list[str]:
    data = corpus.clean_music_dir.parent
    return ["--manifest", str(manifest), "--data", str(data), "--model", str(toy_model)]


def results(folder: Path) -> dict[int, dict]:
    found = [json.loads(path.read_text()) for path in sorted((folder / "performances").glob("*.json"))]
    return {result["row_id"]: result for result in found}


def db(estimate: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    pair = torch.tensor(estimate), torch.tensor(clean)
    return {"si_sdr": float(si_sdr(*pair).mean()), "lsd": float(log_spectral_distance(*pair).mean())}


def test_it_is_measured_resumed_and_reported(options, manifest, corpus, toy_pipeline, tmp_path, capsys) -> None:
    call = [*options, "--out", str(tmp_path), "--limit", "2"]
    assert main([*call, "--takes", "2,1"]) == 0
    first = results(tmp_path)
    assert set(first) == {0, 1} and {result["audio"] for result in first.values()} == {"identical"}

    # The figures of a performance, computed here.
    row = read_rows(manifest)[1]
    pair = below_full_scale(load_pair(row, corpus))

    def restored(*takes: np.ndarray) -> np.ndarray:
        return toy_pipeline(list(takes), 44_100, generator=torch.Generator().manual_seed(0)).audios[0]

    one, two = pair.recordings[:2]
    result = first[1]
    near = {"rel": 1e-3, "abs": 1e-3}
    assert result["takes"][0]["input"] == pytest.approx(db(one, pair.clean), **near)
    assert result["takes"][0]["restored"] == pytest.approx(db(restored(one), pair.clean), **near)
    its_clean = shift(pair.clean, row["misalignment_s"][1], 44_100)
    assert result["takes"][1]["restored"] == pytest.approx(db(restored(two), its_clean), **near)
    assert result["fused"]["2"]["ours"] == pytest.approx(db(restored(one, two), pair.clean), **near)
    mean = restored(aligned_mean([one, two], 44_100))
    assert result["fused"]["2"]["mean"] == pytest.approx(db(mean, pair.clean), **near)
    alone = result["takes"][0]["restored"]
    assert [result["fused"]["1"][name] for name in ("ours", "mean", "coherence", "oracle weights")] == [alone] * 4
    assert set(result["fused"]["2"]) == {"ours", "oracle weights", "mean", "coherence", "nara_wpe"}
    oracle = result["fused"]["2"]["oracle weights"]["si_sdr"]
    assert oracle >= max(alone["si_sdr"], db(restored(two), pair.clean)["si_sdr"]) - 1e-3

    # What is there stays, what was cut off is made again, and another number is added.
    paths = sorted((tmp_path / "performances").glob("*.json"))
    before = [path.stat().st_mtime_ns for path in paths]
    paths[0].write_text('{"cut off')
    assert main([*call, "--takes", "1,2"]) == 0
    assert paths[1].stat().st_mtime_ns == before[1] and results(tmp_path)[0] == first[0]
    assert main([*call, "--takes", "3", "--workers", "2", "--baselines", "coherence,mean"]) == 0
    second = results(tmp_path)
    assert set(second[0]["fused"]["3"]) == {"ours", "oracle weights", "mean", "coherence"}
    assert set(second[0]["fused"]) == {"1", "2", "3"} and len(second[0]["takes"]) == 3
    assert second[0]["fused"]["2"] == first[0]["fused"]["2"] and second[0]["takes"][:2] == first[0]["takes"]

    capsys.readouterr()
    assert main([*call, "--takes", "1,2,3"]) == 0
    report = capsys.readouterr().out
    third = results(tmp_path)[0]["fused"]["3"]
    assert third.items() > second[0]["fused"]["3"].items() and "nara_wpe" in third
    assert "| ours |" in report and "2 identical" in report and "## 1 recording\n" in report
    assert (tmp_path / "recordings.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((tmp_path / "summary.json").read_text())
    found = summary["groups"]["all"]["numbers"]["2"]["ours"]["si_sdr"]["mean"]
    assert found == pytest.approx(np.mean([result["fused"]["2"]["ours"]["si_sdr"] for result in first.values()]))
    assert set(summary["groups"]) == {"all", "room_crowd", "phone"}, "of kinds that paths do not tell"


def test_a_performance_that_fails_is_tried_again(options, manifest, corpus, tmp_path, capsys) -> None:
    call = [*options, "--out", str(tmp_path), "--limit", "2", "--takes", "1"]
    rows = read_rows(manifest)
    path = corpus.rir_dir / rows[0]["rir_path"]
    hidden = path.rename(path.with_suffix(".hidden"))
    try:
        assert rows[1]["rir_path"] == rows[0]["rir_path"]
        assert main(call) == 1
    finally:
        hidden.rename(path)
    assert "does not exist" in capsys.readouterr().err
    assert all("error" in result for result in results(tmp_path).values())
    assert main(call) == 0
    assert not any("error" in result for result in results(tmp_path).values())


def test_the_best_single_one_is_the_best_at_its_own_time() -> None:
    def score(si_sdr_db: float, lsd: float) -> dict[str, float]:
        return {"si_sdr": si_sdr_db, "lsd": lsd}

    def performance(best: float, ours: float) -> dict:
        takes = [score(1.0, 6.0), score(best, 7.0), score(9.0, 1.0)]
        return {
            "takes": [{"input": score(0.0, 9.0), "restored": take} for take in takes],
            "fused": {"2": {"ours": score(ours, 5.0)}, "3": {"ours": score(ours, 5.0)}},
            "audio": "identical",
            "rir_path": "measured/hall.flac",
            "condition": "phone",
        }

    rows = [performance(3.0, 2.6), performance(2.0, 1.4), performance(0.0, 4.0), performance(4.0, 1.0)]
    assert scores(rows[0], 2)[BEST] == score(3.0, 7.0) and scores(rows[2], 2)[BEST] == score(1.0, 6.0)
    assert scores(rows[0], 3)[BEST] == score(9.0, 1.0), "a third recording may be the best"
    assert scores(rows[0], 3)[AVERAGE] == pytest.approx(score(13 / 3, 14 / 3))
    ours = figures(rows, 2)["ours"]
    averages = [2.0, 1.5, 0.5, 2.5]
    assert ours["si_sdr_over_average"]["mean"] == pytest.approx(np.mean([2.6, 1.4, 4.0, 1.0]) - np.mean(averages))
    gains = [-0.4, -0.6, 3.0, -3.0]
    low, high = mean_interval(gains)
    assert ours["si_sdr_over_best"] == pytest.approx({"mean": np.mean(gains), "low": low, "high": high})
    assert ours["median_over_best"] == pytest.approx(np.median(gains))
    assert ours["worse"] == 0.5 and ours["worst"] == pytest.approx(-3.0)
    assert ours["lsd_over_best"]["mean"] == pytest.approx(5.0 - np.mean([7.0, 7.0, 6.0, 7.0]))
    summary = summarise(rows, (2, 3), 1, "m.jsonl", "some/model")
    assert summary["performances"] == 4 and summary["failed"] == 1 and summary["model"] == "model"
    assert set(summary["groups"]) == {"all", "measured", "phone"}


def test_oracle_weights_leave_nothing_that_a_weight_could_take_away() -> None:
    rng = np.random.default_rng(0)
    clean = rng.standard_normal((2, 400)).astype(np.float32)
    waveforms = [(gain * clean + rng.standard_normal((2, 400))).astype(np.float32) for gain in (0.5, 2.0, -1.0)]
    residual = (best_sum(waveforms, clean) - clean).ravel()
    assert [abs(float(residual @ waveform.ravel())) < 1e-2 for waveform in waveforms] == [True] * 3
    assert np.allclose(best_sum([clean, waveforms[0]], clean), clean, atol=1e-5)


def test_bad_arguments_are_one_line(options, manifest, tmp_path, capsys) -> None:
    for arguments, message in (
        (["--takes", "5"], "give numbers of recordings from 1 to 4"),
        (["--takes", "two"], "give numbers of recordings from 1 to 4"),
        (["--baselines", "mean,median"], "--baselines names median: choose from mean, coherence, nara_wpe"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--manifest", str(FOLDER / "validation.jsonl")], "row 0 has 1 recordings, not 4"),
        (["--manifest", "nosuch.jsonl"], "nosuch.jsonl"),
        (["--model", str(tmp_path / "nosuch")], "nosuch"),
    ):
        assert main([*options, "--out", str(tmp_path), *arguments]) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("evaluate_fusion: ") and message in error
    assert parse_takes("4, 1,1") == (1, 4)
    assert [row["row_id"] for row in read_performances(manifest, 4, 3)] == [0, 1, 2]
