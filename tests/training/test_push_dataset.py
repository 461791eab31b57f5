"""Datasets of pairs: in a folder, on a Hub of our own, and streamed back to training."""

import io
import itertools
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import torch
import yaml
from hub_server import TOKEN, HubServer, environment

from training import hub_pairs
from training.config import parse_config
from training.data import PairLoader, make_loader
from training.degrade import render
from training.jsonl import read_rows, write_rows
from training.make_synth_pairs import main as make_synth_pairs
from training.push_dataset import main
from training.sources import Roots

COUNT = 7
REPO = "org/pairs"


@pytest.fixture(scope="module")
def manifest(corpus: Roots) -> Path:
    """Seven rows beside the corpus."""
    path = corpus.clean_music_dir.parent / "pushed.jsonl"
    sources = ["--clean", corpus.clean_music_dir, "--rirs", corpus.rir_dir, "--noise", corpus.noise_dir]
    what = ["--count", COUNT, "--seconds", 0.5, "--takes", "1:0.5,3:0.5", "--out", path]
    assert make_synth_pairs([*map(str, [*sources, *what])]) == 0
    return path


def push(manifest: Path, out: Path, *options: str) -> int:
    return main(["--pairs", str(manifest), "--data", str(manifest.parent), "--out", str(out), *options])


@pytest.fixture(scope="module")
def rendered(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dataset") / "rendered"
    assert push(manifest, out, "--render", "--rows-per-shard", "3") == 0
    return out


def loader(source: str | Path, roots: Roots | None = None, **options: Any) -> PairLoader:
    return make_loader(source, roots, **{"batch_size": 2, "clip_seconds": 0.2, "epochs": 1, **options})


def test_shards_hold_what_the_rows_render_to(rendered: Path, manifest: Path, corpus: Roots) -> None:
    """Read without any code of ours; 24 bit, up to the one gain of a pair."""
    shards = sorted((rendered / "data").iterdir())
    assert [path.name for path in shards] == [f"train-0000{n}-of-00003.parquet" for n in range(3)]
    assert [pyarrow.parquet.read_metadata(path).num_rows for path in shards] == [3, 3, 1]
    stored = [row for path in shards for row in pyarrow.parquet.read_table(path).to_pylist()]
    for row, found in zip(read_rows(manifest), stored, strict=True):
        pair = render(row, corpus)
        assert [found[key] for key in ("row_id", "seed", "condition")] == [
            row[key] for key in ("row_id", "seed", "condition")
        ]
        originals = [*pair.recordings, pair.clean, pair.early]
        files = [*found["recordings"], found["clean"], found["early"]]
        loudest = max(np.abs(waveform).max() for waveform in originals)
        gain = min(1.0, 0.99 / loudest)
        for original, file in zip(originals, files, strict=True):
            waveform, rate = soundfile.read(io.BytesIO(file["bytes"]), always_2d=True)
            assert rate == row["sample_rate"]
            np.testing.assert_allclose(waveform.T, gain * original, atol=2.0**-23)


def test_streamed_batches_equal_those_of_the_manifest(rendered: Path, manifest: Path, corpus: Roots) -> None:
    direct = list(loader(manifest, corpus))
    for streamed, expected in zip(loader(f"{rendered}/data/*.parquet"), direct, strict=True):
        assert streamed["row_id"] == expected["row_id"] and streamed["condition"] == expected["condition"]
        for key in ("recordings", "clean", "early"):
            torch.testing.assert_close(streamed[key], expected[key], atol=2e-6, rtol=0)


def test_streaming_resumes_exactly(rendered: Path) -> None:
    """In the middle of a shard, and over the end of an epoch."""
    shards = f"{rendered}/data/*.parquet"
    whole = list(itertools.islice(loader(shards, epochs=None), 6))
    first = loader(shards, epochs=None)
    list(itertools.islice(first, 2))
    second = loader(shards, epochs=None)
    second.load_state_dict(first.state_dict())
    for found, expected in zip(itertools.islice(second, 4), whole[2:], strict=True):
        assert found["row_id"] == expected["row_id"]
        assert torch.equal(found["recordings"], expected["recordings"])


def test_an_interrupted_rendering_goes_on(
    rendered: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--render", "--rows-per-shard", "3")
    load, done = hub_pairs.load_pair, []

    def breaks(row: Any, roots: Roots) -> Any:
        done.append(row["row_id"])
        if len(done) == 5:
            raise OSError("no space left on device")
        return load(row, roots)

    monkeypatch.setattr(hub_pairs, "load_pair", breaks)
    assert push(manifest, tmp_path / "out", *options) == 1
    assert [path.name for path in (tmp_path / "out/data").iterdir()] == ["train-00000-of-00003.parquet"]
    assert push(manifest, tmp_path / "out", *options) == 0
    assert done[5:] == [3, 4, 5, 6]  # the first shard is not made again
    for path in (rendered / "data").iterdir():
        assert pyarrow.parquet.read_table(tmp_path / "out/data" / path.name).equals(pyarrow.parquet.read_table(path))
    other = tmp_path / "fewer.jsonl"
    write_rows(other, read_rows(manifest)[1:5])
    (manifest.parent / "fewer.jsonl").write_bytes(other.read_bytes())
    assert push(manifest.parent / "fewer.jsonl", tmp_path / "out", *options) == 0
    shards = sorted((tmp_path / "out/data").iterdir())
    assert [row for path in shards for row in pyarrow.parquet.read_table(path)["row_id"].to_pylist()] == [1, 2, 3, 4]


@pytest.mark.parametrize("render_too", [False, True], ids=["manifest", "rendered"])
def test_pushed_and_streamed_back(
    hub: HubServer,
    manifest: Path,
    corpus: Roots,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    render_too: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    options = ["--push", REPO, "--private", "--tag", "v1", *(["--render", "--rows-per-shard", "3"] * render_too)]
    assert push(manifest, tmp_path / "out", *options) == 0
    repository = hub.repositories["datasets", REPO]
    assert repository.private and repository.tags == {"v1": repository.head}
    content = {path for path in repository.commits[repository.head] if path != ".gitattributes"}
    shards = {f"data/train-0000{n}-of-00003.parquet" for n in range(3)} if render_too else set()
    assert content == {"README.md", "pairs.jsonl"} | shards
    assert TOKEN not in caplog.text

    address = f"hf://datasets/{REPO}@v1"
    config = parse_config({"data": {"pairs_manifest": address}}, source="test")
    assert config.data.pairs_manifest == address  # both slashes
    roots = [str(corpus.clean_music_dir), str(corpus.rir_dir), str(corpus.noise_dir)] * (not render_too)
    command = [sys.executable, "-c", STREAM, str(tmp_path / "streamed.npz"), address, *roots]
    variables = {**os.environ, **environment(hub, tmp_path / "home")}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    streamed = np.load(tmp_path / "streamed.npz")
    expected = list(loader(manifest, corpus))
    assert streamed["row_id"].tolist() == [row_id for batch in expected for row_id in batch["row_id"]]
    wanted = torch.cat([batch["recordings"] for batch in expected])
    np.testing.assert_allclose(streamed["recordings"], wanted, atol=2e-6)


STREAM = """
import sys, numpy as np, torch
from pathlib import Path
from training.data import make_loader
from training.sources import Roots
out, address, *folders = sys.argv[1:]
roots = Roots(*map(Path, folders)) if folders else None
batches = list(make_loader(address, roots, batch_size=2, clip_seconds=0.2, epochs=1))
ids = [row_id for batch in batches for row_id in batch["row_id"]]
np.savez(out, row_id=ids, recordings=torch.cat([batch["recordings"] for batch in batches]))
"""


def test_the_card_names_sources_and_licences(rendered: Path, manifest: Path) -> None:
    card = (rendered / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "cc0-1.0"  # all sources of the miniature corpus
    assert header["configs"][0]["data_files"] == [{"split": "train", "path": "data/*.parquet"}]
    music = [row["music_path"] for row in read_rows(manifest)]
    assert f"| music | train | CC0-1.0 | {len(music)} |" in card
    assert f"{COUNT} pairs" in card


def test_bad_input_gets_one_sentence(
    manifest: Path, rendered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def complaint(*options: str, pairs: Path = manifest, out: Path = tmp_path / "new") -> str:
        assert push(pairs, out, *options) == 1
        error = capsys.readouterr().err.strip()
        assert error.count("\n") == 0
        return error

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert "choose another folder" in complaint(out=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    bad = [dict(row) for row in read_rows(manifest)]
    bad[2]["music_path"] = "../../secret.wav"
    write_rows(tmp_path / "bad.jsonl", bad)
    assert "music_path" in complaint(pairs=tmp_path / "bad.jsonl")
    assert "at least 1" in complaint("--rows-per-shard", "0")
    assert "does not exist" in complaint(pairs=tmp_path / "missing.jsonl")
    assert not (tmp_path / "new").exists()


def test_damaged_shards_are_named(rendered: Path, tmp_path: Path, hub: HubServer) -> None:
    row = pyarrow.parquet.read_table(next((rendered / "data").iterdir())).to_pylist()[0]
    with pytest.raises(ValueError, match=f"row {row['row_id']}: clean cannot be decoded"):
        hub_pairs.decode({**row, "clean": {"bytes": b"noise", "path": "x.flac"}})
    with pytest.raises(ValueError, match="clean has the shape"):
        hub_pairs.decode({**row, "seconds": 0.25, "recordings": []} | {"num_takes": 0})
    with pytest.raises(ValueError, match="0 recordings, expected"):
        hub_pairs.decode({**row, "recordings": []})
    with pytest.raises(ValueError, match="org/nobody"):
        make_loader("hf://datasets/org/nobody", batch_size=1)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="has no column channels"):
        make_loader(tmp_path / "other.parquet", batch_size=1)
