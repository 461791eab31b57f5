"""The training record against run folders and data made by hand."""

import json
from pathlib import Path

import pytest
import yaml

from training.config import TrainingConfig
from training.jsonl import write_rows
from training.record import heard_test_venues, main, note_start, read_record, run_record, without_folders
from training.report import write_json


def run_folder(folder: Path, steps: int, starts: int = 1) -> Path:
    """A run of 2 processes, batches of 4 clips of 2 s, two steps a second, with validations at 100 and 200."""
    folder.mkdir()
    config = {
        "experiment": "hand-made",
        "seed": 7,
        "audio": {"clip_seconds": 2},
        "model": {"block_out_channels": [32, 64], "attention_resolutions": [4]},
        "train": {"batch_size": 4},
        "data": {"memmap_dir": "/home/somebody/pairs"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(TrainingConfig.model_validate(config).model_dump(mode="json")))
    rows = [{"step": step, "seconds": step / 2, "loss": 1.0} for step in range(20, steps + 1, 20)]
    for step, change in ((100, 1.5), (200, 0.5)):
        if step <= steps:
            rows.append({"step": step, "seconds": step / 2, "validation/si_sdr_change": change})
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9999, "se')
    for number in range(starts):
        note_start(folder, 100 * number, ["python", "train.py", "--output_dir=/home/somebody/run"], 1, 2)
    return folder


def data_folder(root: Path) -> Path:
    for name in ("clean", "rirs", "noise"):
        (root / name).mkdir(parents=True)
    music = [("a", "GPL-2", "train", 3600.0), ("a", "GPL-2", "train", 1800.0), ("b", "CC0", "test", 900.0)]
    write_rows(
        root / "clean" / "inventory.jsonl",
        [
            {
                "path": f"{package}/{number}.ogg",
                "package": package,
                "licence": licence,
                "split": split,
                "seconds": seconds,
            }
            for number, (package, licence, split, seconds) in enumerate(music)
        ],
    )
    rooms = [("measured", "Old Hall", "CC-BY", "train"), ("measured", "Warehouse", "Apache-2.0", "test")]
    rooms += [("simulated", "simulated-0-1", "CC0-1.0", "train")]
    write_rows(
        root / "rirs" / "index.jsonl",
        [
            {
                "path": f"{number}.flac",
                "kind": kind,
                "venue": venue,
                "licence": licence,
                "split": split,
                "origin": "x",
                "seconds": 1,
            }
            for number, (kind, venue, licence, split) in enumerate(rooms)
        ],
    )
    noise = {"path": "n.flac", "kind": "applause", "licence": "CC0", "split": "train", "seconds": 36}
    write_rows(root / "noise" / "index.jsonl", [{**noise, "origin": "training/crowd.py, seed 0, number 0"}])
    pairs = [("crowd", 2, "a/0.ogg", None), ("room", 1, "a/1.ogg", "0.flac"), ("room", 1, "a/0.ogg", "2.flac")]
    write_rows(
        root / "pairs.jsonl",
        [
            {
                "row_id": number,
                "seconds": 6.0,
                "condition": condition,
                "num_takes": takes,
                "channels": 2 - number % 2,
                "music_path": music_path,
                "rir_path": rir_path,
                "bed_path": ["n.flac"],
            }
            for number, (condition, takes, music_path, rir_path) in enumerate(pairs)
        ],
    )
    return root


def test_what_a_run_says(tmp_path: Path) -> None:
    record = run_record(run_folder(tmp_path / "run", 240, starts=2))
    assert (record["experiment"], record["seed"], record["steps"], record["seconds"]) == ("hand-made", 7, 240, 120.0)
    assert record["examples"] == 240 * 4 * 2
    assert record["hours_seen"] == pytest.approx(1920 * 352 * 256 / 44100 / 3600, abs=0.005)  # 2 s in whole pixels
    assert record["validation"] == {"step": 100, "si_sdr_change": 1.5}
    assert record["commands"] == ["python train.py --output_dir=run"] * 2
    assert record["threads"] == 1 and record["machine"]["cores"] >= 1
    assert "somebody" not in json.dumps(record)


def test_record_of_runs_and_data(tmp_path: Path) -> None:
    data = data_folder(tmp_path / "data")
    runs = [run_folder(tmp_path / name, steps) for name, steps in (("one", 100), ("two", 240))]
    benchmark = tmp_path / "test.jsonl"
    write_rows(benchmark, [{"venue": "Warehouse"}])
    options = ["--run", *map(str, runs), "--data", str(data), "--pairs", str(data / "pairs.jsonl")]
    assert main([*options, "--benchmark", str(benchmark), "--out", str(tmp_path / "training.json")]) == 0
    record = read_record(tmp_path / "training.json")
    assert [run["steps"] for run in record["runs"]] == [100, 240]
    assert record["pairs"] == {
        "count": 3,
        "hours": 0.01,  # 18 s, in hundredths
        "tracks": 2,
        "with_several_takes": 1,
        "stereo": 2,
        "conditions": {"crowd": 1, "room": 2},
    }
    sources = {(row["kind"], row["name"], row["split"]): row for row in record["sources"]}
    music = sources["music", "a", "train"]
    assert (music["licence"], music["items"], music["hours"], music["pairs"]) == ("GPL-2", 2, 1.5, 3)
    assert sources["music", "b", "test"]["pairs"] == 0
    assert sources["room", "Old Hall", "train"]["pairs"] == 1
    assert sources["room", "simulated rooms (training/venues.py)", "train"]["pairs"] == 1
    assert (
        sources["crowd", "synthetic (training/crowd.py)", "train"] | {"pairs": 3}
        == sources["crowd", "synthetic (training/crowd.py)", "train"]
    )
    assert record["test_venues_heard"] == []


def test_a_record_goes_on_from_that_of_the_weights_it_began_with(tmp_path: Path) -> None:
    """Figures of the first record, doubled by the same data, and a source that only the first one had."""
    data = data_folder(tmp_path / "data")
    benchmark = tmp_path / "test.jsonl"
    write_rows(benchmark, [{"venue": "Warehouse"}])
    options = ["--data", str(data), "--pairs", str(data / "pairs.jsonl"), "--benchmark", str(benchmark)]
    before = tmp_path / "before.json"
    assert main(["--run", str(run_folder(tmp_path / "one", 100)), *options, "--out", str(before)]) == 0
    record = read_record(before)
    record["vocoder"] = {"steps": 5}
    gone = {**record["sources"][0], "name": "a source that is no longer there", "pairs": 2}
    write_json(before, {**record, "sources": [*record["sources"], gone], "test_venues_heard": ["Warehouse"]})

    second = str(run_folder(tmp_path / "two", 240))
    out = tmp_path / "after.json"
    assert main(["--run", second, *options, "--before", str(before), "--out", str(out)]) == 0
    after = read_record(out)
    assert [run["steps"] for run in after["runs"]] == [100, 240]
    assert after["vocoder"] == {"steps": 5} and after["test_venues_heard"] == ["Warehouse"]
    assert after["pairs"] == {
        "count": 6,
        "hours": 0.02,
        "tracks": 2,
        "with_several_takes": 2,
        "stereo": 4,
        "conditions": {"crowd": 2, "room": 4},
    }
    pairs = {(row["kind"], row["name"], row["split"]): (row["items"], row["pairs"]) for row in after["sources"]}
    assert pairs["music", "a", "train"] == (2, 6) and pairs["room", "Old Hall", "train"] == (1, 2)
    assert pairs["crowd", "a source that is no longer there", "train"] == (1, 2)


def test_a_test_venue_among_the_training_rooms_is_found_whatever_its_spelling(tmp_path: Path) -> None:
    data = data_folder(tmp_path / "data")
    names = ["warehouse__omni-7-4", "Old Hall", "simulated-0-170", "simulated-0-3"]
    rows = [{"venue": name, "split": "train"} for name in names]
    write_rows(data / "rirs" / "index.jsonl", rows)
    tested = ["Warehouse", "St. Margaret's Church", "simulated-0-17", "simulated-0-3"]
    write_rows(tmp_path / "test.jsonl", [{"venue": name} for name in tested])
    assert heard_test_venues(data, tmp_path / "test.jsonl") == ["Warehouse", "simulated-0-3"]


def test_folders_are_taken_out_of_commands_and_configurations() -> None:
    found = without_folders({"a": ["/home/me/x.yaml", "relative/y", "--set=data.dir=/mnt/me/pairs"], "b": 3})
    assert found == {"a": ["x.yaml", "relative/y", "--set=data.dir=pairs"], "b": 3}


@pytest.mark.parametrize("content", ["", "[]", '{"format": 99}'])
def test_what_is_no_record_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(content)
    with pytest.raises(ValueError, match=r"training\.json is not a"):
        read_record(tmp_path / "training.json")


def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(tmp_path), "--data", str(tmp_path), "--out", str(tmp_path / "training.json")]) == 1
    error = capsys.readouterr().err
    assert "is not the folder of a training run" in error and error.count("\n") == 1
