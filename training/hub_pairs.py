"""Rendered pairs in Parquet shards, as a dataset repository of the Hub holds them: written, and streamed back.

The audio is FLAC in columns of the `Audio` feature, so the Hub's viewer plays it and `datasets.load_dataset` reads it
without any code of ours.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile
from huggingface_hub import HfFileSystem
from tqdm.auto import tqdm

from training.degrade import RenderedPair
from training.manifest import check_row
from training.pairs import load_pair, no_response, storage_gain
from training.sources import Roots

MANIFEST = "pairs.jsonl"
SHARDS = "data"  # folder of the shards in a repository
DIGEST = b"aud2studio_rows"  # key of a shard's metadata: which rows it was rendered from
REPOSITORY = "hf://datasets/"

_TEXTS = ("split", "condition")
_WHOLE = ("row_id", "seed", "sample_rate", "channels", "num_takes")
FEATURES = datasets.Features(
    {name: datasets.Value("string") for name in _TEXTS}
    | {name: datasets.Value("int64") for name in _WHOLE}
    | {"seconds": datasets.Value("float64"), "recordings": datasets.List(datasets.Audio())}
    | {"clean": datasets.Audio(), "early": datasets.Audio()}
)


def write_shards(rows: Sequence[Mapping[str, Any]], roots: Roots, folder: Path, rows_per_shard: int) -> list[Path]:
    """Renders rows of whatever kind into `train-00000-of-N.parquet` and so on; shards that are there already stay.

    Every shard is written whole or not at all. Shards of another number or of other rows are removed.

    Returns:
        The shards in order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [rows[start : start + rows_per_shard] for start in range(0, len(rows), rows_per_shard)]
    paths = [folder / f"train-{number:05d}-of-{len(parts):05d}.parquet" for number in range(len(parts))]
    for other in set(folder.glob("*.parquet")) - set(paths):
        other.unlink()
    with tqdm(total=len(rows), desc="shards", unit="row") as bar:
        for part, path in zip(parts, paths, strict=True):
            digest = hashlib.sha256(json.dumps(list(part), sort_keys=True).encode()).hexdigest().encode()
            if _digest(path) != digest:
                schema = FEATURES.arrow_schema
                schema = schema.with_metadata({**(schema.metadata or {}), DIGEST: digest})
                encoded = [_encode(row, load_pair(row, roots)) for row in part]
                temporary = path.with_name(f".{path.name}.part")
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(encoded, schema=schema), temporary)
                os.replace(temporary, path)
            bar.update(len(part))
    return paths


def _digest(path: Path) -> bytes | None:
    try:
        return (pyarrow.parquet.read_schema(path).metadata or {}).get(DIGEST)
    except (FileNotFoundError, pyarrow.ArrowInvalid):
        return None


def _encode(row: Mapping[str, Any], pair: RenderedPair) -> dict[str, Any]:
    gain = storage_gain(pair)

    def flac(name: str, waveform: np.ndarray) -> dict[str, Any]:
        file = io.BytesIO()
        soundfile.write(file, gain * waveform.T, pair.sample_rate, format="FLAC", subtype="PCM_24")
        return {"bytes": file.getvalue(), "path": f"{row['row_id']:08d}.{name}.flac"}

    return {
        **{name: row[name] for name in (*_TEXTS, *_WHOLE, "seconds")},
        "recordings": [flac(f"take{take}", waveform) for take, waveform in enumerate(pair.recordings)],
        "clean": flac("clean", pair.clean),
        "early": flac("early", pair.early),
    }


def decode(row: Mapping[str, Any]) -> RenderedPair:
    """The audio of a streamed row.

    Raises:
        ValueError: if a recording cannot be decoded, or its length, rate or channels are not those of the row.
    """
    expected = (row["channels"], round(row["seconds"] * row["sample_rate"]))

    def read(name: str, audio: Mapping[str, Any]) -> np.ndarray:
        try:
            waveform, sample_rate = soundfile.read(io.BytesIO(audio["bytes"]), dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, TypeError) as error:
            raise ValueError(f"row {row['row_id']}: {name} cannot be decoded: {error}") from error
        if waveform.T.shape != expected or sample_rate != row["sample_rate"]:
            raise ValueError(
                f"row {row['row_id']}: {name} has the shape {waveform.T.shape} at {sample_rate} Hz,"
                f" expected {expected} at {row['sample_rate']} Hz"
            )
        return np.ascontiguousarray(waveform.T)

    if len(row["recordings"]) != row["num_takes"]:
        raise ValueError(f"row {row['row_id']} has {len(row['recordings'])} recordings, expected {row['num_takes']}")
    recordings = [read(f"recording {number}", audio) for number, audio in enumerate(row["recordings"])]
    clean, early = read("clean", row["clean"]), read("early", row["early"])
    return RenderedPair(np.stack(recordings), clean, early, no_response(row), row["sample_rate"])


def locate(address: str) -> str:
    """The files that an address means: those of `hf://datasets/ORG/NAME[@REVISION]` are its shards or its manifest.

    Raises:
        ValueError: if the repository has neither, or there is none.
    """
    rest = address.removeprefix(REPOSITORY).strip("/")
    if not address.startswith(REPOSITORY) or rest.count("/") > 1:
        return address
    address = f"{REPOSITORY}{rest}"
    files = HfFileSystem()
    try:
        if files.glob(f"{address}/{SHARDS}/*.parquet"):
            return f"{address}/{SHARDS}/*.parquet"
        if files.isfile(f"{address}/{MANIFEST}"):
            return f"{address}/{MANIFEST}"
    except OSError as error:
        raise ValueError(f"{address} cannot be read: {str(error).splitlines()[0]}") from error
    raise ValueError(f"{address} has neither {SHARDS}/*.parquet nor {MANIFEST}, or is not there for you")


class ShardSource:
    """Rows streamed from Parquet shards: a path, a URL or an `hf://` address, with `*` or without."""

    def __init__(self, shards: str, sample_rate: int, conditions: Sequence[str] | None) -> None:
        self.shards, self.sample_rate, self.conditions = shards, sample_rate, conditions
        stream = datasets.load_dataset("parquet", data_files=shards, split="train", streaming=True)
        if missing := sorted(FEATURES.keys() - (stream.features or {}).keys()):
            raise ValueError(f"{shards} has no column {missing[0]}: write it with training.push_dataset")
        self.stream = stream.decode(False)

    def rows(self, epoch: int, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, row in enumerate(self.stream.skip(start), start=start):
            paths = {"recordings": [audio["path"] for audio in row["recordings"]]}
            paths |= {name: row[name]["path"] for name in ("clean", "early")}
            check_row({**row, **paths, "kind": "rendered", "offset_s": 0.0})
            if row["sample_rate"] != self.sample_rate:
                raise ValueError(f"{self.shards} has {row['sample_rate']} Hz, training wants {self.sample_rate} Hz")
            if not self.conditions or row["condition"] in self.conditions:
                yield index, row

    def pair(self, row: Mapping[str, Any]) -> RenderedPair:
        return decode(row)

    def seed(self, row: Mapping[str, Any]) -> tuple[int, int, str]:
        return row["seed"], row["row_id"], row["condition"]

    def size(self) -> int:
        return 0
