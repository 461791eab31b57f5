"""Pushes the pairs of a manifest as a dataset repository of the Hub, from which training streams them.

    python -m training.push_dataset --pairs data/pairs.jsonl --out build/dataset --push org/aud2studio-pairs
    python -m training.push_dataset --pairs data/pairs.jsonl --out build/dataset --render --push org/aud2studio-pairs

Without `--render` the repository holds the manifest: a few megabytes, from which everybody with the same corpora
renders the same audio. With it, also the rendered pairs as FLAC in Parquet shards. `data.pairs_manifest:
hf://datasets/org/aud2studio-pairs` trains on either; rendered pairs need nothing else. The same command goes on
where rendering or a push was interrupted. The token is that of `hf auth login` or `HF_TOKEN`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard

from training.hub import push_folder
from training.hub_pairs import MANIFEST, SHARDS, write_shards
from training.jsonl import read_rows
from training.manifest import check_row, read_header
from training.record import pairs_record, sources_record
from training.sources import Roots

HUB_LICENCES = {"CC0-1.0": "cc0-1.0", "CC-BY-4.0": "cc-by-4.0", "CC-BY-3.0": "cc-by-3.0", "Apache-2.0": "apache-2.0"}


def dataset_card(manifest: Path, data: Path, name: str, rendered: bool) -> str:
    """Card of the repository: what is in it, how to load it, and a row per source with its licence."""
    pairs = pairs_record([manifest])
    sources = [source for source in sources_record(data, [manifest]) if source["pairs"]] if data.is_dir() else []
    licences = sorted({source["licence"] for source in sources})
    header: dict[str, Any] = {
        "license": HUB_LICENCES.get(licences[0], "other") if len(licences) == 1 else "other",
        "pretty_name": "aud2studio pairs",
        "task_categories": ["audio-to-audio"],
        "tags": ["audio", "music", "dereverberation", "denoising", "aud2studio"],
    }
    if rendered:
        files = [{"split": "train", "path": f"{SHARDS}/*.parquet"}]
    else:
        files = [{"split": "train", "path": MANIFEST}]
    header["configs"] = [{"config_name": "default", "data_files": files}]
    conditions = ", ".join(f"{name} {count}" for name, count in pairs["conditions"].items())
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        "",
        "# Pairs of audience recordings and clean music",
        "",
        f"{pairs['count']} pairs, {pairs['hours']} hours of {pairs['tracks']} tracks; by condition: {conditions}."
        f" {pairs['with_several_takes']} have several recordings of one performance, {pairs['stereo']} are stereo.",
        "",
        f"`{MANIFEST}` says of every pair which music, room, crowd and microphone it is rendered from, with all"
        " parameters and the seed.",
    ]
    if rendered:
        lines.append(
            f"`{SHARDS}` holds the rendered pairs: `recordings` (the takes), `clean` and `early` (with the first 50 ms"
            " of the room) are FLAC, on one clock and with one gain."
        )
    else:
        lines.append("The audio is not here: rendering it needs the corpora below (aud2studio, training/corpora.py).")
    lines += ["", "```yaml", f"data: {{pairs_manifest: hf://datasets/{name}}}  # training/train.py", "```", ""]
    lines += ["## Sources", ""]
    if sources:
        lines += ["| Kind | Source | Licence | Pairs |", "| --- | --- | --- | --- |"]
        lines += [f"| {s['kind']} | {s['name']} | {s['licence']} | {s['pairs']} |" for s in sources]
        lines += [
            "",
            "Every source keeps its own licence; a pair falls under those of all that it is made of.",
        ]
    else:
        lines.append("Real recordings; who pushed them knows their licences.")
    return "\n".join(lines) + "\n"


def write_dataset(
    manifest: Path, roots: Roots, data: Path, out: Path, name: str, *, render: bool, rows_per_shard: int
) -> None:
    """Writes the repository's folder; what an interrupted call rendered is not rendered again.

    Raises:
        ValueError: If the manifest has a bad row, or `out` is not empty and not such a folder.
    """
    rows: list[Mapping[str, Any]] = [check_row(row) for row in read_rows(manifest)]
    read_header(manifest)
    if not rows:
        raise ValueError(f"{manifest} has no pairs")
    if out.exists() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise ValueError(f"{out} is not empty and not an earlier dataset: choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    _write(out / MANIFEST, manifest.read_bytes())
    if render:
        write_shards(rows, roots, out / SHARDS, rows_per_shard)
    else:
        shutil.rmtree(out / SHARDS, ignore_errors=True)
    card = dataset_card(manifest, data, name, render)
    DatasetCard(card)  # its header is YAML
    _write(out / "README.md", card.encode())


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


def arguments() -> argparse.ArgumentParser:
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m training.push_dataset", description=description)
    parser.add_argument("--pairs", type=Path, required=True, help="manifest of synthetic or of real pairs")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with clean, rirs and noise")
    parser.add_argument("--out", type=Path, required=True, help="the repository's folder")
    parser.add_argument("--render", action="store_true", help="also the rendered audio")
    parser.add_argument("--rows-per-shard", type=int, default=256, help="pairs in a file (default: %(default)s)")
    parser.add_argument("--push", metavar="REPO", help="upload to this dataset of the Hub, as org/aud2studio-pairs")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--tag", help="name for the state that is pushed")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    data = options.data
    roots = Roots(data / "clean", data / "rirs", data / "noise", options.pairs.parent)
    try:
        if options.rows_per_shard < 1:
            raise ValueError("--rows-per-shard must be at least 1")
        write_dataset(
            options.pairs,
            roots,
            data,
            options.out,
            options.push or "org/aud2studio-pairs",
            render=options.render,
            rows_per_shard=options.rows_per_shard,
        )
        print(options.out)
        if options.push:
            commit = push_folder(
                options.out,
                options.push,
                repo_type="dataset",
                private=options.private,
                tag=options.tag,
                message=f"Pairs of {options.pairs.name}",
            )
            print(f"{options.push} holds it, commit {commit}")
    except (ValueError, OSError) as error:
        print(f"push_dataset: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
