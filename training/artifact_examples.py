"""The clip with most of each artefact, before and after, as audio and as a picture, for the model card.

    python -m training.artifact_examples --results build/benchmark --data data --weights DIR

Reads what `training.evaluate --perceptual --html` left and writes `figures/artifacts` beside the weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from pipeline_aud2studio import shipped_weights
from pipeline_aud2studio.plot import plot_spectrograms
from pipeline_aud2studio.source import ArraySource
from training.artifacts import ARTIFACTS, INDICATORS
from training.checkpoints import atomic_folder
from training.compare import read_clips
from training.html_report import keep_audio
from training.jsonl import read_rows
from training.report import write_json

FOLDER = Path("figures") / "artifacts"
EXCERPT_S = 4.0  # from the middle of a clip


def worst(results: Sequence[Mapping[str, Any]], artifact: str) -> Mapping[str, Any] | None:
    """The clip whose indicator is farthest above its limit, in units of the spread over the clips; None if none is."""
    ranked = []
    for indicator in INDICATORS:
        if indicator.artifact == artifact:
            having = [result for result in results if indicator.key in result]
            spread = float(np.std([result[indicator.key] for result in having])) if having else 0.0
            ranked += [((row[indicator.key] - indicator.limit) / max(spread, 1e-9), row) for row in having]
    farthest, row = max(ranked, key=lambda item: float(item[0]), default=(0.0, None))
    return row if farthest > 0 else None


def write_examples(results: Path, music: Mapping[str, Mapping[str, Any]], system: str, out: Path) -> list[str]:
    """Writes `ARTIFACT.before.ogg`, `.after.ogg`, `.png` and `.json`, all or nothing.

    Args:
        results: Folder of `training.evaluate`.
        music: Rows of the inventory by path.

    Returns:
        The artefacts that have an example.

    Raises:
        ValueError: if there are no results of that system, or no audio was kept.
    """
    clips = list(read_clips(results, system).values())
    written = []
    with atomic_folder(out) as folder:
        for artifact in ARTIFACTS:
            row = worst(clips, artifact)
            if row is None:
                continue
            panels, rate = {}, 0
            for title, name in (("before", "input"), ("after", system)):
                path = results / "clips" / name / f"{row['row_id']:05d}.opus"
                if not path.is_file():
                    raise ValueError(f"{path} is missing: run training.evaluate with --html")
                waveform, rate = soundfile.read(path, dtype="float32", always_2d=True)
                first = max(0, (len(waveform) - round(EXCERPT_S * rate)) // 2)
                excerpt = np.ascontiguousarray(waveform[first : first + round(EXCERPT_S * rate)].T)
                keep_audio(folder / f"{artifact}.{title}.ogg", excerpt, rate)
                panels[title] = (ArraySource(excerpt), rate)
            plot_spectrograms(folder / f"{artifact}.png", panels)
            with Image.open(folder / f"{artifact}.png") as picture:
                picture.convert("RGB").resize((640, 387)).quantize(64).save(folder / f"{artifact}.png", optimize=True)
            source = music.get(row["music_path"], {})
            about = {
                "row_id": row["row_id"],
                "condition": row["condition"],
                "music": " ".join(str(source[key]) for key in ("artist", "title") if source.get(key)) or "unnamed",
                "licence": source.get("licence", "see the inventory"),
            }
            write_json(folder / f"{artifact}.json", about)
            written.append(artifact)
    return written


def main(argv: Sequence[str] | None = None) -> int:
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m training.artifact_examples", description=description)
    parser.add_argument("--results", type=Path, default=Path("build/benchmark"), help="folder of training.evaluate")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with clean, rirs and noise")
    parser.add_argument("--system", default="faithful")
    parser.add_argument("--weights", type=Path, default=shipped_weights(), help="a pipeline's folder")
    options = parser.parse_args(argv)
    try:
        music = {row["path"]: row for row in read_rows(options.data / "clean" / "inventory.jsonl")}
        written = write_examples(options.results, music, options.system, options.weights / FOLDER)
    except (ValueError, OSError, json.JSONDecodeError) as error:
        print(f"artifact_examples: {error}", file=sys.stderr)
        return 1
    print(f"{options.weights / FOLDER}: {', '.join(written)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
