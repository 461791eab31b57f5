"""Room responses: measured, generated and simulated ones, tidied and indexed.

    python -m training.prepare_rirs --out data/rirs --generate 1000 --simulate 1000 --workers 2 --seed 0
    python -m training.prepare_rirs --out data/rirs --measured FOLDER   # of WAV or FLAC, with an index.json or without
    python -m training.prepare_rirs --out data/rirs --corpus rirs-noises

Every file holds one venue's responses, all of one performance: channels = microphones x channels of a microphone.
They begin at the direct path (see `rooms.tidy`). `index.jsonl` says what each measures and grows with them; call the
script again to go on where it stopped. Splits are disjoint by venue.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm.auto import tqdm

from training.jsonl import merge_rows
from training.measured import index_entries
from training.public import CORPORA, fetch_corpus
from training.rooms import DIRECT_S, EARLY_S, energy_ratio_db, t20_s, tidy
from training.venues import Venue, generate, simulate

SAMPLE_RATE = 44100
TEST_VENUES = {"warehouse", "St. Margaret's Church", "Arthur Sykes Rymer Auditorium"}
VALIDATION_VENUES = {"large_hall", "Genesis 6 Studio Live Room"}
MAX_MICS = 4
PEAK = 0.999
MIN_DRR_DB = -12.0  # below that there is no direct path that a target could be aligned to
MAKERS: dict[str, Callable[[np.random.Generator, int], Venue]] = {"generated": generate, "simulated": simulate}
INDEX_EVERY = 20  # venues


def split_of(number: int) -> str:
    """Of every 20 venues that were made up, two are for testing and one is for validation."""
    return {7: "test", 17: "test", 13: "validation"}.get(number % 20, "train")


def describe(responses: np.ndarray, mic_channels: int) -> dict[str, Any]:
    """What tidied responses (channels, samples) at 44.1 kHz measure; one T20, the median over the channels."""
    return {
        "num_mics": len(responses) // mic_channels,
        "mic_channels": mic_channels,
        "sample_rate": SAMPLE_RATE,
        "seconds": round(responses.shape[-1] / SAMPLE_RATE, 3),
        "t20_s": round(float(np.median([t20_s(response, SAMPLE_RATE) for response in responses])), 3),
        "drr_db": [round(energy_ratio_db(response, SAMPLE_RATE, DIRECT_S), 2) for response in responses],
        "c50_db": [round(energy_ratio_db(response, SAMPLE_RATE, EARLY_S), 2) for response in responses],
    }


def store(path: Path, responses: np.ndarray, out: Path) -> str:
    """Write tidied responses as 24 bit FLAC; returns the path relative to `out`.

    All channels are scaled alike to stay below full scale: whoever reads them divides by the energy of the first
    2.5 ms again. (Float WAV would keep the scale, but libsndfile writes the time of day into it.)
    """
    path = path.with_suffix(".flac")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    scaled = responses * (PEAK / np.abs(responses).max())
    soundfile.write(temporary, scaled.T, SAMPLE_RATE, format="FLAC", subtype="PCM_24")
    os.replace(temporary, path)
    return path.relative_to(out).as_posix()


def make_venue(number: int, kind: str, out: Path, seed: int) -> dict[str, Any]:
    """Make, tidy and store venue `number`; the same for the same seed. Its row is kept beside the file."""
    name = f"{kind}/{number // 1000:03d}/{number:06d}"
    row_path = out / f"{name}.json"
    if row_path.exists():
        return dict(json.loads(row_path.read_text()))
    rng = np.random.default_rng([seed, sorted(MAKERS).index(kind), number])
    venue = MAKERS[kind](rng, SAMPLE_RATE)
    responses = tidy(venue.responses, SAMPLE_RATE, SAMPLE_RATE)
    row = {
        "path": store(out / name, responses, out),
        "venue": f"{kind}-{seed}-{number}",
        "split": split_of(number),
        "kind": kind,
        **describe(responses, venue.mic_channels),
        "licence": "CC0-1.0",
        "origin": f"training/venues.py, seed {seed}, number {number}",
    }
    temporary = row_path.with_name(row_path.name + ".part")
    temporary.write_text(json.dumps(row))
    os.replace(temporary, row_path)
    return row


# --- Measured responses ----------------------------------------------------------------------------------------------


def is_response(name: str) -> bool:
    return Path(name).suffix.lower() in {".wav", ".flac", ".aif", ".aiff"}


def measured_files(folder: Path, licence: str) -> list[dict[str, Any]]:
    """The response files of a folder that has no index: each audio file, its sub-folder is the venue."""
    files = sorted(path for path in folder.rglob("*") if is_response(path.name))
    if not files:
        raise ValueError(f"{folder} has neither an index.json nor WAV, FLAC or AIFF files")
    return [
        {
            "file": path.relative_to(folder).as_posix(),
            "space": path.parent.relative_to(folder).as_posix() if path.parent != folder else path.stem,
            "kind": "room",
            "licence": licence,
            "origin": path.name,
        }
        for path in files
    ]


def measured_split(venue: str, known: bool) -> str:
    """The split of a measured venue; those of one's own go by a hash of the name, 10 % each to test and validation."""
    if venue in TEST_VENUES:
        return "test"
    if venue in VALIDATION_VENUES:
        return "validation"
    share = int(hashlib.sha256(venue.encode()).hexdigest()[:8], 16) / 2**32
    return "train" if known or share >= 0.2 else "test" if share < 0.1 else "validation"


def read_measured(path: Path, is_plate: bool) -> list[np.ndarray]:
    """The microphones' responses in a file, each (1 or 2, samples) at 44.1 kHz and tidied.

    Four channels are "true stereo": what a stereo pair hears of the left, then of the right loudspeaker. They count as
    two pairs: with both played at once the polarities, which nobody wrote down, would decide what is left of the sum.
    A plate's output has no direct path; it gets one of equal energy, as a desk mixes it.
    """
    responses, sample_rate = soundfile.read(path, dtype="float64", always_2d=True)
    channels = responses.T
    if len(channels) not in (1, 2, 4):
        raise ValueError(f"{path.name} has {len(channels)} channels; 1, 2 or 4 are known")
    if is_plate:
        lead = np.zeros((len(channels), round(2 * DIRECT_S * sample_rate)))
        lead[:, 0] = np.sqrt(np.square(channels).sum(axis=1))
        channels = np.concatenate([lead, channels], axis=1)
    pairs = [channels[:2], channels[2:]] if len(channels) == 4 else [channels]
    return [tidy(pair, sample_rate, SAMPLE_RATE) for pair in pairs]


def prepare_measured(folder: Path, out: Path, licence: str = "own") -> list[dict[str, Any]]:
    """Rows of all measured responses; up to four microphones of one room go into one file, plates stay alone.

    Microphones that hear no direct path (around a corner, through a door) are left out with a notice.
    """
    indexed = index_entries(folder)
    known = indexed is not None
    entries = measured_files(folder, licence) if indexed is None else [e for e in indexed if "t20_s" in e]
    spaces: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        spaces.setdefault(entry["space"], []).append(entry)
    rows = []
    for space, of_venue in tqdm(spaces.items(), desc="measured"):
        is_plate = "plate" in of_venue[0]["kind"]
        microphones: dict[int, list[tuple[np.ndarray, dict[str, Any]]]] = {1: [], 2: []}
        for entry in of_venue:
            try:
                for response in read_measured(folder / entry["file"], is_plate):
                    drr_db = min(describe(response, len(response))["drr_db"])
                    if drr_db < MIN_DRR_DB:
                        raise ValueError(f"no direct path, DRR {drr_db:.1f} dB")
                    microphones[len(response)].append((response, entry))
            except (ValueError, soundfile.LibsndfileError) as error:
                tqdm.write(f"left out: {entry['file']} ({error})")
        for mic_channels, of_space in microphones.items():
            num_sets = len(of_space) if is_plate else -(-len(of_space) // MAX_MICS)
            # Every num_sets-th microphone: neighbours in the list are alike, those of one set should not be.
            for number, members in enumerate(of_space[start::num_sets] for start in range(num_sets)):
                length = max(response.shape[-1] for response, _ in members)
                responses = np.concatenate(
                    [np.pad(response, ((0, 0), (0, length - response.shape[-1]))) for response, _ in members]
                )
                name = "".join(letter if letter.isalnum() else "_" for letter in f"{space}_{mic_channels}_{number}")
                rows.append(
                    {
                        "path": store(out / "measured" / name, responses, out),
                        "venue": space,
                        "split": measured_split(space, known),
                        "kind": "measured",
                        **describe(responses, mic_channels),
                        "licence": members[0][1]["licence"],
                        "origin": "; ".join(dict.fromkeys(entry["origin"] for _, entry in members)),
                    }
                )
    return rows


# --- The index -------------------------------------------------------------------------------------------------------


def add_rows(out: Path, rows: Iterable[Mapping[str, Any]], seed: int) -> None:
    """Put rows into the index."""
    makers = [name for name in ("numpy", "scipy", "soxr", "pyroomacoustics") if find_spec(name)]
    versions = {name: version(name) for name in makers}
    merge_rows(out / "index.jsonl", rows, seed=seed, versions=versions)


def prepare_made(kind: str, count: int, out: Path, seed: int, workers: int) -> None:
    """Make `count` venues of a kind with `workers` processes; the index grows every few venues."""
    make = partial(make_venue, kind=kind, out=out, seed=seed)
    rows = []
    with ProcessPoolExecutor(workers) as pool:
        for row in tqdm(pool.map(make, range(count)), total=count, desc=kind):
            rows.append(row)
            if len(rows) >= INDEX_EVERY:
                add_rows(out, rows, seed)
                rows = []
    add_rows(out, rows, seed)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name, corpus in CORPORA.items() if corpus.kind == "rooms"]
    parser.add_argument("--out", type=Path, default=Path("data/rirs"))
    parser.add_argument("--measured", type=Path, action="append", default=[], help="folder of responses; repeatable")
    parser.add_argument(
        "--corpus", action="append", default=[], metavar="NAME", help=f"repeatable: {', '.join(names)}"
    )
    parser.add_argument("--sha256", default="", help="checksum of the corpus, where none is published")
    parser.add_argument("--cache", type=Path, default=Path("data/downloads"), help="where downloads are kept")
    parser.add_argument("--generate", type=int, default=0, metavar="N", help="venues of the cheap generator")
    parser.add_argument("--simulate", type=int, default=0, metavar="N", help="simulated venues, seconds each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args(arguments)
    try:
        if options.workers < 1 or min(options.generate, options.simulate) < 0:
            raise ValueError("--workers must be at least 1, --generate and --simulate at least 0")
        options.out.mkdir(parents=True, exist_ok=True)
        for folder in options.measured:
            add_rows(options.out, prepare_measured(folder, options.out), options.seed)
        for name in options.corpus:
            folder = options.cache / name
            corpus = fetch_corpus(name, "rooms", options.cache, folder, is_response, options.sha256)
            add_rows(options.out, prepare_measured(folder, options.out, corpus.licence), options.seed)
        prepare_made("generated", options.generate, options.out, options.seed, options.workers)
        prepare_made("simulated", options.simulate, options.out, options.seed, options.workers)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
