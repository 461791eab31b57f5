"""The reference set of the Fréchet distances: ten seconds from the middle of every clean track of the training split.

    python -m training.reference_set --data data                                # for musicnn and log_mel
    python -m training.reference_set --data data --embedding vggish
    python -m training.reference_set --folder masters --title "my masters"      # another set of studio music

Its statistics lie beside the benchmark's manifests, so that nobody has to fetch the music to compute a distance.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from pipeline_aud2studio.audio import Waveform
from training.corpora import is_audio
from training.frechet import EMBEDDINGS, OFFLINE, REFERENCES, embed, gaussian, save_reference
from training.jsonl import read_rows
from training.sources import inside, read_span

SECONDS, SAMPLE_RATE = 10.0, 44_100


def tracks(data: Path) -> list[tuple[list[Path], float]]:
    """Files (several where a track is a sum of stems) and length in seconds of the training split's clean tracks."""
    root = data / "clean"
    rows = [row for row in read_rows(root / "inventory.jsonl") if row["split"] == "train"]
    return [([inside(root, path) for path in row.get("stems") or [row["path"]]], row["seconds"]) for row in rows]


def folder_tracks(folder: Path) -> list[tuple[list[Path], float]]:
    import soundfile

    paths = [path for path in sorted(folder.rglob("*")) if is_audio(path.name)]
    if not paths:
        raise ValueError(f"{folder} has no audio files")
    return [([path], soundfile.info(path).duration) for path in paths]


def excerpts(found: Sequence[tuple[list[Path], float]]) -> Iterator[Waveform]:
    """(channels, samples) at 44.1 kHz from the middle of every track; silent ones are left out."""
    for paths, seconds in tqdm(found, desc="reference set", unit="track"):
        start_s = max(0.0, (seconds - SECONDS) / 2)
        stems = [read_span(path, start_s, min(SECONDS, seconds), SAMPLE_RATE) for path in paths]
        mix = np.sum(stems, axis=0)
        if np.abs(mix).max() > 1e-4:
            yield mix


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.reference_set", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with clean")
    parser.add_argument("--folder", type=Path, help="a folder of audio files instead")
    parser.add_argument("--title", default="clean training split", help="what the reports call it")
    parser.add_argument("--embedding", action="append", choices=list(EMBEDDINGS), help="repeatable")
    parser.add_argument("--out", type=Path, default=REFERENCES, help="folder of the statistics")
    options = parser.parse_args(argv)
    names = options.embedding or list(OFFLINE)
    try:
        found = folder_tracks(options.folder) if options.folder else tracks(options.data)
        clips: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for excerpt in excerpts(found):
            for name in names:
                clips[name].append(embed(excerpt, SAMPLE_RATE, name))
        for name in names:
            path = options.out / f"reference_{name}.safetensors"
            save_reference(path, gaussian(clips[name], options.title))
            print(path)
    except (ValueError, OSError) as error:
        print(f"reference_set: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
