"""Fetches and makes what the benchmark needs, and nothing else.

    python -m training.prepare_benchmark --data data

Music comes from Debian's archive, simulated venues and synthetic crowds are computed from their seeds; the measured
responses and recordings are in `training/benchmark`. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm.auto import tqdm

from training import corpora
from training.crowd import make_bed, write_flac
from training.degrade import LOCAL_NOISES
from training.jsonl import read_rows
from training.manifest import check_row
from training.prepare_rirs import make_venue

FOLDER = Path(__file__).parent / "benchmark"
MANIFESTS = (FOLDER / "test.jsonl", FOLDER / "fusion.jsonl")
BUNDLED = {"measured": FOLDER / "rirs", "recorded": FOLDER / "noise"}  # by the first folder of a path


def noise_paths(row: Mapping[str, Any]) -> set[str]:
    local = {path for kind in LOCAL_NOISES for path in row[f"{kind}_path"] if path}
    return {*row["bed_path"], *local}


def make_noise(path: str, folder: Path) -> None:
    """The synthetic bed of this path, `KIND/SEED-NUMBER.flac`."""
    if (folder / path).exists():
        return
    kind, (seed, number) = PurePosixPath(path).parent.name, PurePosixPath(path).stem.split("-")
    made, waveform = make_bed(int(number), int(seed))
    if made != kind:
        raise ValueError(f"bed {number} of seed {seed} is {made}, not {kind}: the manifest is of another version")
    write_flac(folder / path, waveform)


def make_room(path: str, venue: str, folder: Path) -> None:
    """The simulated or generated venue `KIND-SEED-NUMBER` with its responses in `path`."""
    kind, seed, number = venue.split("-")
    made = make_venue(int(number), kind, folder, int(seed))
    if made["path"] != path:
        raise ValueError(f"{venue} went to {made['path']}, not to {path}: the manifest is of another version")


def copy_bundled(path: str, folder: Path) -> bool:
    """Bring a file that comes with the repository to the data; False if it is none of these."""
    source = BUNDLED.get(PurePosixPath(path).parts[0])
    if source is None:
        return False
    if not (folder / path).exists():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        part = (folder / path).with_name(PurePosixPath(path).name + ".part")
        shutil.copyfile(source / PurePosixPath(path).name, part)
        os.replace(part, folder / path)
    return True


def prepare(rows: Iterable[Mapping[str, Any]], data: Path, workers: int) -> None:
    """Make every file that the rows name below `data`."""
    rows = list(rows)
    wanted = {PurePosixPath(row["music_path"]).parts[0] for row in rows}
    packages = [package for package in corpora.PACKAGES if package.name in wanted]
    if unknown := wanted - {package.name for package in packages}:
        raise ValueError(f"the manifest has music of unknown packages: {', '.join(sorted(unknown))}")
    (data / "clean").mkdir(parents=True, exist_ok=True)
    corpora.prepare_packages(packages, data / "clean", data / "debs")

    noises = {path for row in rows for path in noise_paths(row) if not copy_bundled(path, data / "noise")}
    rooms = {row["rir_path"]: row["venue"] for row in rows if not copy_bundled(row["rir_path"], data / "rirs")}
    work: list[Callable[[], None]] = [partial(make_noise, path, data / "noise") for path in sorted(noises)]
    work += [partial(make_room, path, venue, data / "rirs") for path, venue in sorted(rooms.items())]
    if workers <= 1:
        for make in tqdm(work, desc="crowds and venues"):
            make()
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for made in tqdm([pool.submit(make) for make in work], desc="crowds and venues"):
            made.result()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare_benchmark", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument(
        "--manifest", type=Path, action="append", help="repeatable (default: the test set's and the fusion's)"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(argv)
    try:
        rows = [check_row(row) for path in options.manifest or MANIFESTS for row in read_rows(path)]
        prepare(rows, options.data, options.workers)
    except (ValueError, OSError) as error:
        print(f"prepare_benchmark: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
