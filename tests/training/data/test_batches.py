"""Batches of scenes and of real pairs: every row once, in order, whatever the workers, and exactly on again."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import lfilter

from pipeline_aud2studio.features import BandImage
from pipeline_aud2studio.spectral import BandTransform
from training.data import real_pairs
from training.data.batches import SceneLoader
from training.data.real_pairs import MixedScenes, RealScenes, ResampledScenes, main
from training.data.scenes import Scene

RATE = 44100
LABELS = {"rt60_s": 1.0, "drr_db": 0.0, "snr_db": 0.0, "bandwidth_hz": 1e4, "voice": 0.0}


class Rows:
    """Scenes whose level says which row they are of."""

    seed = 1

    def __call__(self, row: int) -> Scene:
        noise = np.random.default_rng(row).standard_normal((1, 20 * 1024)).astype(np.float32)
        return Scene([0.1 * noise], 0.05 * noise, noise, LABELS, {"row": row})


def loader(workers: int = 0, rank: int = 0, world_size: int = 1) -> SceneLoader:
    image = BandImage(BandTransform(n_mels=32), 2, -5.0, 2.0, 2.0)
    return SceneLoader(Rows(), image, 16, 2, workers, rank, world_size)


def test_rows_come_in_order_and_batches_do_not_depend_on_workers() -> None:
    batches = {workers: [batch for batch, _ in zip(loader(workers), range(3), strict=False)] for workers in (0, 2)}
    for one, other in zip(batches[0], batches[2], strict=True):
        assert one["row_id"] == other["row_id"]
        for name, part in one.items():
            if isinstance(part, torch.Tensor):
                torch.testing.assert_close(part, other[name], equal_nan=True)
    assert [row for batch in batches[0] for row in batch["row_id"]] == [0, 1, 2, 3, 4, 5]


def test_a_loader_goes_on_where_another_stopped() -> None:
    first = loader()
    taken = [batch for batch, _ in zip(first, range(2), strict=False)]
    state = {"batch": 1}
    second = loader()
    second.load_state_dict(state)
    again = next(iter(second))
    assert again["row_id"] == taken[1]["row_id"]
    torch.testing.assert_close(again["planes"], taken[1]["planes"])
    assert second.state_dict() == {"batch": 2}


def test_processes_share_the_rows() -> None:
    rows = [next(iter(loader(rank=rank, world_size=2)))["row_id"] for rank in range(2)]
    assert sorted(rows[0] + rows[1]) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="rank 2"):
        loader(rank=2, world_size=2)


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A performance of 20 s: the board's sound, and a recording that began 1.5 s later, quieter, with noise."""
    monkeypatch.setattr(real_pairs, "SECONDS", 5.0)
    rng = np.random.default_rng(0)
    level = np.repeat(np.exp(rng.normal(0, 1, 200)), RATE // 10)
    clean = (0.02 * lfilter([1], [1, -0.9], rng.standard_normal(20 * RATE)) * level).clip(-1, 1)
    folder = tmp_path / "pairs" / "night"
    folder.mkdir(parents=True)
    soundfile.write(folder / "clean.wav", clean, RATE, subtype="FLOAT")
    heard = 0.3 * clean[round(1.5 * RATE) :] + 0.001 * rng.standard_normal(len(clean) - round(1.5 * RATE))
    soundfile.write(folder / "recording.flac", heard, RATE)
    return tmp_path / "pairs"


@pytest.mark.slow
def test_real_pairs_are_aligned_cut_and_found_again(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    assert main(["--pairs", str(pairs), "--out", str(out)]) == 0
    scenes = RealScenes(out, seed=3)
    count = len(scenes.rows)
    assert count == 3  # of four stretches of 5 s the recording misses the first
    starts = [scenes(row).recipe["start_s"] for row in range(2 * count)]
    assert sorted(starts[:count]) == sorted(starts[count:]) == [5.0, 10.0, 15.0]
    scene = scenes(0)
    recording, target = scene.recordings[0][0], scene.target[0]
    assert np.mean(recording**2) == pytest.approx(np.mean(target**2), rel=1e-3)
    projection = np.dot(recording, target) / np.dot(target, target) * target
    assert 10 * np.log10(np.sum(projection**2) / np.sum((recording - projection) ** 2)) > 15  # in line to the sample

    mixed = MixedScenes(Rows(), scenes, 0.25)
    kinds = ["real" if mixed(row).recipe.get("condition") == "real" else "rendered" for row in range(8)]
    assert kinds == ["rendered"] * 3 + ["real"] + ["rendered"] * 3 + ["real"]
    assert mixed(3).recipe["start_s"] == starts[0]
    at_48 = ResampledScenes(mixed, 48000)(0)
    assert at_48.target.shape == at_48.recordings[0].shape == (1, round(20 * 1024 * 48 / 44.1))


def test_what_is_no_performance_is_said_and_does_not_stop_the_others(pairs: Path, tmp_path: Path, capsys) -> None:
    (pairs / "empty").mkdir()
    assert main(["--pairs", str(pairs), "--out", str(tmp_path / "out")]) == 1
    assert "empty has to hold one clean.* and at least one recording*.*" in capsys.readouterr().err
    assert (tmp_path / "out" / "night.parquet").is_file()
    with pytest.raises(ValueError, match="training.data.real_pairs"):
        RealScenes(tmp_path / "nothing", 0)
