"""Manifests: what is drawn, what is refused, and what is written beside them."""

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from training.degrade import render
from training.jsonl import read_rows
from training.make_synth_pairs import main, parse_weights, shares
from training.manifest import FIELDS, check_header, check_row, read_header, versions
from training.pairs import load_pair
from training.prerendered import PrerenderedPairs
from training.sources import Roots


def run(corpus: Roots, out: Path, *options: str, count: int = 8, seconds: float = 0.5, split: str = "train") -> int:
    folders = ["--clean", corpus.clean_music_dir, "--rirs", corpus.rir_dir, "--noise", corpus.noise_dir]
    what = ["--split", split, "--count", count, "--seconds", seconds, "--out", out]
    return main([*map(str, [*folders, *what]), *options])


@pytest.fixture(scope="module")
def manifest(corpus: Roots, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("manifest") / "pairs.jsonl"
    assert run(corpus, out, count=200, seconds=0.5) == 0
    return out


@pytest.fixture
def row(manifest: Path) -> dict[str, Any]:
    return next(row for row in read_rows(manifest) if row["condition"] == "phone" and row["num_takes"] == 2)


def test_header_says_what_renders_the_rows(manifest: Path) -> None:
    header = read_header(manifest)
    assert header["format"] == 1
    assert header["seed"] == 1337
    assert header["versions"] == versions()
    assert header["versions"]["numpy"] == np.__version__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_header(header)
    with pytest.warns(UserWarning, match="scipy 0.1"):
        check_header(header | {"versions": {**versions(), "scipy": "0.1"}})


def test_rows_follow_the_weights(manifest: Path) -> None:
    rows = read_rows(manifest)
    assert [row["row_id"] for row in rows] == list(range(200))
    assert len({row["seed"] for row in rows}) == 200
    assert set(Counter(row["condition"] for row in rows).values()) == {50}
    takes = Counter(row["num_takes"] for row in rows)
    assert takes[1] / 200 == pytest.approx(0.7, abs=0.1)
    assert set(takes) == {1, 2, 3, 4}
    assert np.mean([row["channels"] for row in rows]) == pytest.approx(1.5, abs=0.12)
    assert all(row == check_row(row) for row in rows)


def test_order_is_random(manifest: Path) -> None:
    conditions = [row["condition"] for row in read_rows(manifest)]
    repeats = np.mean([first == second for first, second in zip(conditions, conditions[1:], strict=False)])
    assert repeats == pytest.approx(0.25, abs=0.1)


def test_split_holds_for_music_venues_and_noise(corpus: Roots, tmp_path: Path) -> None:
    assert run(corpus, tmp_path / "pairs.jsonl", split="validation", count=40) == 0
    for row in read_rows(tmp_path / "pairs.jsonl"):
        noises = row["bed_path"] + [
            path for kind in ("hum", "hiss", "wind", "handling") for path in row[f"{kind}_path"]
        ]
        for path in (row["music_path"], row["rir_path"], row["venue"], *filter(None, noises)):
            assert path.startswith("validation"), path


def test_same_command_same_rows_and_a_prefix_is_not_disturbed(corpus: Roots, tmp_path: Path, manifest: Path) -> None:
    assert run(corpus, tmp_path / "a.jsonl", "--conditions", "phone", count=6) == 0
    assert run(corpus, tmp_path / "b.jsonl", "--conditions", "phone", count=3) == 0
    assert run(corpus, tmp_path / "c.jsonl", "--conditions", "phone", "--first-row", "3", count=3) == 0
    all_rows = read_rows(tmp_path / "a.jsonl")
    assert all_rows == read_rows(tmp_path / "b.jsonl") + read_rows(tmp_path / "c.jsonl")
    assert run(corpus, tmp_path / "d.jsonl", "--conditions", "phone", "--seed", "1", count=6) == 0
    assert all_rows != read_rows(tmp_path / "d.jsonl")


def test_manifest_is_not_drawn_over(corpus: Roots, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pairs.jsonl"
    assert run(corpus, out) == 0
    before = out.read_bytes()
    assert run(corpus, out) == 0
    assert out.read_bytes() == before
    assert run(corpus, out, "--seed", "2") == 1
    assert "other settings" in capsys.readouterr().err
    assert run(corpus, out, "--seed", "2", "--overwrite") == 0
    assert out.read_bytes() != before


def test_silence_is_not_drawn(corpus: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a track that is silent but for its last second only that is used, and not in stereo with a silent side."""
    music = np.zeros((5 * 44_100, 2))
    music[-44_100:, 0] = 0.1 * np.random.default_rng(0).standard_normal(44_100)
    soundfile.write(tmp_path / "quiet.flac", music, 44_100)
    index = read_rows(corpus.clean_music_dir / "inventory.jsonl")[0] | {"path": "quiet.flac"}
    (tmp_path / "inventory.jsonl").write_text(
        "\n".join(json.dumps(item) for item in ({"kind": "header", "format": 1}, index)) + "\n"
    )
    roots = Roots(tmp_path, corpus.rir_dir, corpus.noise_dir)
    assert run(roots, tmp_path / "pairs.jsonl", "--stereo-probability", "0", "--conditions", "room", count=4) == 0
    assert all(row["music_offset_s"] > 3.5 for row in read_rows(tmp_path / "pairs.jsonl"))
    monkeypatch.setattr("training.make_synth_pairs.TRACK_TRIALS", 2)
    assert run(roots, tmp_path / "stereo.jsonl", "--stereo-probability", "1", "--conditions", "room", count=1) == 1


def test_weights_and_shares() -> None:
    assert parse_weights("crowd:1, room:0.5,phone") == {"crowd": 1.0, "room": 0.5, "phone": 1.0}
    names = shares({"a": 1.0, "b": 2.0, "c": 0.0}, 100, np.random.default_rng(0))
    assert Counter(names) == {"a": 33, "b": 67}
    for bad in ("crowd:x", "crowd:-1", "crowd:0"):
        with pytest.raises(ValueError):
            parse_weights(bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--conditions", "rain:1"), "unknown condition rain"),
        (("--takes", "5:1"), "1 to 4"),
        (("--seconds", "50"), "no music"),
        (("--rir-kinds", "measured:1"), "no rooms"),
        (("--clean", "nowhere"), "nowhere"),
        (("--count", "0"), "--count"),
    ],
)
def test_bad_options_are_one_line(
    corpus: Roots, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert run(corpus, tmp_path / "pairs.jsonl", *options) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("make_synth_pairs: ") and message in error
    assert not (tmp_path / "pairs.jsonl").exists()


@pytest.mark.parametrize("key", [*FIELDS["synthetic"], "kind"])
def test_every_missing_key_is_named(row: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        check_row({name: value for name, value in row.items() if name != key})


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("kind", "imagined", "'imagined'"),
        ("seconds", "6", "must be a number"),
        ("seconds", float("nan"), "outside"),
        ("seconds", 1e9, "outside"),
        ("seed", 1.5, "whole number"),
        ("seed", True, "whole number"),
        ("split", "holdout", "not one of train"),
        ("condition", 3, "must be a string"),
        ("num_takes", 5, "outside 1 to 4"),
        ("channels", 6, "outside 1 to 2"),
        ("drr_db", [1.0], "has 1 values, expected 2"),
        ("drr_db", 1.0, "must be a list"),
        ("drr_db", [1.0, None], "must be a number"),
        ("snr_db", [0.0, float("inf")], "outside"),
        ("bed_db", [], "has 0 values"),
        ("codec", ["aac", "wma"], "'wma'"),
        ("music_path", "/etc/passwd", "plain paths"),
        ("music_path", "", "is empty"),
        ("bed_path", ["../../x.flac"], "plain paths"),
        ("hum_path", ["", "C:\\x.flac"], "plain paths"),
        ("misalignment_s", [0.0, 3.0], "outside"),
    ],
)
def test_bad_values_name_row_and_key(row: dict[str, Any], key: str, value: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"manifest row {row['row_id']}: {key} ?.*{complaint}"):
        check_row(row | {key: value})


def test_empty_columns_of_a_mixed_table_are_dropped(row: dict[str, Any]) -> None:
    assert check_row(row | {"versions": None, "recordings": None}) == check_row(row)


def test_render_writes_flac_pairs_that_load_without_the_sources(corpus: Roots, tmp_path: Path) -> None:
    out, folder = tmp_path / "pairs.jsonl", tmp_path / "flac"
    assert run(corpus, out, "--render", str(folder), count=6) == 0
    nowhere = Roots(tmp_path / "a", tmp_path / "b", tmp_path / "c", pairs_dir=folder)
    for source, rendered in zip(read_rows(out), read_rows(folder / "pairs.jsonl"), strict=True):
        expected, read = render(source, corpus), load_pair(check_row(rendered), nowhere)
        peak = max(np.abs(expected.recordings).max(), np.abs(expected.clean).max(), np.abs(expected.early).max())
        gain = min(1.0, 0.99 / peak)
        for name in ("recordings", "clean", "early"):
            np.testing.assert_allclose(getattr(read, name), gain * getattr(expected, name), atol=2**-23)
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*.flac")}
    next(iter(written)).unlink()
    assert run(corpus, out, "--render", str(folder), count=6) == 0
    again = {path: path.stat().st_mtime_ns for path in folder.glob("*.flac")}
    assert set(again) == set(written)
    same_row = next(iter(written)).name.split(".")[0]
    assert all(again[path] == written[path] for path in written if not path.name.startswith(same_row))


def test_memmap_holds_the_rendered_pairs(corpus: Roots, tmp_path: Path) -> None:
    out, folder = tmp_path / "pairs.jsonl", tmp_path / "mm"
    assert run(corpus, out, "--memmap", str(folder), count=12) == 0
    pairs, rows = PrerenderedPairs(folder), read_rows(out)
    assert len(pairs) == 12 and pairs.samples == 22_050 and pairs.sample_rate == 44_100
    for number, row in enumerate(rows):
        assert pairs.rows[number]["row_id"] == row["row_id"]
        expected = render(row, corpus)
        recordings, clean, early = pairs[number].crop(4000, 20_000)
        scale = 0.51 / 32_767
        for stored, part in ((recordings, expected.recordings), (clean, expected.clean)):
            np.testing.assert_allclose(stored, part[..., 4000:20_000], atol=scale * np.abs(part).max() + 1e-7)
        error = np.mean(np.square(early - expected.early[:, 4000:20_000]))
        assert 10 * np.log10(np.mean(np.square(expected.early)) / error) > 60


def test_memmap_goes_on_and_grows(corpus: Roots, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, folder = tmp_path / "pairs.jsonl", tmp_path / "mm"
    assert run(corpus, out, "--memmap", str(folder), count=40, seconds=0.3) == 0
    assert sorted(path.name for path in folder.glob("*.json")) == ["shard-00000000.json", "shard-00000032.json"]
    written = {path: path.read_bytes() for path in folder.iterdir()}
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for path in folder.glob("shard-00000032*"):  # as after a kill
        path.unlink()
    assert run(corpus, out, "--memmap", str(folder), "--num-workers", "2", count=40, seconds=0.3) == 0
    assert {path: path.read_bytes() for path in folder.iterdir()} == written
    assert all(path.stat().st_mtime_ns == times[path] for path in folder.glob("shard-00000000*"))
    more = ("--memmap", str(folder), "--first-row", "40")
    assert run(corpus, tmp_path / "more.jsonl", *more, count=4, seconds=0.3) == 0
    assert [row["row_id"] for row in PrerenderedPairs(folder).rows] == list(range(44))
    other = ("--memmap", str(folder), "--ranges", "benchmark")  # same seeds, other parameters
    assert run(corpus, tmp_path / "other.jsonl", *other, count=40, seconds=0.3) == 1
    assert "other rows" in capsys.readouterr().err
