"""What comes out is what came out when `golden.json` was written, with today's weights: `make golden` writes it anew.

Of every result the file holds its root mean square and a few samples. A waveform that an iteration makes amplifies
rounding until it is heard in other phases: of it, the levels in bands are kept.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from scipy import signal

from pipeline_aud2studio import Aud2StudioPipeline, infer, shipped_weights
from pipeline_aud2studio.analysis import analyzed
from pipeline_aud2studio.chunks import ArraySource, Padded
from training.data.material import Material, Room, Sound
from training.data.scenes import SceneRenderer
from training.evaluation.benchmark import run
from training.evaluation.clips import Clip

GOLDEN = Path(__file__).with_name("golden.json")
EXAMPLES = Path(__file__).parents[1] / "spaces_app" / "examples"
RATE, SECONDS = 44100, 3
NUM_SAMPLES = 32
BAND_DB = 0.5  # of a band's level: Griffin-Lim makes audible phases of rounding, but no other spectrum
TOLERANCE = 1e-4  # of the root mean square; processors differ by 3e-5


def example(name: str) -> np.ndarray:
    """The first seconds of an example (channels, samples)."""
    return soundfile.read(EXAMPLES / name, RATE * SECONDS, dtype="float32", always_2d=True)[0].T


def described(values: np.ndarray) -> dict[str, Any]:
    """The root mean square of an array, its shape, and equally spaced ones of its values."""
    flat = np.asarray(values, np.float64).ravel()
    picked = flat[np.linspace(0, len(flat) - 1, min(NUM_SAMPLES, len(flat))).astype(int)]
    rms = float(np.sqrt(np.mean(np.square(flat))))
    return {"rms": rms, "shape": [*np.shape(values)], "samples": [float(f"{value:.9g}") for value in picked]}


def band_levels_db(waveform: np.ndarray) -> np.ndarray:
    """Levels of a waveform (channels, samples) in 24 bands below the loudest, -60 dB at least."""
    power = signal.welch(waveform, nperseg=2048)[1].mean(0)
    bands = np.add.reduceat(power, np.unique(np.geomspace(1, 1024, 24).astype(int)))
    return np.maximum(10 * np.log10(bands / bands.max() + 1e-20), -60.0)


def compare(name: str, values: np.ndarray, tolerance: float = TOLERANCE) -> None:
    """Asserts that an array is the golden one, but for a share of its root mean square.

    Where `WRITE_GOLDEN` is set, it becomes the golden one.
    """
    found = described(values)
    golden = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.is_file() else {}
    if os.environ.get("WRITE_GOLDEN"):
        golden[name] = found
        lines = [f"{json.dumps(each)}: {json.dumps(golden[each])}" for each in sorted(golden)]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        return
    wanted = golden[name]
    assert found["shape"] == wanted["shape"]
    assert math.isclose(found["rms"], wanted["rms"], rel_tol=tolerance)
    np.testing.assert_allclose(found["samples"], wanted["samples"], rtol=0, atol=tolerance * wanted["rms"])


@pytest.fixture(scope="module")
def pipeline() -> Aud2StudioPipeline:
    pipeline = Aud2StudioPipeline.from_pretrained(shipped_weights(), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def restored(pipeline: Aud2StudioPipeline) -> Callable[..., np.ndarray]:
    def restore(*words: object) -> np.ndarray:
        return pipeline(example("degraded.flac"), RATE, *words, generator=torch.Generator().manual_seed(0)).audios[0]

    return restore


@pytest.mark.parametrize(("name", "tolerance"), [("faithful", TOLERANCE), ("prediction", TOLERANCE), ("blend", 1e-3)])
def test_read_outs(restored, name: str, tolerance: float) -> None:
    compare(name, restored(2, name), tolerance)


def test_vocoder(restored, pipeline: Aud2StudioPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    levels_db = band_levels_db(restored(2, "vocoder"))
    compare("vocoder, band levels", levels_db, BAND_DB / described(levels_db)["rms"])
    monkeypatch.setattr(pipeline, "refine", None)
    compare("vocoder, one pass", restored(2, "vocoder"), 1e-4)


def test_two_recordings_aligned_by_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "of_two.wav"
    inputs = [str(EXAMPLES / name) for name in ("degraded.flac", "second.flac")]
    words = ["--inputs", *inputs, "--save", str(out), "--bit-depth", "float", "--dtype", "float32"]
    assert infer.main([*words, "--start", "2", "--end", "8"]) == 0
    compare("two recordings", soundfile.read(out)[0])


def test_features(pipeline: Aud2StudioPipeline) -> None:
    image, source = pipeline.image, ArraySource(example("degraded.flac"))
    num_frames = image.coarse.num_frames(source.num_samples)
    padded = Padded([source], num_frames, image.coarse.hop_length, image.coarse.pad)
    stretch = next(analyzed(padded, image, [[0, 1], [1, 0]], num_frames))
    for name in ("planes", "log_mel", "powers", "references"):
        compare(f"features, {name}", getattr(stretch.features, name).numpy())


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Noise of every kind, and places that are decaying noise."""
    folder, rng, sounds, rooms = tmp_path_factory.mktemp("material"), np.random.default_rng(0), [], []
    for kind in ("music", "song", "singing", "speech", "applause", "crowd"):
        envelope = np.exp(-4 * (np.arange(6 * RATE) / RATE % 0.5))
        np.save(folder / f"{kind}.npy", np.int16(6000 * envelope * rng.standard_normal((2, 6 * RATE))))
        sounds.append(Sound(folder / f"{kind}.npy", kind, kind, "CC0", kind, 6 * RATE))
    for name in ("hall", "club", "arena"):
        decay = np.exp(-6.9 * np.arange(RATE) / RATE / 0.9)
        np.save(folder / f"{name}.npy", np.float32(0.02 * decay * rng.standard_normal((8, RATE)) + np.eye(1, RATE)))
        rooms.append(Room(folder / f"{name}.npy", name, 0.9, 3.0))
    return Material(folder, tuple(sounds), tuple(rooms), tuple(rooms), ())


def test_a_rendered_pair(material: Material) -> None:
    scene = SceneRenderer(material, max_recordings=2, seed=1, seconds=2.0)(12)
    assert scene.recipe["condition"] == "both" and "codec" not in scene.recipe["recorder"]
    compare("pair, recording", scene.recordings[0])
    compare("pair, target", scene.target)


def test_a_row_of_the_benchmark(tmp_path: Path) -> None:
    parts = {"recording": "degraded.flac", "early": "clean.flac", "dry": "clean.flac"}
    for part, name in parts.items():
        soundfile.write(tmp_path / f"example-{part}.flac", example(name).T, RATE)
    clip = Clip(tmp_path, {"name": "example", "condition": "room", "voice": False})
    rows = run([clip], ["input", "prediction"], str(shipped_weights()), tmp_path / "out")
    for _, row in rows.iterrows():
        compare(f"benchmark, {row.system}", row[["early", "dry", "lsd", "balance", "gaps"]], 1e-4)
