"""The fusion benchmark's manifest: what is frozen is valid, balanced, of the test split, and can be made anywhere."""

import json
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from training import corpora, draw_benchmark, draw_fusion
from training.benchmark_audio import compare_takes, describe_takes
from training.crowd import MAKERS, TEST_FILES
from training.degrade import LOCAL_NOISES, RANGES
from training.device import Device
from training.draw_fusion import draw_rows, rounded, simulated_venues
from training.jsonl import read_rows
from training.manifest import check_row
from training.pairs import load_pair
from training.prepare_benchmark import BUNDLED, FOLDER, MANIFESTS, noise_paths
from training.prepare_rirs import TEST_VENUES, split_of

MANIFEST = FOLDER / "fusion.jsonl"
SECONDS = 1.5


@pytest.fixture(scope="module")
def frozen() -> list[dict]:
    return read_rows(MANIFEST)


def test_the_frozen_rows_are_valid_and_balanced(frozen) -> None:
    assert len(frozen) == 48 and [row["row_id"] for row in frozen] == list(range(48))
    cells = Counter()
    for row in frozen:
        check_row(row)
        assert (row["num_takes"], row["channels"], row["seconds"], row["music_in_room"]) == (4, 2, 10.0, 1)
        assert len(row["rendered"]) == 4 and len({take["sha256"] for take in row["rendered"]}) == 4
        cells[row["rir_path"].split("/")[0], row["condition"], row["music_path"].split("/")[0]] += 1
    assert len(cells) == 2 * 2 * 4 and set(cells.values()) == {3}
    # Twenty-four venues that nobody built, and four sets of microphones in the warehouse.
    assert len({row["rir_path"] for row in frozen if row["rir_path"].startswith("simulated")}) == 24
    assert {row["venue"] for row in frozen if row["rir_path"].startswith("measured")} == {"warehouse"}
    assert MANIFEST.stat().st_size < 150_000


def test_every_take_has_its_own_microphone_crowd_and_device(frozen) -> None:
    limits = RANGES["benchmark"]
    neutral = vars(Device())
    for row in frozen:
        assert len(set(row["rir_left"])) == 4, "a microphone for each take"
        assert row["bed_path"] and row["crowd_own"] >= 0.2 and len(set(row["snr_db"])) == 4
        assert all(limits.snr_db[0] <= value <= limits.snr_db[1] for value in row["snr_db"])
        assert all(limits.drr_db[0] <= value <= limits.drr_db[1] for value in row["drr_db"])
        assert limits.rt60_s[0] <= row["rt60_s"] <= limits.rt60_s[1]
        devices = [tuple(row[name][take] for name in neutral if name != "level_db") for take in range(4)]
        if row["condition"] == "phone":
            assert len(set(devices)) == 4
        else:
            assert set(devices) == {tuple(value for name, value in neutral.items() if name != "level_db")}
    misalignment = np.array([row["misalignment_s"] for row in frozen])
    assert not misalignment[:, 0].any() and np.abs(misalignment).max() <= 1e-3
    assert np.mean(np.abs(misalignment[:, 1:]) <= 1e-4) > 0.9 and np.mean(misalignment[:, 1:] != 0.0) > 0.5


def test_the_frozen_rows_are_of_the_test_split_and_can_be_prepared(frozen) -> None:
    assert MANIFEST in MANIFESTS
    packages = {package.name for package in corpora.PACKAGES if package.split == "test"}
    kinds = list(MAKERS)
    for row in frozen:
        assert row["split"] == "test" and row["music_path"].split("/")[0] in packages
        folder, name = row["rir_path"].split("/")[0], PurePosixPath(row["rir_path"]).name
        if folder == "measured":
            assert row["venue"] in TEST_VENUES and (BUNDLED["measured"] / name).is_file()
        else:
            kind, seed, number = row["venue"].split("-")
            assert (kind, seed) == ("simulated", "0") and split_of(int(number)) == "test"
            assert row["rir_path"] == f"simulated/{int(number) // 1000:03d}/{int(number):06d}.flac"
        for path in noise_paths(row):
            kind, stem = PurePosixPath(path).parent.name, PurePosixPath(path).stem
            if kind == "recorded":
                assert any(stem.endswith(name) for name in TEST_FILES)
                assert (BUNDLED["recorded"] / f"{stem}.flac").is_file()
            else:
                number = int(stem.split("-")[1])
                assert kinds[number % len(kinds)] == kind and number // len(kinds) % 10 == 7


def test_drawn_rows_repeat_and_render_to_their_fingerprints(corpus, monkeypatch) -> None:
    for module in (draw_benchmark, draw_fusion):
        monkeypatch.setattr(module, "SECONDS", SECONDS)
    music, rooms, noise = (
        [row for row in read_rows(index) if row["split"] == "validation"]
        for index in (
            corpus.clean_music_dir / "inventory.jsonl",
            corpus.rir_dir / "index.jsonl",
            corpus.noise_dir / "index.jsonl",
        )
    )
    rooms[0]["kind"] = "measured"
    rows = draw_rows(corpus, music, rooms, noise, count=4)
    assert {(row["rir_path"], row["condition"]) for row in rows} == {
        (room["path"], condition) for room in rooms for condition in ("room_crowd", "phone")
    }
    for row in rows:
        numbers = [*row["snr_db"], *row["misalignment_s"], row["decay_per_s"]]
        assert numbers == [float(f"{value:.6g}") for value in numbers]
        pair = load_pair(check_row(row), corpus)
        assert pair.recordings.shape == (4, 2, round(SECONDS * 44_100))
        assert compare_takes(row["rendered"], describe_takes(pair)) == "identical"
        assert len({take["si_sdr_db"] for take in row["rendered"]}) == 4
    assert draw_rows(corpus, music, rooms, noise, count=4) == rows
    with pytest.raises(ValueError, match="5 performances cannot be shared by 4 conditions and 1 collections"):
        draw_rows(corpus, music, rooms, noise, count=5)


def test_the_take_that_differs_most_decides() -> None:
    one = {"sha256": "a", "levels_db": [0.0, 0.0], "si_sdr_db": 5.0}
    near, far = {**one, "sha256": "b", "si_sdr_db": 5.05}, {**one, "sha256": "c", "si_sdr_db": 9.0}
    assert compare_takes([one, one], [one, one]) == "identical"
    assert compare_takes([one, one], [one, near]) == "equivalent"
    assert compare_takes([one, one], [far, near]) == "different"
    assert compare_takes(None, [one]) == compare_takes([one], [one, one]) == "unknown"


def test_numbers_are_rounded_and_nothing_else() -> None:
    row = {"a": 1.23456789, "b": [1e-7 / 3, 2], "c": "1.23456789", "d": 9_007_199_254_740_991}
    assert {name: rounded(value) for name, value in row.items()} == {
        "a": 1.23457,
        "b": [3.33333e-8, 2],
        "c": "1.23456789",
        "d": 9_007_199_254_740_991,
    }


def test_simulated_venues_have_enough_microphones_and_ring(tmp_path: Path) -> None:
    """With venues that were made before: the test ones are 7, 17, 27, ..."""
    made = {7: (4, 0.39), 17: (3, 1.0), 27: (4, 0.4), 37: (2, 0.5), 47: (4, 2.0)}
    for number, (mics, t20_s) in made.items():
        path = tmp_path / f"simulated/000/{number:06d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"venue": number, "num_mics": mics, "t20_s": t20_s}))
    assert [row["venue"] for row in simulated_venues(tmp_path, 2)] == [27, 47]


def test_a_frozen_manifest_is_not_overwritten(tmp_path: Path, capsys) -> None:
    path = tmp_path / "fusion.jsonl"
    path.write_text("frozen")
    assert draw_fusion.main(["--data", str(tmp_path), "--out", str(path)]) == 1
    assert "another benchmark" in capsys.readouterr().err and path.read_text() == "frozen"
    assert draw_fusion.main(["--data", str(tmp_path), "--out", str(tmp_path / "new.jsonl")]) == 1
    assert "inventory.jsonl does not exist" in capsys.readouterr().err


def test_the_four_noises_at_the_microphone_are_drawn(frozen) -> None:
    phones = [row for row in frozen if row["condition"] == "phone"]
    for kind in LOCAL_NOISES:
        assert any(path for row in phones for path in row[f"{kind}_path"])
        assert not any(path for row in frozen if row["condition"] != "phone" for path in row[f"{kind}_path"])
