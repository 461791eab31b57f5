"""The preparation of room responses: index, splits, resuming, and one simulated hall."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from training.jsonl import read_rows
from training.prepare_rirs import SAMPLE_RATE, main, measured_split, split_of

KEYS = {"path", "venue", "split", "kind", "num_mics", "mic_channels", "sample_rate", "t20_s", "drr_db", "c50_db"}


def measured_folder(root: Path) -> Path:
    """Six stereo responses of one hall, a plate, a true stereo file, and one without a direct path."""
    rng = np.random.default_rng(0)
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    entries = []

    def add(name: str, space: str, kind: str, channels: int, direct: float) -> None:
        response = 0.01 * rng.standard_normal((SAMPLE_RATE, channels)) * 10 ** (-3 * time / 0.6)[:, None]
        response[200] += direct
        soundfile.write(root / name, response / np.abs(response).max(), SAMPLE_RATE, subtype="FLOAT")
        entry = {"file": name, "space": space, "kind": kind, "licence": "CC0", "origin": name, "t20_s": 0.6}
        entries.append(entry)

    for number in range(6):
        add(f"hall{number}.wav", "hall", "hall", 2, 1.0)
    add("plate.wav", "plate", "plate reverb unit", 2, 0.0)
    add("church.wav", "St. Margaret's Church", "OpenAIR", 4, 1.0)
    add("corner.wav", "corner", "room", 2, 0.0)
    (root / "index.json").write_text(json.dumps(entries))
    return root


def test_measured_responses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "source").mkdir()
    out = tmp_path / "rirs"
    main(["--out", str(out), "--measured", str(measured_folder(tmp_path / "source"))])
    rows = {row["venue"]: row for row in read_rows(out / "index.jsonl")}
    assert set(rows) == {"hall", "plate", "St. Margaret's Church"}  # the corner has no direct path
    assert "no direct path" in capsys.readouterr().out
    halls = [row for row in read_rows(out / "index.jsonl") if row["venue"] == "hall"]
    assert [row["num_mics"] for row in halls] == [3, 3]
    assert rows["St. Margaret's Church"]["split"] == "test" and rows["St. Margaret's Church"]["num_mics"] == 2
    assert rows["plate"]["split"] == "train"
    for row in rows.values():
        assert set(row) >= KEYS
        responses, rate = soundfile.read(out / row["path"], always_2d=True)
        assert rate == SAMPLE_RATE and responses.shape[1] == row["num_mics"] * row["mic_channels"] == len(
            row["drr_db"]
        )
        assert np.abs(responses).max() == pytest.approx(0.999, abs=1e-5)
    assert rows["hall"]["t20_s"] == pytest.approx(0.6, rel=0.1)
    # A unit pulse at 200 over noise of 0.01 that decays by 60 dB in 0.6 s, counted from 2.5 ms after the pulse.
    late_s = 200 / SAMPLE_RATE + 0.0025
    drr_db = -10 * np.log10(1e-4 * SAMPLE_RATE * 0.6 / (6 * np.log(10))) + 60 * late_s / 0.6
    assert rows["hall"]["drr_db"] == pytest.approx([drr_db] * 6, abs=0.6)


def test_an_index_one_level_up_still_says_which_files_are_one_hall(tmp_path: Path) -> None:
    (tmp_path / "source" / "rir").mkdir(parents=True)
    folder = measured_folder(tmp_path / "source" / "rir")
    entries = json.loads((folder / "index.json").read_text())
    (folder / "index.json").unlink()
    moved = [{**entry, "file": f"rir/{entry['file']}"} for entry in entries]
    (folder.parent / "index.json").write_text(json.dumps([*moved, {"file": "crowd/applause.wav", "kind": "crowd"}]))
    main(["--out", str(tmp_path / "rirs"), "--measured", str(folder)])
    rows = read_rows(tmp_path / "rirs" / "index.jsonl")
    assert {row["venue"]: row["split"] for row in rows} == {
        "hall": "train",
        "plate": "train",
        "St. Margaret's Church": "test",
    }
    assert {row["licence"] for row in rows} == {"CC0"}


def test_generated_venues_resume_and_repeat(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path), "--seed", "3", "--generate"]
    main([*arguments, "2"])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.flac")}
    main([*arguments, "4"])
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    rows = read_rows(tmp_path / "index.jsonl")
    assert len(rows) == 4 and len({row["venue"] for row in rows}) == 4
    main(["--out", str(tmp_path / "again"), "--seed", "3", "--generate", "4"])
    for row in rows:
        assert (tmp_path / row["path"]).read_bytes() == (tmp_path / "again" / row["path"]).read_bytes()


def test_simulated_venue(tmp_path: Path) -> None:
    pytest.importorskip("pyroomacoustics")
    main(["--out", str(tmp_path), "--simulate", "2"])
    for row in read_rows(tmp_path / "index.jsonl"):
        assert row["kind"] == "simulated" and 2 <= row["num_mics"] <= 4
        assert 0.2 < row["t20_s"] < 4.5 and all(-15 < drr_db < 10 for drr_db in row["drr_db"])


def test_splits_of_made_and_measured_venues() -> None:
    splits = [split_of(number) for number in range(1000)]
    assert (splits.count("test"), splits.count("validation")) == (100, 50)
    assert measured_split("warehouse", known=True) == "test"
    own = [measured_split(f"hall {number}", known=False) for number in range(1000)]
    assert 70 < own.count("test") < 130 and 70 < own.count("validation") < 130


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--measured", "nowhere"], ["--corpus", "no-such"]])
def test_bad_arguments_are_one_line(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(tmp_path), *arguments])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.strip().count("\n") == 0
