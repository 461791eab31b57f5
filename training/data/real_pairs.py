"""Real pairs: audience recordings with the studio or board version of the same performance, aligned once, cut into
scenes.

    python -m training.data.real_pairs --pairs DIR --out data/pairs                    # Parquet, FLAC within
    python -m training.data.real_pairs --pairs DIR --out data/pairs --push ORG/NAME    # and to the Hub, as a dataset

Every folder below `--pairs` holds one performance: `clean.*` and one or more `recording*.*`, which are aligned to it.
`data.pairs_manifest` takes the folder or `hf://datasets/ORG/NAME`; `data.real_share` says how many of the scenes are
real.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import soundfile
from tqdm.auto import tqdm

from pipeline_aud2studio.alignment import align
from pipeline_aud2studio.audio import resample
from training.config import TrainingConfig

from .batches import Scenes
from .examples import EXAMPLES_PER_SCENE
from .material import SAMPLE_RATE, Material
from .scenes import SECONDS, Scene, SceneRenderer

HUB = "hf://datasets/"
SPARE_S = 0.48  # of a scene beyond its chunks, so that they begin anywhere
SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".m4a"}
FEATURES = datasets.Features(
    {
        "performance": datasets.Value("string"),
        "start_s": datasets.Value("float64"),
        # FLAC; the `Audio` feature wants torchcodec to write it.
        "clean": datasets.Value("large_binary"),
        "recordings": datasets.List(datasets.Value("large_binary")),
    }
)
NOTHING_KNOWN = dict.fromkeys(("rt60_s", "drr_db", "snr_db", "bandwidth_hz", "voice"), math.nan)


def scenes_of(folder: Path) -> Iterator[dict[str, Any]]:
    """Aligns a performance's recordings to its clean version and cuts all of them: rows of `FEATURES`.

    Raises:
        ValueError: If a file is missing or cannot be read, or no recording fits the clean version.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    clean = [path for path in files if path.stem == "clean"]
    recordings = [path for path in files if path.stem.startswith("recording")]
    if len(clean) != 1 or not recordings:
        raise ValueError(f"{folder} has to hold one clean.* and at least one recording*.*")
    result = align([clean[0], *recordings], SAMPLE_RATE, reference=0)
    used = [index for index in result.accepted if index != 0]
    if not used:
        reasons = "; ".join(f"{each.name} {each.reason}" for each in result.alignments[1:])
        raise ValueError(f"{folder}: no recording is of the clean version's performance: {reasons}")
    takes = [np.concatenate([*result.blocks(index)], axis=-1) for index in (0, *used)]
    samples = round(SECONDS * SAMPLE_RATE)
    for start in range(0, takes[0].shape[-1] - samples + 1, samples):
        cut = [take[:, start : start + samples] for take in takes]
        # A recording that had not begun, or was paused, is no example there.
        heard = [take for take in cut[1:] if np.count_nonzero(take.any(0)) == samples]
        if heard and cut[0].any():
            row = {"performance": folder.name, "start_s": start / SAMPLE_RATE, "clean": _flac(cut[0])}
            yield row | {"recordings": [_flac(take) for take in heard]}


def _flac(waveform: np.ndarray) -> bytes:
    """A waveform (channels, samples) as the dataset stores it; one above full scale is lowered."""
    file = io.BytesIO()
    peak = max(float(np.abs(waveform).max()), 1.0)
    soundfile.write(file, waveform.T / peak, SAMPLE_RATE, "PCM_24", format="FLAC")
    return file.getvalue()


class RealScenes:
    """Scenes of a dataset of real pairs, in another order every time round.

    Nobody knows the level of the direct sound in a real recording: the clean version gets the level of the first one.

    Args:
        source: A folder that :func:`main` wrote, or `hf://datasets/ORG/NAME`.
        seed: Of the order.

    Raises:
        ValueError: If it holds no pairs.
    """

    def __init__(self, source: Path | str, seed: int) -> None:
        name = str(source)
        if name.startswith(HUB):
            self.rows = datasets.load_dataset(name.removeprefix(HUB), split="train")
        else:
            files = sorted(Path(name).glob("*.parquet"))
            if not files:
                raise ValueError(f"{name} holds no pairs: write them with `python -m training.data.real_pairs`")
            self.rows = datasets.Dataset.from_parquet([str(file) for file in files])
        self.seed = seed

    def __call__(self, row: int) -> Scene:
        """Loads a scene: a pure function of the row."""
        turn, index = divmod(row, len(self.rows))
        stored = self.rows[int(np.random.default_rng([self.seed, turn]).permutation(len(self.rows))[index])]
        clean, *recordings = (
            soundfile.read(io.BytesIO(each), dtype="float32", always_2d=True)[0].T
            for each in (stored["clean"], *stored["recordings"])
        )
        first = recordings[0]
        target = clean if len(clean) == len(first) else np.repeat(clean.mean(0, keepdims=True), len(first), 0)
        level = np.sqrt(np.mean(np.square(first)) / max(float(np.mean(np.square(target))), 1e-12))
        target = (level * target).astype(np.float32)
        recipe = {"condition": "real", "performance": stored["performance"], "start_s": stored["start_s"]}
        return Scene(recordings, target, target, dict(NOTHING_KNOWN), recipe)


class MixedScenes:
    """Rendered scenes with a share of real ones among them."""

    def __init__(self, rendered: SceneRenderer, real: RealScenes, share: float) -> None:
        self.rendered, self.real, self.share, self.seed = rendered, real, share, rendered.seed

    def __call__(self, row: int) -> Scene:
        """Returns a real scene for every `1 / share`-th row, each in its turn."""
        before, after = math.floor(row * self.share), math.floor((row + 1) * self.share)
        return self.real(before) if after > before else self.rendered(row)


class ResampledScenes:
    """Scenes at another sampling rate than they are rendered at."""

    def __init__(self, scenes: SceneRenderer | MixedScenes, sample_rate: int) -> None:
        self.scenes, self.sample_rate, self.seed = scenes, sample_rate, scenes.seed

    def __call__(self, row: int) -> Scene:
        """Returns the scene of a row; all of its waveforms go through the same linear-phase filter."""
        scene = self.scenes(row)
        recordings = [resample(each, SAMPLE_RATE, self.sample_rate) for each in scene.recordings]
        target, dry = (resample(each, SAMPLE_RATE, self.sample_rate) for each in (scene.target, scene.dry))
        return replace(scene, recordings=recordings, target=target, dry=dry)


def open_scenes(config: TrainingConfig) -> Scenes:
    """Opens what a configuration trains on.

    Raises:
        ValueError: If there is no material, or no real pair although some are asked for.
    """
    scenes: SceneRenderer | MixedScenes
    seconds = EXAMPLES_PER_SCENE * config.clip_samples / config.audio.sample_rate + SPARE_S
    scenes = SceneRenderer(Material.open(config.data.material), config.model.max_recordings, config.seed, seconds)
    if config.data.real_share:
        scenes = MixedScenes(scenes, RealScenes(config.data.pairs_manifest, config.seed), config.data.real_share)
    rate = config.audio.sample_rate
    return scenes if rate == SAMPLE_RATE else ResampledScenes(scenes, rate)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the dataset, see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--push", metavar="ORG/NAME", help="also upload it, with the credentials of `hf auth login`")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    folders = sorted(path for path in options.pairs.iterdir() if path.is_dir())
    failed = []
    for folder in tqdm(folders, desc="performances"):
        path = options.out / f"{folder.name}.parquet"
        if path.is_file():
            continue
        try:
            rows = datasets.Dataset.from_list([*scenes_of(folder)], features=FEATURES)
        except ValueError as error:
            failed.append(str(error))
            continue
        temporary = path.with_suffix(".part")
        rows.to_parquet(str(temporary))
        temporary.replace(path)
    for reason in failed:
        print(f"real_pairs: {reason}", file=sys.stderr)
    if options.push:
        RealScenes(options.out, 0).rows.push_to_hub(options.push)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
