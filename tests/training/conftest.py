"""A corpus in miniature: tones with noise for music, decaying noise for rooms, noise for the crowd."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import soundfile
import torch
from hub_server import TOKEN, HubServer, environment, running

from training.jsonl import write_rows
from training.sources import Roots

SAMPLE_RATE = 44_100
SECONDS = 5.0
T20_S = 0.9
NOISES = ("applause", "cheering", "whistles", "babble", "chatter", "crowd", "hum", "hiss", "wind", "handling")
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
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    """Folders of music, rooms and noise with their indexes, two splits each."""
    root: Path = tmp_path_factory.mktemp("corpus")
    roots = Roots(root / "clean", root / "rirs", root / "noise")
    rng = np.random.default_rng(0)
    for folder in (roots.clean_music_dir, roots.rir_dir, roots.noise_dir):
        folder.mkdir()
    common = {"sample_rate": SAMPLE_RATE, "licence": "CC0-1.0"}
    music, rirs, noise = [], [], []
    for split in SPLITS:
        for number in range(2):
            soundfile.write(
                roots.clean_music_dir / f"{split}{number}.flac", _music(rng), SAMPLE_RATE, subtype="PCM_24"
            )
            music.append(
                {
                    **common,
                    "path": f"{split}{number}.flac",
                    "package": split,
                    "artist": f"{split} {number}",
                    "title": "",
                    "split": split,
                    "seconds": SECONDS,
                    "channels": 2,
                    "bandwidth_hz": 20_000.0,
                    "genre": "",
                }
            )
        for venue, (num_mics, mic_channels) in {"hall": (8, 1), "club": (4, 2)}.items():
            path = f"{split}_{venue}.wav"
            count = num_mics * mic_channels
            soundfile.write(roots.rir_dir / path, _responses(rng, count), SAMPLE_RATE, subtype="FLOAT")
            rirs.append(
                {
                    **common,
                    "path": path,
                    "venue": f"{split} {venue}",
                    "split": split,
                    "kind": "simulated",
                    "num_mics": num_mics,
                    "mic_channels": mic_channels,
                    "seconds": 1.2,
                    "t20_s": T20_S,
                    "drr_db": [0.0] * count,
                    "c50_db": [0.0] * count,
                    "origin": "",
                }
            )
        for kind in NOISES:
            seconds = float(rng.integers(1, 9))
            samples = 0.1 * rng.standard_normal(round(seconds * SAMPLE_RATE))
            soundfile.write(roots.noise_dir / f"{split}_{kind}.flac", np.clip(samples, -1, 1), SAMPLE_RATE)
            noise.append(
                {
                    **common,
                    "path": f"{split}_{kind}.flac",
                    "kind": kind,
                    "seconds": seconds,
                    "origin": "",
                    "split": split,
                }
            )
    write_rows(roots.clean_music_dir / "inventory.jsonl", music)
    write_rows(roots.rir_dir / "index.jsonl", rirs)
    write_rows(roots.noise_dir / "index.jsonl", noise)
    return roots


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
