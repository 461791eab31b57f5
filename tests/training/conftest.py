"""A corpus in miniature: tones with noise for music, decaying noise for rooms, noise for the crowd."""

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import soundfile
import torch
from hub_server import TOKEN, HubServer, environment, running

from training.data.material import main as prepare_material
from training.jsonl import write_rows

SAMPLE_RATE = 44_100
SECONDS = 5.0
T20_S = 0.9
SPLITS = ("train", "validation")


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """Training on a CPU flushes denormals to zero, in the whole process; the next test has them again."""
    yield
    torch.set_flush_denormal(False)


def _music(rng: np.random.Generator) -> np.ndarray:
    """(samples, 2): plucked notes, different ones left and right, over a little noise."""
    times = np.arange(round(0.6 * SAMPLE_RATE)) / SAMPLE_RATE
    music = 0.02 * rng.standard_normal((round(SECONDS * SAMPLE_RATE) + len(times), 2))
    for start in range(0, round(SECONDS * SAMPLE_RATE), 4410):
        pitch = 110.0 * 2.0 ** (rng.integers(36) / 12.0)
        note = np.exp(-4.0 * times) * sum(np.sin(2 * np.pi * k * pitch * times) / k for k in range(1, 5))
        music[start : start + len(times), rng.integers(2)] += note
    return 0.5 * music[: round(SECONDS * SAMPLE_RATE)] / np.abs(music).max()


def _responses(rng: np.random.Generator, count: int) -> np.ndarray:
    """(samples, count): a direct path, 5 ms of nothing, and a decay of T20_S."""
    times = np.arange(round(1.2 * SAMPLE_RATE)) / SAMPLE_RATE
    responses = 0.02 * rng.standard_normal((len(times), count)) * np.exp(-3.0 * np.log(10.0) * times / T20_S)[:, None]
    responses[:220] = 0.0
    responses[0] = 1.0
    return responses


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of music with its inventory, two splits."""
    root, rng, rows = tmp_path_factory.mktemp("clean"), np.random.default_rng(0), []
    common = {"sample_rate": SAMPLE_RATE, "licence": "CC0-1.0", "seconds": SECONDS, "channels": 2}
    for split in SPLITS:
        for number in range(2):
            name = f"{split}{number}.flac"
            soundfile.write(root / name, _music(rng), SAMPLE_RATE, subtype="PCM_24")
            rows.append({**common, "path": name, "package": split, "artist": f"{split} {number}", "split": split})
    write_rows(root / "inventory.jsonl", rows)
    return root


@pytest.fixture(scope="session")
def acoustics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of rooms and audiences as they are published: two places to train on, one to measure with."""
    root, rng, rows = tmp_path_factory.mktemp("acoustics"), np.random.default_rng(1), []
    (root / "rir").mkdir()
    (root / "crowd").mkdir()
    common = {"sample_rate": SAMPLE_RATE, "licence": "MIT", "origin": "somebody"}
    for space, split in (("hall", "train"), ("club", "train"), ("arena", "test")):
        late = np.zeros((200, 2))  # what a measurement has before the direct sound
        name = f"rir/{space}.wav"
        soundfile.write(root / name, np.concatenate([late, _responses(rng, 2)]), SAMPLE_RATE, subtype="FLOAT")
        rows.append({**common, "file": name, "kind": "rir", "split": split, "space": space, "channels": 2})
    for kind in ("applause", "crowd"):
        for split in ("train", "test"):
            name = f"crowd/{split}_{kind}.flac"
            soundfile.write(root / name, 0.1 * rng.standard_normal((3 * SAMPLE_RATE, 2)), SAMPLE_RATE)
            rows.append({**common, "file": name, "kind": kind, "split": split})
    (root / "device").mkdir()
    for name, kind in (("box", "cabinet"), ("tape", "microphone")):
        soundfile.write(root / f"device/{name}.wav", 0.5 * np.eye(4096, 1), SAMPLE_RATE, subtype="FLOAT")
        rows.append({**common, "file": f"device/{name}.wav", "kind": kind, "split": "train"})
    (root / "index.json").write_text(json.dumps(rows))
    return root


@pytest.fixture(scope="session")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of voices as they are published; one song is for measuring, one must not be used, one has no highs."""
    root, rng, rows = tmp_path_factory.mktemp("voices"), np.random.default_rng(2), []
    kinds = {
        "lead": ("solo_singing", "train", "CC0", 18000),
        "chant": ("solo_singing", "train", "CC BY-SA", 8500),
        "song": ("song_with_vocals", "train", "CC0", 18000),
        "talk": ("speech", "train", "CC0", 9000),
        "bought": ("song_with_vocals", "train", "CC BY-NC 3.0", 18000),
        "viral": ("song_with_vocals", "train", "GPL-3", 18000),
        "hit": ("song_with_vocals", "test", "CC BY-NC 3.0", 18000),
    }
    for name, (kind, split, licence, bandwidth_hz) in kinds.items():
        soundfile.write(root / f"{name}.flac", _music(rng), SAMPLE_RATE)
        row = {"file": f"{name}.flac", "kind": kind, "split": split, "licence": licence, "origin": name}
        rows.append(row | {"bandwidth_hz": bandwidth_hz})
    (root / "index.json").write_text(json.dumps(rows))
    return root


@pytest.fixture(scope="session")
def material(corpus: Path, acoustics: Path, voices: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `training.data.material` makes of the corpus in miniature."""
    out = tmp_path_factory.mktemp("material")
    folders = {"--music": corpus, "--acoustics": acoustics, "--voices": voices, "--out": out}
    prepare_material([str(word) for option in folders.items() for word in option] + ["--halls", "2"])
    return out


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[HubServer]:
    """A running Hub, and this process pointed to it with a token in the usual place."""
    with running(TOKEN) as server:
        for name, value in environment(server, tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
        monkeypatch.delenv("HF_TOKEN")
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "token").write_text(TOKEN)  # where `hf auth login` puts it
        yield server
