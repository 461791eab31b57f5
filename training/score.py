"""A band that plays from a score: the same notes and the same instruments, but never with the same timing.

What tells two nights of one song apart is nothing but the hands. The instruments here are fixed samples, the hardest
case for an aligner: only time and touch of every note differ between performances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CHORDS = ((0, 4, 7), (5, 9, 12), (7, 11, 14), (9, 12, 16), (2, 5, 9))  # I, IV, V, vi, ii over the key's root


@dataclass(frozen=True)
class Note:
    """`beat` and `beats` are its start and length; `pitch` is MIDI's number, for drums the number of the drum."""

    instrument: str
    beat: float
    beats: float
    pitch: int
    loudness: float


def write_score(seed: int, num_beats: int) -> list[Note]:
    """Chords, bass, melody and drums; four beats a bar, eight bars that return with another melody."""
    rng = np.random.default_rng(seed)
    root = int(rng.integers(45, 57))
    bars = rng.integers(len(CHORDS), size=8)
    notes = []
    for beat in range(num_beats):
        chord = CHORDS[bars[beat // 4 % 8]]
        if beat % 4 == 0:
            notes += [Note("chord", beat, 4, root + 12 + step, 0.25) for step in chord]
        notes.append(Note("bass", beat, 1, root - 12 + chord[0] + (12 if rng.random() < 0.2 else 0), 0.6))
        for half in (0.0, 0.5):
            if rng.random() < 0.6:
                notes.append(Note("melody", beat + half, 0.5, root + 24 + int(rng.choice(chord)), 0.4))
            notes.append(Note("drum", beat + half, 0.25, 2, 0.15))
        notes.append(Note("drum", beat, 0.5, beat % 2, 0.7))
    return notes


def note_samples(note: Note, seconds: float, sample_rate: int) -> np.ndarray:
    """One note, always the same for the same pitch and length, (samples,)."""
    time = np.arange(int(seconds * sample_rate)) / sample_rate
    if note.instrument == "drum":
        decay_s, centre_hz = ((0.12, 60.0), (0.08, 190.0), (0.03, 0.0))[note.pitch]
        noise = np.random.default_rng(note.pitch).standard_normal(len(time))
        tone = np.sin(2 * np.pi * centre_hz * time) if centre_hz else 0.0
        return (tone + (0.1, 0.5, 0.7)[note.pitch] * noise) * np.exp(-time / decay_s)
    frequency = 440.0 * 2 ** ((note.pitch - 69) / 12)
    harmonics = np.arange(1, min(20, int(0.4 * sample_rate / frequency)) + 1)
    brightness = {"chord": 1.6, "bass": 1.2, "melody": 1.0}[note.instrument]
    decay_s = {"chord": 1.5, "bass": 0.6, "melody": 0.4}[note.instrument]
    partials = np.sin(2 * np.pi * frequency * harmonics[:, None] * time) * np.exp(
        -time * np.sqrt(harmonics)[:, None] / decay_s
    )
    release = np.minimum(1.0, (seconds - time) / 0.02)
    return (harmonics**-brightness) @ partials * np.minimum(1.0, time / 0.004) * release


def perform(score_seed: int, performance_seed: int, seconds: float, sample_rate: int) -> np.ndarray:
    """One night's performance of a score, (samples,) of about `seconds` and unit RMS.

    The tempo differs by 2 % from night to night and wanders by 1 %, every note comes early or late by 12 ms (standard
    deviations) and is louder or softer by 2 dB.
    """
    rng = np.random.default_rng(performance_seed)
    beats_per_s = np.random.default_rng(score_seed).uniform(1.4, 2.4)
    num_beats = int(seconds * beats_per_s)
    notes = write_score(score_seed, num_beats)
    tempo = beats_per_s * (
        1 + 0.02 * rng.standard_normal() + 0.01 * np.cumsum(rng.standard_normal(num_beats + 8)) / np.sqrt(num_beats)
    )
    beat_times = np.concatenate([[0.1], 0.1 + np.cumsum(1 / tempo)])
    out = np.zeros(int((beat_times[-1] + 1.0) * sample_rate), dtype=np.float32)
    made: dict[tuple[str, int, float], np.ndarray] = {}
    for note in notes:
        key = (note.instrument, note.pitch, note.beats)
        if key not in made:
            made[key] = note_samples(note, note.beats / beats_per_s + 0.1, sample_rate).astype(np.float32)
        at_s = float(np.interp(note.beat, np.arange(len(beat_times)), beat_times)) + 0.012 * rng.standard_normal()
        at = max(0, round(at_s * sample_rate))
        samples = made[key][: len(out) - at]
        out[at : at + len(samples)] += note.loudness * 10 ** (rng.normal(0.0, 2.0) / 20) * samples
    return out / np.sqrt(np.mean(np.square(out)))
