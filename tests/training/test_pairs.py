"""Real pairs: recordings in files, aligned with the clean one when they are loaded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pipeline_aud2studio.clock import Segment, read_on_reference_clock
from pipeline_aud2studio.recording import Recording
from training.data import make_loader
from training.jsonl import write_rows
from training.manifest import check_row
from training.pairs import load_pair
from training.sources import Roots

SAMPLE_RATE = 44_100
OFFSET_S, DRIFT_PPM = -1.37, 80.0  # the recording began 1.37 s before the desk, and its clock is fast


def music(seconds: float, rng: np.random.Generator) -> np.ndarray:
    """(2, samples): notes with attacks at random times over a little noise."""
    out = 0.003 * rng.standard_normal((2, round(seconds * SAMPLE_RATE)))
    times = np.arange(round(0.4 * SAMPLE_RATE)) / SAMPLE_RATE
    for start_s in np.cumsum(rng.uniform(0.08, 0.4, size=round(seconds * 5))):
        start = round(start_s * SAMPLE_RATE)
        if start + len(times) > out.shape[-1]:
            break
        pitch = 110.0 * 2.0 ** (rng.integers(36) / 12.0)
        note = np.exp(-6.0 * times) * sum(np.sin(2 * np.pi * k * pitch * times) / k for k in range(1, 6))
        out[:, start : start + len(times)] += 0.1 * rng.uniform(0.3, 1.0, size=(2, 1)) * note
    return out.astype(np.float32)


@pytest.fixture(scope="module")
def pairs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """desk.flac; audience.flac, late, fast, inverted, half as loud and noisy; stranger.flac, another piece."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    desk = music(30.0, rng)
    # Reading the desk "on the clock" of the recording: the inverse of what alignment has to find.
    inverse = Segment(
        0.0, np.inf, -OFFSET_S * (1 + DRIFT_PPM * 1e-6), -DRIFT_PPM * 1e-6 / (1 + DRIFT_PPM * 1e-6) * 1e6
    )
    heard = read_on_reference_clock(Recording(desk, SAMPLE_RATE), inverse, 0, 28 * SAMPLE_RATE, SAMPLE_RATE)
    noise = 0.003 * rng.standard_normal(heard.shape)
    for name, waveform in (("desk", desk), ("audience", -0.5 * (heard + noise)), ("stranger", music(28.0, rng))):
        soundfile.write(folder / f"{name}.flac", waveform.T, SAMPLE_RATE, subtype="PCM_24")
    return folder


def row(**changes: Any) -> dict[str, Any]:
    return check_row(
        {
            "kind": "real",
            "row_id": 5,
            "seed": 1,
            "split": "train",
            "condition": "phone",
            "sample_rate": SAMPLE_RATE,
            "seconds": 3.0,
            "channels": 2,
            "num_takes": 1,
            "recordings": ["audience.flac"],
            "clean": "desk.flac",
            "offset_s": 12.0,
            **changes,
        }
    )


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("offset_s", [4.0, 21.5])
def test_real_pair_is_aligned_on_load(pairs_dir: Path, channels: int, offset_s: float) -> None:
    roots = Roots(pairs_dir, pairs_dir, pairs_dir, pairs_dir)
    pair = load_pair(row(channels=channels, offset_s=offset_s), roots)
    assert pair.recordings.shape == (1, channels, 3 * SAMPLE_RATE)
    assert pair.clean.shape == (channels, 3 * SAMPLE_RATE)
    for recorded, clean in zip(pair.recordings[0], pair.clean, strict=True):
        gain = np.vdot(clean, recorded) / np.vdot(clean, clean)
        error = recorded - gain * clean
        assert gain == pytest.approx(1.0, abs=0.1)  # upright, and at the recording's level
        assert 10 * np.log10(np.vdot(gain * clean, gain * clean) / np.vdot(error, error)) > 15


def test_rows_of_several_kinds_share_a_manifest(pairs_dir: Path, tmp_path: Path) -> None:
    roots = Roots(pairs_dir, pairs_dir, pairs_dir, pairs_dir)
    rendered = row() | {"kind": "rendered", "row_id": 6, "early": "desk.flac"}
    write_rows(tmp_path / "pairs.jsonl", [row(), rendered], versions={})
    batch = next(iter(make_loader(tmp_path / "pairs.jsonl", roots, batch_size=2, epochs=1)))
    assert batch["row_id"] == [5, 6]
    assert batch["recordings"].shape == (2, 4, 3 * SAMPLE_RATE)
    assert batch["num_slots"].tolist() == [2, 2]


def test_what_cannot_be_aligned_is_named(pairs_dir: Path) -> None:
    roots = Roots(pairs_dir, pairs_dir, pairs_dir, pairs_dir)
    with pytest.raises(ValueError, match=r"manifest row 5: .*stranger.flac"):
        load_pair(row(recordings=["stranger.flac"]), roots)
    with pytest.raises(ValueError, match="gone.flac does not exist"):
        load_pair(row(recordings=["gone.flac"]), roots)
    with pytest.raises(ValueError, match="no folder of pairs"):
        load_pair(row(), Roots(pairs_dir, pairs_dir, pairs_dir))
