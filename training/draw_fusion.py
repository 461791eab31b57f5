"""Draws the fusion benchmark's manifest, once: it is committed and then frozen.

    python -m training.draw_fusion --data data --out training/benchmark/fusion.jsonl

48 performances, each recorded by four microphones: half of them in the measured warehouse and half in simulated
venues, half of each with a room and a crowd only and half with everything a phone does, shared equally by the
collections of music. Every recording has its own place, crowd and device, and is off by what an alignment leaves over.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm.auto import tqdm

from training.benchmark_audio import describe_takes
from training.degrade import RANGES, draw
from training.draw_benchmark import (
    RANGE_SET,
    SAMPLE_RATE,
    SECONDS,
    Row,
    by_key,
    find_excerpt,
    taking_turns,
    venues_in_turn,
)
from training.jsonl import read_rows, write_rows
from training.manifest import check_row, versions
from training.pairs import load_pair
from training.prepare_benchmark import FOLDER, noise_paths
from training.prepare_rirs import make_venue, split_of
from training.sources import Roots

SEED = 2026
SPLIT = "test"
NUM_PERFORMANCES, NUM_TAKES = 48, 4
CONDITIONS = ("room_crowd", "phone")
KINDS = ("measured", "simulated")
VENUE_SEED = 0  # that of the simulated venues, as training.prepare_rirs has it by default
DIGITS = 6  # of every number in the manifest, which stays small


def rounded(value: Any) -> Any:
    """Numbers, also those in lists, to 6 significant digits."""
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def simulated_venues(folder: Path, count: int) -> list[Row]:
    """The first simulated test venues that have enough microphones and ring long enough, made below `folder`."""
    found: list[Row] = []
    with tqdm(total=count, desc="simulated venues", unit="venue") as bar:
        for number in itertools.count():
            if split_of(number) != SPLIT:
                continue
            row = make_venue(number, "simulated", folder, VENUE_SEED)
            if row["num_mics"] >= NUM_TAKES and row["t20_s"] >= RANGES[RANGE_SET].rt60_s[0]:
                found.append(row)
                bar.update()
            if len(found) == count:
                return found
    raise AssertionError("there is always another venue")


def noise_rows(folder: Path) -> list[Row]:
    """Test noise that training.prepare_benchmark can make: synthetic, of the index, and what the test set names."""
    rows = {row["path"]: row for row in read_rows(folder / "index.jsonl") if row["split"] == SPLIT}
    rows = {path: row for path, row in rows.items() if not path.startswith("recorded/")}
    named = {path for row in read_rows(FOLDER / "test.jsonl") for path in noise_paths(row)}
    for path in sorted(named - set(rows)):
        kind = path.split("/")[0]
        seconds = round(soundfile.info(folder / path).duration, 3)
        rows[path] = {"path": path, "kind": "crowd" if kind == "recorded" else kind, "seconds": seconds}
    return [rows[path] for path in sorted(rows)]


def draw_rows(
    roots: Roots, music: Sequence[Row], venues: Sequence[Row], noise: Sequence[Row], count: int = NUM_PERFORMANCES
) -> list[Row]:
    """Manifest rows with the fingerprints of what they render to here.

    Args:
        music, venues, noise: Rows of the indexes; all that may be used, of one split.
    """
    rng = np.random.default_rng(SEED)
    collections = by_key([row for row in music if row["seconds"] > SECONDS], "package")
    cells = list(itertools.product(KINDS, CONDITIONS))
    if count % (len(cells) * len(collections)):
        raise ValueError(
            f"{count} performances cannot be shared by {len(cells)} conditions and {len(collections)} collections"
        )
    fitting = [row for row in venues if row["num_mics"] >= NUM_TAKES and row["t20_s"] >= RANGES[RANGE_SET].rt60_s[0]]
    in_turn = {kind: venues_in_turn(rng, fitting, kind) for kind in KINDS}
    tracks = [taking_turns(rng, rows) for rows in collections.values()]
    rows = []
    for row_id in tqdm(range(count), desc="drawing", unit="performance"):
        turn, cell = divmod(row_id, len(cells))
        kind, condition = cells[cell]
        offset_s = None
        while offset_s is None:
            track = next(tracks[turn % len(collections)])
            offset_s = find_excerpt(rng, track, roots)
        seed = int(rng.integers(2**53))
        drawn: Mapping[str, Any] = draw(
            np.random.default_rng(seed),
            condition,
            track,
            next(in_turn[kind]),
            noise,
            offset_s=offset_s,
            seconds=SECONDS,
            sample_rate=SAMPLE_RATE,
            channels=min(track["channels"], 2),
            num_takes=NUM_TAKES,
            ranges=RANGE_SET,
        )
        drawn = {name: rounded(value) for name, value in drawn.items()}
        row = check_row({"row_id": row_id, "seed": seed, "split": SPLIT, **drawn})
        rows.append(row | {"rendered": describe_takes(load_pair(row, roots))})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.draw_fusion", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with clean, rirs and noise")
    parser.add_argument("--out", type=Path, required=True, help="the manifest, JSON lines")
    options = parser.parse_args(argv)
    try:
        if options.out.exists():
            raise ValueError(
                f"{options.out} is there, and a benchmark that is redrawn is another benchmark: remove it"
            )
        roots = Roots(*(options.data / name for name in ("clean", "rirs", "noise")))
        music, rooms = (
            [row for row in read_rows(index) if row["split"] == SPLIT]
            for index in (roots.clean_music_dir / "inventory.jsonl", roots.rir_dir / "index.jsonl")
        )
        venues = [row for row in rooms if row["kind"] == "measured" and row["t20_s"] is not None]
        venues += simulated_venues(roots.rir_dir, NUM_PERFORMANCES // len(KINDS))
        rows = draw_rows(roots, music, venues, noise_rows(roots.noise_dir))
        write_rows(options.out, rows, seed=SEED, versions=versions())
    except (ValueError, OSError) as error:
        print(f"draw_fusion: {error}", file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
