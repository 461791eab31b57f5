"""The measure of tones against its formula, and verdicts on systems that are known to be harmless or not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy import signal

from training.evaluate import Row
from training.evaluate_extremes import restore_clean, restore_crowds, spectral_flatness_db, summarise
from training.jsonl import write_rows
from training.sources import Roots
from training.systems import System

SAMPLE_RATE = 44_100


def test_flatness_of_noise_is_that_of_its_fluctuating_bins() -> None:
    """The log of a chi-squared bin is Euler's gamma below the log of its mean: 2.51 dB. Level does not matter."""
    noise = np.random.default_rng(0).standard_normal((2, 10 * SAMPLE_RATE)).astype(np.float32)
    assert spectral_flatness_db(noise, SAMPLE_RATE) == pytest.approx(-10 * np.euler_gamma / np.log(10), abs=0.05)
    assert spectral_flatness_db(1e-3 * noise, SAMPLE_RATE) == pytest.approx(-2.51, abs=0.05)


def test_tones_are_far_from_flat() -> None:
    times = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    chord = sum(np.sin(2 * np.pi * pitch * times) for pitch in (440.0, 554.4, 659.3))[None]
    assert spectral_flatness_db(chord.astype(np.float32), SAMPLE_RATE) < -30


def verdict(run: Callable[..., np.ndarray], corpus: Roots, noise_dir: Path) -> dict[str, Any]:
    rows: list[Row] = [
        {
            "music_path": f"train{number}.flac",
            "music_stems": [],
            "music_offset_s": 1.0,
            "lead_in_s": 0.5,
            "seconds": 2.0,
            "sample_rate": SAMPLE_RATE,
            "channels": 2,
        }
        for number in (0, 1, 1)
    ]
    roots = Roots(corpus.clean_music_dir, corpus.rir_dir, noise_dir)
    system = System("toy", run, "1")
    return summarise(restore_clean(system, rows, roots), restore_crowds(system, roots, SAMPLE_RATE))


@pytest.fixture
def noise_dir(tmp_path: Path) -> Path:
    noise = np.random.default_rng(1).standard_normal((3 * SAMPLE_RATE, 1))
    rows = []
    for kind, split in (("applause", "test"), ("cheering", "test"), ("hum", "test"), ("applause", "train")):
        soundfile.write(tmp_path / f"{kind}_{split}.wav", 0.1 * noise, SAMPLE_RATE)
        rows.append({"path": f"{kind}_{split}.wav", "kind": kind, "split": split})
    write_rows(tmp_path / "index.jsonl", rows)
    return tmp_path


def test_a_harmless_system(corpus: Roots, noise_dir: Path) -> None:
    """Noise 30 dB below the music is SI-SDR 30 dB; beds of other splits and kinds do not count."""
    rng = np.random.default_rng(2)

    def hiss(recording: np.ndarray, clean: np.ndarray, sample_rate: int) -> np.ndarray:
        noise = rng.standard_normal(recording.shape)
        level = np.sqrt(np.mean(recording**2, axis=-1, keepdims=True)) * 10 ** (-30 / 20)
        return (recording + level * noise).astype(np.float32)

    summary = verdict(hiss, corpus, noise_dir)
    assert summary["clean"]["pieces"] == 2 and summary["crowd"]["beds"] == 2
    assert summary["clean"]["si_sdr"] == pytest.approx(30.0, abs=0.1)
    assert summary["clean"]["share_above_20_db"] == summary["crowd"]["share_still_crowd"] == 1.0


def test_a_system_that_hears_music_everywhere(corpus: Roots, noise_dir: Path) -> None:
    def comb(recording: np.ndarray, clean: np.ndarray, sample_rate: int) -> np.ndarray:
        """A resonator for every note: rings along with whatever comes in."""
        numerator, denominator = signal.iircomb(440.0, 500.0, ftype="peak", fs=sample_rate - sample_rate % 440)
        return signal.lfilter(numerator, denominator, recording).astype(np.float32)

    summary = verdict(comb, corpus, noise_dir)
    assert summary["clean"]["si_sdr"] < 20.0 and summary["clean"]["share_above_20_db"] == 0.0
    assert summary["crowd"]["restored_flatness_db"] < summary["crowd"]["flatness_db"] - 3.0
    assert summary["crowd"]["share_still_crowd"] == 0.0
