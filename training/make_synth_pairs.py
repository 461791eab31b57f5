"""Draws degraded pairs from the indexes of clean music, rooms and noise, and writes their manifest.

    python -m training.make_synth_pairs --clean data/clean --rirs data/rirs --noise data/noise \\
        --split train --count 3000 --seconds 6 --out data/pairs.jsonl

A row renders to the same bits wherever it is read. `--render` writes the pairs as FLAC as well, `--memmap` as shards
for training; both go on where they were stopped when the same command is given again.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm.auto import tqdm

from training import prerendered
from training.degrade import CONDITIONS, RANGES, TRAINING_CONDITIONS, draw, render
from training.jsonl import read_rows, write_rows
from training.manifest import SPLITS, check_header, check_row, read_header, versions
from training.pairs import storage_gain
from training.sources import Roots, read_music

SILENCE_DB = -45.0  # excerpts and channels quieter than this are not drawn
EXCERPT_TRIALS = 8  # offsets tried in a track before another one is chosen
TRACK_TRIALS = 50


def parse_weights(text: str) -> dict[str, float]:
    """`crowd:1,room:0.5` -> {"crowd": 1.0, "room": 0.5}."""
    weights = {}
    for item in text.split(","):
        name, _, weight = item.partition(":")
        try:
            weights[name.strip()] = float(weight or 1.0)
        except ValueError:
            raise ValueError(f"{item!r} is not NAME:WEIGHT") from None
    if min(weights.values()) < 0.0 or sum(weights.values()) <= 0.0:
        raise ValueError(f"{text!r}: weights must be positive")
    return weights


def shares(weights: Mapping[str, float], count: int, rng: np.random.Generator) -> list[str]:
    """`count` names in random order, as close to the weights as whole numbers go (largest remainders)."""
    total = sum(weights.values())
    exact = {name: count * weight / total for name, weight in weights.items()}
    whole = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: whole[name] - exact[name])
    for name in by_remainder[: count - sum(whole.values())]:
        whole[name] += 1
    names = [name for name, number in whole.items() for _ in range(number)]
    return [names[number] for number in rng.permutation(count)]


class Drawer:
    """Draws manifest rows of one split; a row depends on the seed, its id and the indexes only."""

    def __init__(
        self,
        roots: Roots,
        split: str,
        *,
        seconds: float,
        sample_rate: int,
        ranges: str,
        takes: Mapping[str, float],
        stereo_probability: float,
        rir_kinds: Mapping[str, float],
        min_bandwidth_hz: float,
        seed: int,
    ) -> None:
        self.roots = roots
        self.split = split
        self.seconds = seconds
        self.sample_rate = sample_rate
        self.ranges = ranges
        self.takes = {int(number): weight for number, weight in takes.items()}
        if not set(self.takes) <= {1, 2, 3, 4}:
            raise ValueError(f"takes are {sorted(self.takes)}: a performance has 1 to 4")
        self.stereo_probability = stereo_probability
        self.seed = seed
        self.music = [
            row
            for row in _of_split(roots.clean_music_dir / "inventory.jsonl", split)
            if row["seconds"] > seconds and row["bandwidth_hz"] >= min_bandwidth_hz
        ]
        self.noise = _of_split(roots.noise_dir / "index.jsonl", split)
        shortest = RANGES[ranges].rt60_s[0]
        self.rirs = [
            row
            for row in _of_split(roots.rir_dir / "index.jsonl", split)
            if row["t20_s"] is not None and row["t20_s"] >= shortest and rir_kinds.get(row["kind"], 0.0) > 0.0
        ]
        self.rir_kinds = rir_kinds
        for name, rows in (("music", self.music), ("rooms", self.rirs)):
            if not rows:
                raise ValueError(
                    f"no {name} for the split {split!r} that is long enough: prepare more, or ask for less"
                )
        lengths = np.sqrt([row["seconds"] for row in self.music])
        self.music_weights = lengths / lengths.sum()

    def row(self, row_id: int, condition: str) -> dict[str, Any]:
        """The manifest row of this id."""
        seed = int(np.random.SeedSequence([self.seed, row_id]).generate_state(1, np.uint64)[0] >> np.uint64(11))
        rng = np.random.default_rng(seed)
        numbers = list(self.takes)
        weights = np.array([self.takes[number] for number in numbers])
        num_takes = int(rng.choice(numbers, p=weights / weights.sum()))
        rir_row = self._choose_room(rng, num_takes)
        music_row, offset_s, channels = self._choose_excerpt(rng)
        row = draw(
            rng,
            condition,
            music_row,
            rir_row,
            self.noise,
            offset_s=offset_s,
            seconds=self.seconds,
            sample_rate=self.sample_rate,
            channels=channels,
            num_takes=num_takes,
            ranges=self.ranges,
        )
        return check_row({"row_id": row_id, "seed": seed, "split": self.split, **row})

    def _choose_room(self, rng: np.random.Generator, num_takes: int) -> Mapping[str, Any]:
        """A kind by its weight, then a venue, then one of its sets, with enough microphones."""
        rooms = [row for row in self.rirs if row["num_mics"] >= num_takes]
        if not rooms:
            raise ValueError(f"no venue of the split {self.split!r} has {num_takes} microphones: ask for fewer takes")
        kinds = sorted({row["kind"] for row in rooms})
        weights = np.array([self.rir_kinds[kind] for kind in kinds])
        kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
        venues = sorted({row["venue"] for row in rooms if row["kind"] == kind})
        venue = venues[int(rng.integers(len(venues)))]
        sets = [row for row in rooms if row["kind"] == kind and row["venue"] == venue]
        return sets[int(rng.integers(len(sets)))]

    def _choose_excerpt(self, rng: np.random.Generator) -> tuple[Mapping[str, Any], float, int]:
        """A track by the square root of its length, an excerpt that is not silent, and 1 or 2 channels of it."""
        for _ in range(TRACK_TRIALS):
            track = self.music[int(rng.choice(len(self.music), p=self.music_weights))]
            stereo = track["channels"] >= 2 and rng.random() < self.stereo_probability
            for _ in range(EXCERPT_TRIALS):
                offset_s = round(float(rng.uniform(0.0, track["seconds"] - self.seconds)), 3)
                levels_db = self._levels_db(track, offset_s, 2 if stereo else 1)
                if levels_db.min() > SILENCE_DB:
                    return track, offset_s, len(levels_db)
        raise ValueError(f"{TRACK_TRIALS} tracks were drawn and all were silent: is this music?")

    def _levels_db(self, track: Mapping[str, Any], offset_s: float, channels: int) -> np.ndarray:
        excerpt = read_music(
            {
                "music_path": track["path"],
                "music_stems": track.get("stems") or [],
                "music_offset_s": offset_s,
                "lead_in_s": 0.0,
                "seconds": self.seconds,
                "sample_rate": self.sample_rate,
                "channels": channels,
            },
            self.roots,
        )
        return 10.0 * np.log10(np.square(excerpt, dtype=np.float64).mean(axis=-1) + 1e-12)


def _of_split(index: Path, split: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(index) if row["split"] == split]


def render_flac(row: Mapping[str, Any], roots: Roots, folder: Path) -> dict[str, Any]:
    """Write one pair as FLAC, 24 bit, unless it is there -> the manifest row of kind `rendered` that reads it."""
    name = f"{row['row_id']:08d}"
    takes = [f"{name}.take{take}.flac" for take in range(row["num_takes"])]
    clean, early = f"{name}.clean.flac", f"{name}.early.flac"
    if not all((folder / path).exists() for path in (*takes, clean, early)):
        pair = render(row, roots)
        gain = storage_gain(pair)
        for path, waveform in zip((*takes, clean, early), (*pair.recordings, pair.clean, pair.early), strict=True):
            part = folder / f"{path}.part"
            soundfile.write(part, gain * waveform.T, row["sample_rate"], format="FLAC", subtype="PCM_24")
            os.replace(part, folder / path)
    kept = ("row_id", "seed", "split", "condition", "sample_rate", "seconds", "channels", "num_takes")
    rendered = {"kind": "rendered", "recordings": takes, "clean": clean, "early": early, "offset_s": 0.0}
    return check_row({**rendered, **{key: row[key] for key in kept}})


def render_all(rows: Sequence[Mapping[str, Any]], roots: Roots, folder: Path, num_workers: int) -> None:
    """FLAC files of all rows, and `pairs.jsonl` beside them, which reads them without the music and the rooms."""
    folder.mkdir(parents=True, exist_ok=True)
    work = partial(render_flac, roots=roots, folder=folder)
    if num_workers <= 1:
        rendered = [work(row) for row in tqdm(rows, desc="rendering", unit="row")]
    else:
        with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
            rendered = list(tqdm(pool.map(work, rows), total=len(rows), desc="rendering", unit="row"))
    write_rows(folder / "pairs.jsonl", rendered, versions=versions())


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.make_synth_pairs", description=__doc__.split("\n")[0] if __doc__ else None
    )
    parser.add_argument("--clean", type=Path, default=Path("data/clean"), help="folder of clean music")
    parser.add_argument("--rirs", type=Path, default=Path("data/rirs"), help="folder of room impulse responses")
    parser.add_argument("--noise", type=Path, default=Path("data/noise"), help="folder of crowd and other noise")
    parser.add_argument("--split", choices=SPLITS, default="train", help="of music, venues and noise alike")
    parser.add_argument("--count", type=int, required=True, help="number of rows")
    parser.add_argument("--first-row", type=int, default=0, help="id of the first row, to add rows to others")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a pair")
    parser.add_argument("--sample-rate", type=int, default=44_100, help="in Hz")
    parser.add_argument(
        "--conditions",
        default=",".join(CONDITIONS),
        help=f"NAME:WEIGHT,... of {', '.join(TRAINING_CONDITIONS)} (default: %(default)s, all alike)",
    )
    parser.add_argument(
        "--takes", default="1:0.7,2:0.15,3:0.1,4:0.05", help="recordings per performance, N:WEIGHT,..."
    )
    parser.add_argument("--stereo-probability", type=float, default=0.5, help="of stereo music staying stereo")
    parser.add_argument("--rir-kinds", default="measured:1,simulated:2,generated:1", help="KIND:WEIGHT,...")
    parser.add_argument("--min-bandwidth-hz", type=float, default=15_000.0, help="of the clean music")
    parser.add_argument("--ranges", choices=sorted(RANGES), default="train", help="what SNR, DRR and RT60 span")
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--out", type=Path, required=True, help="the manifest, JSON lines")
    parser.add_argument("--render", type=Path, metavar="DIR", help="also write the pairs as FLAC")
    parser.add_argument("--memmap", type=Path, metavar="DIR", help="also write the pairs as shards for training")
    parser.add_argument("--num-workers", type=int, default=1, help="processes that render")
    parser.add_argument("--overwrite", action="store_true", help="draw again if the manifest is there")
    return parser


def make_rows(options: argparse.Namespace, roots: Roots) -> list[dict[str, Any]]:
    """The rows of the manifest that the options ask for, drawn and written, or read if it is there already."""
    settings = {
        key: value
        for key, value in sorted(vars(options).items())
        if key not in ("out", "render", "memmap", "num_workers", "overwrite", "clean", "rirs", "noise")
    }
    if options.out.exists() and not options.overwrite:
        header = read_header(options.out)
        if header.get("settings") != settings:
            raise ValueError(f"{options.out} was drawn with other settings: choose another file, or give --overwrite")
        check_header(header)
        return [check_row(row) for row in read_rows(options.out)]
    conditions = parse_weights(options.conditions)
    if unknown := set(conditions) - set(TRAINING_CONDITIONS):
        known = ", ".join(TRAINING_CONDITIONS)
        raise ValueError(f"unknown condition {', '.join(sorted(unknown))}: choose from {known}")
    if options.count < 1 or options.first_row < 0:
        raise ValueError("--count must be at least 1, --first-row at least 0")
    drawer = Drawer(
        roots,
        options.split,
        seconds=options.seconds,
        sample_rate=options.sample_rate,
        ranges=options.ranges,
        takes=parse_weights(options.takes),
        stereo_probability=options.stereo_probability,
        rir_kinds=parse_weights(options.rir_kinds),
        min_bandwidth_hz=options.min_bandwidth_hz,
        seed=options.seed,
    )
    order = shares(conditions, options.count, np.random.default_rng([options.seed, options.first_row]))
    rows = [
        drawer.row(options.first_row + number, condition)
        for number, condition in enumerate(tqdm(order, desc="drawing", unit="row"))
    ]
    write_rows(options.out, rows, seed=options.seed, versions=versions(), settings=settings)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    roots = Roots(options.clean, options.rirs, options.noise)
    try:
        rows = make_rows(options, roots)
        if options.memmap:
            prerendered.write(options.memmap, rows, roots, num_workers=options.num_workers)
        if options.render:
            render_all(rows, roots, options.render, options.num_workers)
    except (ValueError, OSError) as error:
        print(f"make_synth_pairs: {error}", file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
