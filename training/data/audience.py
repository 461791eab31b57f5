"""The audience: recorded applause, cheers and talk, cut anew every time, and babble of real speech."""

from __future__ import annotations

from typing import Any

import numpy as np
import soxr

from .material import SAMPLE_RATE, Material, Sound

# Chances of what is recorded, and of a babble of many voices.
KINDS = {
    "applause": 0.28,
    "crowd": 0.27,
    "cheering": 0.12,
    "chatter": 0.06,
    "ambience": 0.06,
    "laughter": 0.04,
    "whistles": 0.05,
    "babble": 0.12,
}


def draw_audience(
    rng: np.random.Generator, material: Material, num_microphones: int, samples: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Draws one or two audiences at unit RMS: (microphones, samples), and the recipe.

    Near people are heard by every microphone differently, far ones alike.
    """
    kinds = [kind for kind in KINDS if kind == "babble" or kind in material.by_kind]
    chances = np.array([KINDS[kind] for kind in kinds])
    mix, recipe = np.zeros((num_microphones, samples), np.float32), []
    for number in range(1 + int(rng.random() < 0.45)):
        kind = str(rng.choice(kinds, p=chances / chances.sum()))
        sounds = material.by_kind["speech" if kind == "babble" else kind]
        near = float(rng.uniform(0, np.pi / 2))
        common = _bed(rng, kind, sounds, samples)
        envelope, shape = _envelope(rng, samples)
        level = 10 ** (-rng.uniform(0, 12) / 20) if number else 1.0
        for microphone in range(num_microphones):
            bed = np.float32(np.cos(near)) * common + np.float32(np.sin(near)) * _bed(rng, kind, sounds, samples)
            mix[microphone] += np.float32(level) * bed * envelope
        recipe.append({"kind": kind, "near": near, "envelope": shape, "level": float(level)})
    return mix / (np.sqrt(np.mean(np.square(mix))) + 1e-9), {"audience": recipe}


def _bed(rng: np.random.Generator, kind: str, sounds: list[Sound], samples: int) -> np.ndarray:
    """Sound of one kind (samples) at unit RMS, joined from pieces with cross-fades."""
    if kind == "babble":
        bed = np.zeros(samples, np.float32)
        for _ in range(int(rng.integers(3, 20))):
            bed += np.float32(10 ** (rng.normal(0, 5) / 20)) * _pieces(rng, sounds, samples, several=True)
    else:
        bed = _pieces(rng, sounds, samples, several=rng.random() < 0.3)
    return bed / (np.sqrt(np.mean(np.square(bed))) + 1e-9)


def _pieces(rng: np.random.Generator, sounds: list[Sound], samples: int, several: bool) -> np.ndarray:
    """Pieces of one sound, or of several, one after the other: (samples)."""
    # It begins in the middle of a piece: a short sound would else be heard by all microphones at once.
    skipped = int(rng.uniform(0, 3) * SAMPLE_RATE)
    bed, at = np.zeros(skipped + samples, np.float32), 0
    weights = np.sqrt([sound.samples for sound in sounds])
    sound = sounds[int(rng.choice(len(sounds), p=weights / weights.sum()))]
    speed = float(rng.uniform(0.85, 1.2)) if rng.random() < 0.3 else 1.0
    while at < len(bed):
        if several:
            sound = sounds[int(rng.choice(len(sounds), p=weights / weights.sum()))]
        length = min(sound.samples, int(rng.uniform(2, 12) * SAMPLE_RATE))
        start = int(rng.integers(sound.samples - length + 1))
        waveform = sound.read(start, start + length)
        piece = waveform[int(rng.integers(len(waveform)))]
        if speed != 1.0:
            piece = soxr.resample(piece, SAMPLE_RATE * speed, SAMPLE_RATE, quality="MQ")
        piece = piece / (np.sqrt(np.mean(np.square(piece))) + 1e-4)
        fade = min(len(piece) // 3, int(rng.uniform(0.05, 0.6) * SAMPLE_RATE))
        ramp = np.sin(np.linspace(0, np.pi / 2, fade, dtype=np.float32))
        piece[:fade] *= ramp
        piece[len(piece) - fade :] *= ramp[::-1]
        end = min(len(bed), at + len(piece))
        bed[at:end] += piece[: end - at]
        at += max(len(piece) - fade, 1000)
    return bed[skipped:]


def _envelope(rng: np.random.Generator, samples: int) -> tuple[np.ndarray, str]:
    """Level over time (samples): steady, swelling, or an outburst."""
    shape = str(rng.choice(["steady", "swelling", "outburst"], p=[0.45, 0.3, 0.25]))
    if shape == "steady":
        return np.ones(samples, np.float32), shape
    seconds = samples / SAMPLE_RATE
    if shape == "swelling":
        times = np.linspace(0, seconds, max(3, int(seconds / rng.uniform(1, 4))))
        levels_db = rng.normal(0, 6, len(times))
    else:
        begin, length, rise = rng.uniform(0, seconds), rng.uniform(1, 8), rng.uniform(0.05, 1.5)
        times = np.array([0, begin, begin + rise, begin + rise + length, begin + 2 * rise + length, 2 * seconds + 20])
        quiet_db = rng.uniform(-40, -10)
        levels_db = np.array([quiet_db, quiet_db, 0, 0, quiet_db, quiet_db])
    level_db = np.interp(np.arange(0, samples, 64) / SAMPLE_RATE, times, levels_db)
    return np.repeat(10 ** (level_db / 20), 64)[:samples].astype(np.float32), shape
