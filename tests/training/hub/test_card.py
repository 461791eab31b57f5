"""The model card: what it records of a run, of a run that goes on, and what it says without one."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from training.checkpoints import note_start
from training.hub import card


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"experiment": "small", "train": {"batch_size": 3}}))
    rows = [{"step": step, "seconds": 36.0 * step, "loss": 1.0} for step in (50, 100)]
    (folder / "history.jsonl").write_text("\n".join(map(json.dumps, rows)))
    note_start(folder, 0, ["python", "training/train.py"], 1, 1)
    return folder


def test_a_run_that_goes_on_adds_to_the_record(run: Path, material: Path, toy_model: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(toy_model, weights)
    words = ["--weights", str(weights), "--run", str(run), "--material", str(material)]
    assert card.main(words) == 0
    first = json.loads((weights / card.RECORD).read_text())
    assert (first["steps"], first["hours"], first["scenes"], first["hours_heard"]) == (100, 1.0, 300, 2.1)
    assert card.main([*words, "--continued"]) == 0
    second = json.loads((weights / card.RECORD).read_text())
    assert (second["steps"], second["hours"], second["scenes"], second["hours_heard"]) == (200, 2.0, 600, 4.2)
    text = (weights / "README.md").read_text()
    assert "200 steps in 2.0 h" in text and all(source["licence"] in text for source in second["sources"])


def test_what_is_no_run_is_refused(toy_model: Path, material: Path, tmp_path: Path, capsys) -> None:
    words = ["--weights", str(toy_model), "--run", str(tmp_path), "--material", str(material)]
    assert card.main(words) == 1
    assert "is not the folder of a training run" in capsys.readouterr().err
