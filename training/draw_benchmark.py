"""Draws the benchmark's manifests, once: they are committed and then frozen.

    python -m training.draw_benchmark --split test --count 96 --out training/benchmark/test.jsonl
    python -m training.draw_benchmark --split validation --count 48 --out training/benchmark/validation.jsonl

Equally many clips of every condition, and in each condition of every collection of music and of measured and simulated
venues. No track of a collection and no venue of a kind comes again before all others have had their turn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from training.benchmark_audio import describe
from training.degrade import CONDITIONS, RANGES, draw
from training.jsonl import read_rows, write_rows
from training.manifest import SPLITS, check_row, versions
from training.pairs import load_pair
from training.sources import Roots, read_music

Row = dict[str, Any]
SEED = 2025
SECONDS = 10.0
SAMPLE_RATE = 44_100
RANGE_SET = "benchmark"
QUIETEST_DB = -40.0  # RMS of the quieter channel of an excerpt; nothing is to be heard below
TRIALS = 20


def taking_turns(rng: np.random.Generator, rows: Sequence[Row]) -> Iterator[Row]:
    """The rows in random order, again and again, each time in another one."""
    while True:
        yield from (rows[number] for number in rng.permutation(len(rows)))


def by_key(rows: Sequence[Row], key: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return dict(sorted(groups.items()))


def venues_in_turn(rng: np.random.Generator, rirs: Sequence[Row], kind: str) -> Iterator[Row]:
    """Sets of microphones, one venue of the kind after the other."""
    sets = {
        venue: taking_turns(rng, rows)
        for venue, rows in by_key([row for row in rirs if row["kind"] == kind], "venue").items()
    }
    if not sets:
        raise ValueError(f"no {kind} venue of this split rings long enough: prepare more")
    for venue in taking_turns(rng, [{"venue": name} for name in sets]):
        yield next(sets[venue["venue"]])


def find_excerpt(rng: np.random.Generator, track: Mapping[str, Any], roots: Roots) -> float | None:
    """Offset in seconds of an excerpt in which both channels are loud enough, if there is one."""
    for _ in range(TRIALS):
        offset_s = round(float(rng.uniform(0.0, track["seconds"] - SECONDS)), 3)
        excerpt = read_music(
            {
                "music_path": track["path"],
                "music_stems": track.get("stems") or [],
                "music_offset_s": offset_s,
                "lead_in_s": 0.0,
                "seconds": SECONDS,
                "sample_rate": SAMPLE_RATE,
                "channels": min(track["channels"], 2),
            },
            roots,
        )
        if np.square(excerpt, dtype=np.float64).mean(axis=-1).min() > 10 ** (QUIETEST_DB / 10):
            return offset_s
    return None


def draw_rows(roots: Roots, split: str, count: int) -> list[Row]:
    """Manifest rows with the fingerprints of the audio that they render to here."""
    rng = np.random.default_rng([SEED, SPLITS.index(split)])
    shortest_s = RANGES[RANGE_SET].rt60_s[0]
    music, rirs, noise = (
        [row for row in read_rows(path) if row["split"] == split]
        for path in (
            roots.clean_music_dir / "inventory.jsonl",
            roots.rir_dir / "index.jsonl",
            roots.noise_dir / "index.jsonl",
        )
    )
    collections = by_key([row for row in music if row["seconds"] > SECONDS], "package")
    if count % (len(CONDITIONS) * len(collections)):
        raise ValueError(
            f"{count} clips cannot be shared by {len(CONDITIONS)} conditions and {len(collections)} collections"
        )
    rirs = [row for row in rirs if row["t20_s"] is not None and row["t20_s"] >= shortest_s]
    venues = [venues_in_turn(rng, rirs, kind) for kind in ("measured", "simulated")]
    tracks = [taking_turns(rng, rows) for rows in collections.values()]
    rows = []
    for row_id in tqdm(range(count), desc=f"drawing {split}", unit="clip"):
        turn, condition = divmod(row_id, len(CONDITIONS))
        lap, collection = divmod(turn, len(collections))
        # Shifted from lap to lap, so that no collection and no condition meets one kind of venue only.
        kind = (condition + collection + lap) % len(venues)
        offset_s = None
        while offset_s is None:
            track = next(tracks[collection])
            offset_s = find_excerpt(rng, track, roots)
        seed = int(rng.integers(2**53))
        drawn = draw(
            np.random.default_rng(seed),
            CONDITIONS[condition],
            track,
            next(venues[kind]),
            noise,
            offset_s=offset_s,
            seconds=SECONDS,
            sample_rate=SAMPLE_RATE,
            channels=min(track["channels"], 2),
            ranges=RANGE_SET,
        )
        row = check_row({"row_id": row_id, "seed": seed, "split": split, **drawn})
        rows.append(row | {"rendered": describe(load_pair(row, roots))})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.draw_benchmark", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with clean, rirs and noise")
    parser.add_argument("--split", choices=("validation", "test"), required=True)
    parser.add_argument("--count", type=int, required=True, help="number of clips")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    try:
        if options.out.exists():
            raise ValueError(
                f"{options.out} is there, and a benchmark that is redrawn is another benchmark: remove it"
            )
        roots = Roots(*(options.data / name for name in ("clean", "rirs", "noise")))
        rows = draw_rows(roots, options.split, options.count)
        write_rows(options.out, rows, seed=SEED, versions=versions())
    except (ValueError, OSError) as error:
        print(f"draw_benchmark: {error}", file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
