"""Performances with several recordings: rendered for the benchmark, aligned, and put together in other ways than ours.

    python -m training.evaluation.performances --split test --acoustics DIR --voices DIR --out data/benchmark/several
    python -m training.evaluation.benchmark --clips data/benchmark/several --out build/several --systems SYSTEMS

with SYSTEMS `faithful,several,prediction,several_prediction,mean,coherence`: `faithful` and `prediction` restore the
reference alone. Every recording is made at a measured position of its own, with an audience of its own at 12 dB, and
starts, ends and runs on a clock of its own; the alignment has to undo that first. In the last condition somebody
claps near the reference.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from scipy import signal
from scipy.signal import oaconvolve

from pipeline_aud2studio.alignment import align
from pipeline_aud2studio.audio import Waveform
from training.data.responses import early_part
from training.data.rooms import tidy

from .clips import LEAD_IN_S, PEAK, SAMPLE_RATE, Clip, Sources, read_loop, render_all

SECONDS = 30.0
CONDITIONS = {"two": 2, "three": 3, "four": 4, "applause near one": 3}
FEWEST_POSITIONS = 3  # of a place; two are often one position, processed in two ways
COUNTS = {"test": 8, "validation": 4}  # performances of a condition
SNR_DB, SNR_SPREAD_DB = 12.0, 3.0
LATEST_S, DRIFT_PPM = 2.0, 40.0  # how late the others start, and how much faster or slower their clocks run at most
NEAR_DB, NEAR_S, NEAR_EVERY_S = -6.0, 3.0, 7.5  # the clapping: music to applause while it lasts; how long; how often
AVERAGE_FFT, AVERAGE_HOP, COHERENCE_FRAMES = 4096, 1024, 9


def draw(split: str, music: Path, acoustics: Path, voices: Path, seed: int = 2026) -> list[dict[str, Any]]:
    """Draws the rows of a split, in the places with enough measured positions, which take turns."""
    rng = np.random.default_rng([seed, 2, split == "validation"])
    sources = Sources.open(split, music, acoustics, voices)
    near = [row["file"] for row in sources.crowds if "applause" in row["file"] or "cheer" in row["file"]]
    rows: list[dict[str, Any]] = []
    for condition, count in CONDITIONS.items():
        spaces = [space for space in sources.spaces if len(sources.rooms_of(space)) >= max(count, FEWEST_POSITIONS)]
        for number in range(COUNTS[split]):
            source = sources.draw_source(rng, voice=number % 2 == 1)
            rooms = sources.rooms_of(spaces[number % len(spaces)])
            takes = []
            for take, room in enumerate(rng.permutation(len(rooms))[:count]):
                crowd = sources.crowds[int(rng.integers(len(sources.crowds)))]["file"]
                takes.append(
                    {
                        "rir": rooms[room]["file"],
                        "channels": int(rng.integers(1, 3)),
                        "crowd": crowd,
                        "crowd_start": float(rng.random()),
                        "snr_db": round(float(rng.normal(SNR_DB, SNR_SPREAD_DB)), 1),
                        "late_s": round(float(rng.uniform(0, LATEST_S)), 3) if take else 0.0,
                        "drift_ppm": round(float(rng.uniform(-DRIFT_PPM, DRIFT_PPM)), 1) if take else 0.0,
                    }
                )
            if condition == "applause near one":
                takes[0]["near"] = near[int(rng.integers(len(near)))]
            rows.append({"name": f"{len(rows):04d}", "condition": condition, **source, "takes": takes})
    return rows


def render(row: dict[str, Any], music: Path, acoustics: Path, voices: Path) -> dict[str, np.ndarray]:
    """Renders a row: `recording`, `early` and `dry` of the reference, and the others as `take1` and so on."""
    total = round((SECONDS + LEAD_IN_S) * SAMPLE_RATE)
    source = read_loop([(voices if row["voice"] else music) / file for file in row["source"]], row["start"], total)
    source = source.mean(0, keepdims=True) / (np.sqrt(np.mean(np.square(source))) + 1e-9)
    parts: dict[str, np.ndarray] = {}
    for number, take in enumerate(row["takes"]):
        sound, early = _heard(source, take, acoustics, total)
        scale = PEAK / max(float(np.abs(sound).max()), 1e-9)
        if number == 0:
            dry = np.repeat(source[:, -sound.shape[1] :], len(sound), 0)
            parts = {"recording": scale * sound, "early": scale * early, "dry": dry * (PEAK / np.abs(dry).max())}
            continue
        rate = SAMPLE_RATE * (1 + 1e-6 * take["drift_ppm"])
        sound = sound[:, round(take["late_s"] * SAMPLE_RATE) :]
        parts[f"take{number}"] = scale * soxr.resample(sound.T, SAMPLE_RATE, rate, quality="VHQ").T
    return parts


def _heard(source: np.ndarray, take: dict[str, Any], acoustics: Path, total: int) -> tuple[np.ndarray, np.ndarray]:
    """What one recorder hears of the source (1, samples), and the early sound in it: (channels, samples) each."""
    waveform, sample_rate = soundfile.read(acoustics / take["rir"], always_2d=True)
    responses = tidy(waveform.T[np.abs(waveform.T).max(1) > 0][: take["channels"]], sample_rate, SAMPLE_RATE)
    cut = slice(round(LEAD_IN_S * SAMPLE_RATE), total)
    sound, early = (oaconvolve(source, each, axes=-1)[:, cut] for each in (responses, early_part(responses)))
    audience = _at(acoustics / take["crowd"], take["crowd_start"], sound, take["snr_db"])
    if "near" in take:
        clapping = _at(acoustics / take["near"], 0.0, sound, NEAR_DB)
        time_s = np.arange(sound.shape[1]) / SAMPLE_RATE
        clapping *= (time_s % NEAR_EVERY_S > NEAR_EVERY_S - NEAR_S).astype(np.float32)
        audience = audience + clapping
    return (sound + audience).astype(np.float32), early.astype(np.float32)


def _at(path: Path, start: float, music: np.ndarray, snr_db: float) -> np.ndarray:
    """A stretch of a file as long as the music (channels, samples), so many dB below it."""
    crowd = read_loop([path], start, music.shape[1])[: len(music)]
    level = np.sqrt(np.mean(np.square(music)) / (np.mean(np.square(crowd)) + 1e-12))
    return crowd * np.float32(level * 10 ** (-snr_db / 20))


@functools.lru_cache(maxsize=64)
def aligned(clip: Clip) -> list[np.ndarray]:
    """The recordings on the reference's clock, the reference first, without those that the alignment refuses."""
    try:
        return align([clip.recording, *clip.takes], SAMPLE_RATE, reference=0).waveforms()
    except ValueError:  # fewer than two can be aligned
        return [clip.recording]


def mean(takes: Sequence[Waveform]) -> Waveform:
    """Averages takes (channels, samples) at equal level, with the channels of the first."""
    return _weighted(takes, lambda own, other: np.ones_like(own.real))


def coherence_weighted(takes: Sequence[Waveform]) -> Waveform:
    """Averages takes, each weighted per bin by its magnitude-squared coherence with the first, over 0.2 s."""

    def coherence(own: np.ndarray, other: np.ndarray) -> np.ndarray:
        kernel = np.ones(COHERENCE_FRAMES) / COHERENCE_FRAMES
        smooth = functools.partial(signal.fftconvolve, in2=kernel[None], mode="same", axes=-1)
        cross = smooth((own * other.conj()).real) + 1j * smooth((own * other.conj()).imag)
        return np.square(np.abs(cross)) / (smooth(np.abs(own) ** 2) * smooth(np.abs(other) ** 2) + 1e-12)

    return _weighted(takes, coherence)


def _weighted(takes: Sequence[Waveform], weigh: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Waveform:
    reference = takes[0]
    settings: dict[str, Any] = {"nperseg": AVERAGE_FFT, "noverlap": AVERAGE_FFT - AVERAGE_HOP}
    channels = []
    for channel, own in enumerate(reference):
        spectrum = signal.stft(own, **settings)[2]
        total, weights = spectrum.copy(), np.ones(spectrum.shape)
        for take in takes[1:]:
            other = take[min(channel, len(take) - 1)]
            level = np.sqrt(np.mean(np.square(own)) / (np.mean(np.square(other)) + 1e-12))
            heard = level * signal.stft(other, **settings)[2]
            weight = weigh(spectrum, heard)
            total += weight * heard
            weights += weight
        channels.append(signal.istft(total / weights, **settings)[1][: reference.shape[1]])
    return np.stack(channels).astype(np.float32)


def main(arguments: Sequence[str] | None = None) -> None:
    """Renders a split, see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("test", "validation"), required=True)
    parser.add_argument("--music", type=Path, default=Path("data/clean"))
    parser.add_argument("--acoustics", type=Path, required=True, metavar="DIR")
    parser.add_argument("--voices", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    folders = options.music, options.acoustics, options.voices
    try:
        render_all(draw(options.split, *folders), lambda row: render(row, *folders), options.out)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
