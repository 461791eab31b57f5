"""Batches: their levels and slots, and that no row is lost or repeated by workers, processes, epochs and resuming."""

import functools
import http.server
import itertools
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.data import LEVEL_SPREAD_DB, PairLoader, choose_crop, make_example, make_loader
from training.degrade import render
from training.jsonl import read_rows
from training.make_synth_pairs import main
from training.prerendered import PrerenderedPairs
from training.sources import Roots

COUNT = 14
BATCH = 4


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def folder(corpus: Roots, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 14 rows, `pairs.jsonl`, and the same rows as shards in `mm`."""
    folder = tmp_path_factory.mktemp("data")
    sources = ["--clean", corpus.clean_music_dir, "--rirs", corpus.rir_dir, "--noise", corpus.noise_dir]
    what = ["--count", COUNT, "--seconds", 0.5, "--conditions", "crowd:5,room:4,room_crowd:4,phone:1"]
    what += ["--out", folder / "pairs.jsonl", "--memmap", folder / "mm"]
    assert main([*map(str, [*sources, *what])]) == 0
    return folder


def loader(folder: Path, corpus: Roots, stored: bool, **options: Any) -> PairLoader:
    settings: dict[str, Any] = {"batch_size": BATCH, "clip_seconds": 0.2, **options}
    if stored:
        return make_loader(folder / "mm", shuffle_seed=3, **settings)
    return make_loader(folder / "pairs.jsonl", corpus, **settings)


def take(batches: PairLoader, count: int) -> list[dict[str, Any]]:
    return list(itertools.islice(batches, count))


def ids(batches: list[dict[str, Any]]) -> list[int]:
    return [row_id for batch in batches for row_id in batch["row_id"]]


def assert_same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one["row_id"] == other["row_id"]
        for key in ("recordings", "clean", "early", "num_slots"):
            assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize("stored", [False, True], ids=["manifest", "memmap"])
def test_batch_format(folder: Path, corpus: Roots, stored: bool) -> None:
    samples = round(0.2 * 44_100)
    rows = {row["row_id"]: row for row in read_rows(folder / "pairs.jsonl")}
    for batch in loader(folder, corpus, stored, epochs=1):
        size = len(batch["row_id"])
        assert batch["recordings"].shape == (size, 4, samples)
        assert batch["clean"].shape == batch["early"].shape == (size, samples)
        assert {batch[key].dtype for key in ("recordings", "clean", "early")} == {torch.float32}
        for number, row_id in enumerate(batch["row_id"]):
            row = rows[row_id]
            slots = min(row["channels"] + row["num_takes"] - 1, 4)
            assert batch["num_slots"][number] == slots
            assert batch["condition"][number] == row["condition"]
            energy = batch["recordings"][number].square().sum(-1)
            assert torch.all(energy[:slots] > 0) and torch.all(energy[slots:] == 0)


def test_slots_and_level_against_the_rendered_pair(folder: Path, corpus: Roots) -> None:
    """Slot 0 is the channel of the target, slot 1 the other side, then that channel of the further takes.

    Every take has the same RMS over its channels, and so has the clean excerpt, as in the pipeline.
    """
    batches = take(loader(folder, corpus, stored=False, clip_seconds=None, epochs=1), 4)
    rows = {row["row_id"]: row for row in read_rows(folder / "pairs.jsonl")}
    seen: Counter[int] = Counter()
    levels_db: list[float] = []
    for batch in batches:
        for number, row_id in enumerate(batch["row_id"]):
            pair = render(rows[row_id], corpus)
            slots = batch["recordings"][number].numpy()
            channel = max(range(len(pair.clean)), key=lambda c: np.corrcoef(slots[0], pair.recordings[0, c])[0, 1])
            level = np.std(slots[0]) / np.std(pair.recordings[0, channel]) * np.sqrt(np.mean(pair.recordings[0] ** 2))
            levels_db.append(20 * np.log10(level))
            takes = [level / np.sqrt(np.mean(take**2)) * take for take in pair.recordings]
            expected = [takes[0][channel], *np.delete(takes[0], channel, axis=0), *(t[channel] for t in takes[1:])]
            for slot, waveform in enumerate(expected[:4]):
                np.testing.assert_allclose(slots[slot], waveform, atol=1e-4)
            gain = level / np.sqrt(np.mean(pair.clean**2))
            np.testing.assert_allclose(batch["clean"][number], gain * pair.clean[channel], atol=1e-4)
            np.testing.assert_allclose(batch["early"][number], gain * pair.early[channel], atol=1e-4)
            seen[channel] += len(pair.clean) == 2
    assert seen[0] and seen[1]
    standard_error = LEVEL_SPREAD_DB / np.sqrt(len(levels_db))
    assert np.mean(levels_db) == pytest.approx(-23.0, abs=3 * standard_error) and np.std(levels_db) > 1.0


def test_levels_of_stored_pairs_are_those_of_rendered_ones(folder: Path, corpus: Roots) -> None:
    stored = PrerenderedPairs(folder / "mm")
    for number, row in enumerate(read_rows(folder / "pairs.jsonl")):
        takes, clean = stored[number].levels()
        expected = render(row, corpus)
        np.testing.assert_allclose(takes, [np.sqrt(np.mean(take**2)) for take in expected.recordings], rtol=1e-3)
        np.testing.assert_allclose(clean, np.sqrt(np.mean(expected.clean**2)), rtol=1e-3)


@pytest.mark.parametrize("stored", [False, True], ids=["manifest", "memmap"])
def test_an_epoch_is_every_row_once(folder: Path, corpus: Roots, stored: bool) -> None:
    batches = list(loader(folder, corpus, stored, epochs=1))
    assert [len(batch["row_id"]) for batch in batches] == [4, 4, 4, 2]
    assert sorted(ids(batches)) == list(range(COUNT))


@pytest.mark.parametrize("stored", [False, True], ids=["manifest", "memmap"])
def test_endless_epochs_lose_and_repeat_nothing(folder: Path, corpus: Roots, stored: bool) -> None:
    rows = ids(take(loader(folder, corpus, stored), 7))
    assert sorted(rows[:COUNT]) == sorted(rows[COUNT : 2 * COUNT]) == list(range(COUNT))
    assert (rows[:COUNT] == rows[COUNT:]) is (not stored)


def test_crops_differ_between_epochs(folder: Path, corpus: Roots) -> None:
    batches = take(loader(folder, corpus, stored=False), 7)
    clips: dict[int, list[tuple[int, torch.Tensor]]] = {0: [], 1: []}
    for position, (row_id, clip) in enumerate(
        (row_id, clip) for batch in batches for row_id, clip in zip(batch["row_id"], batch["clean"], strict=True)
    ):
        clips[position // COUNT].append((row_id, clip))
    assert not any(torch.equal(first[1], second[1]) for first, second in zip(clips[0], clips[1], strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stored", [False, True], ids=["manifest", "memmap"])
def test_resuming_twice_is_exact(folder: Path, corpus: Roots, stored: bool, num_workers: int) -> None:
    """Stopped in the middle of an epoch, then again after its end; workers were ahead each time."""
    whole = take(loader(folder, corpus, stored), 7)
    first = loader(folder, corpus, stored, num_workers=num_workers)
    parts = take(first, 2)
    second = loader(folder, corpus, stored, num_workers=num_workers)
    second.load_state_dict(first.state_dict())
    parts += take(second, 3)
    third = loader(folder, corpus, stored, num_workers=2 - num_workers)
    third.load_state_dict(second.state_dict())
    parts += take(third, 2)
    assert_same(parts, whole)


@pytest.mark.parametrize("stored", [False, True], ids=["manifest", "memmap"])
def test_two_processes_share_the_rows_and_resume(folder: Path, corpus: Roots, stored: bool) -> None:
    """Together they see every row once an epoch; the state of either one resumes both."""
    states, seen = [], []
    for rank in range(2):
        batches = loader(folder, corpus, stored, rank=rank, world_size=2, batch_size=2)
        seen.append(take(batches, 2))
        states.append(batches.state_dict())
    assert states[0] == states[1]
    for rank in range(2):
        batches = loader(folder, corpus, stored, rank=rank, world_size=2, batch_size=2)
        batches.load_state_dict(states[1 - rank])
        seen[rank] += take(batches, 5)
    pairs = zip(ids(seen[0]), ids(seen[1]), strict=True)
    rows = list(itertools.chain.from_iterable(pairs))
    assert sorted(rows[:COUNT]) == sorted(rows[COUNT:]) == list(range(COUNT))
    single = take(loader(folder, corpus, stored), 7)
    assert rows == ids(single)


def test_iterating_again_goes_on(folder: Path, corpus: Roots) -> None:
    batches = loader(folder, corpus, stored=True)
    assert_same(take(batches, 2) + take(batches, 3), take(loader(folder, corpus, stored=True), 5))


def test_conditions_can_be_chosen(folder: Path, corpus: Roots) -> None:
    rows = read_rows(folder / "pairs.jsonl")
    expected = sorted(row["row_id"] for row in rows if row["condition"] in ("crowd", "room"))
    for stored in (False, True):
        chosen = loader(folder, corpus, stored, conditions=("crowd", "room"), epochs=1)
        assert sorted(ids(list(chosen))) == expected
        interrupted = loader(folder, corpus, stored, conditions=("crowd", "room"), epochs=1)
        rest = loader(folder, corpus, stored, conditions=("crowd", "room"), epochs=1)
        first = take(interrupted, 1)
        rest.load_state_dict(interrupted.state_dict())
        assert sorted(ids(first) + ids(list(rest))) == expected


def test_a_folder_that_has_grown_begins_a_new_epoch(folder: Path, corpus: Roots, tmp_path: Path) -> None:
    small = tmp_path / "mm"
    shutil.copytree(folder / "mm", small)
    before = make_loader(small, batch_size=BATCH, clip_seconds=0.2)
    take(before, 2)
    sources = ["--clean", corpus.clean_music_dir, "--rirs", corpus.rir_dir, "--noise", corpus.noise_dir]
    what = ["--count", 2, "--first-row", 100, "--seconds", 0.5, "--out", tmp_path / "more.jsonl", "--memmap", small]
    assert main([*map(str, [*sources, *what])]) == 0
    after = make_loader(small, batch_size=BATCH, clip_seconds=0.2)
    with pytest.warns(UserWarning, match="had 14 pairs and has 16"):
        after.load_state_dict(before.state_dict())
    assert after.state_dict()["epoch"] == 1
    assert sorted(ids(take(after, 4))) == [*range(COUNT), 100, 101]


def test_rendered_pairs_load_as_a_manifest(folder: Path, corpus: Roots, tmp_path: Path) -> None:
    sources = ["--clean", corpus.clean_music_dir, "--rirs", corpus.rir_dir, "--noise", corpus.noise_dir]
    what = ["--count", 3, "--seconds", 0.5, "--out", tmp_path / "pairs.jsonl", "--render", tmp_path / "flac"]
    assert main([*map(str, [*sources, *what])]) == 0
    roots = Roots(tmp_path, tmp_path, tmp_path, pairs_dir=tmp_path / "flac")
    rendered = list(make_loader(tmp_path / "flac" / "pairs.jsonl", roots, batch_size=3, epochs=1))[0]
    direct = list(make_loader(tmp_path / "pairs.jsonl", corpus, batch_size=3, epochs=1))[0]
    assert rendered["row_id"] == direct["row_id"]
    torch.testing.assert_close(rendered["recordings"], direct["recordings"], atol=1e-5, rtol=0)
    torch.testing.assert_close(rendered["clean"], direct["clean"], atol=1e-5, rtol=0)


def test_manifest_streams_from_a_url(folder: Path, corpus: Roots) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads URLs with aiohttp")
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/pairs.jsonl"
        streamed = take(make_loader(url, corpus, batch_size=BATCH, clip_seconds=0.2), 1)
        server.shutdown()
    assert_same(streamed, take(loader(folder, corpus, stored=False), 1))


def test_crop_has_music_and_stays_inside() -> None:
    clean = np.zeros(100_000, dtype=np.float32)
    clean[50_000:] = 0.1
    starts = [choose_crop(clean, 5000, np.random.default_rng(seed)) for seed in range(200)]
    assert 0 <= min(starts) and max(starts) <= 95_000
    assert np.mean([clean[start : start + 5000].any() for start in starts]) > 0.9
    assert choose_crop(clean, 100_000, np.random.default_rng(0)) == 0


def test_short_pairs_are_padded_and_silence_is_not_lifted(folder: Path, corpus: Roots) -> None:
    pair = render(read_rows(folder / "pairs.jsonl")[0], corpus)
    example = make_example(pair, np.random.default_rng(0), 30_000, 4)
    assert example["clean"].shape == (30_000,)
    assert not example["clean"][22_050:].any() and example["clean"][:22_050].any()
    silent = type(pair)(0 * pair.recordings, 0 * pair.clean, 0 * pair.early, pair.early_response, pair.sample_rate)
    assert not make_example(silent, np.random.default_rng(0), None, 4)["recordings"].any()


def test_errors_say_what_to_do(folder: Path, corpus: Roots, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 2}
    with pytest.raises(ValueError, match="make_synth_pairs"):
        make_loader(tmp_path / "missing.jsonl", corpus, **options)
    with pytest.raises(ValueError, match="no rendered shards"):
        make_loader(tmp_path, corpus, **options)
    with pytest.raises(ValueError, match="folders of music and rooms"):
        make_loader(folder / "pairs.jsonl", **options)
    with pytest.raises(ValueError, match="training wants 48000"):
        make_loader(folder / "mm", sample_rate=48_000, **options)
    with pytest.raises(ValueError, match="training wants 48000"):
        next(iter(make_loader(folder / "pairs.jsonl", corpus, sample_rate=48_000, **options)))
    with pytest.raises(ValueError, match="no pairs"):
        next(iter(make_loader(folder / "mm", conditions=("none",), **options)))
    with pytest.raises(ValueError, match="rank 2"):
        make_loader(folder / "mm", rank=2, world_size=2, **options)
    headless = tmp_path / "headless.jsonl"
    headless.write_text("\n".join((folder / "pairs.jsonl").read_text().splitlines()[1:]))
    with pytest.raises(ValueError, match="no header row"):
        make_loader(headless, corpus, **options)
    broken = tmp_path / "broken.jsonl"
    text = (folder / "pairs.jsonl").read_text()
    broken.write_text(text.replace('"seconds": 0.5, "channels"', '"seconds": 0.0, "channels"'))
    with pytest.raises(ValueError, match="manifest row 0: seconds"):
        next(iter(make_loader(broken, corpus, **options)))
