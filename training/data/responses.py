"""Room responses of several microphones of one place: measured ones, varied, and generated ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import fft

from training.rooms import DIRECT_S, EARLY_S, FADE_S, energy_ratio_db, t20_s

from .material import SAMPLE_RATE, Material

SPEED_OF_SOUND = 343.0  # m/s
LONGEST_S = 4.0
OCTAVES_HZ = np.array([63.0, 125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0])


@dataclass(frozen=True)
class Place:
    """Responses (microphones, samples) float32, direct sound at sample 0, and what they are."""

    responses: np.ndarray
    rt60_s: float
    drr_db: float
    recipe: dict[str, Any]


def early_part(responses: np.ndarray) -> np.ndarray:
    """Returns the first 50 ms (microphones, samples), faded out over 5 ms after them."""
    end, fade = round(EARLY_S * SAMPLE_RATE), round(FADE_S * SAMPLE_RATE)
    early = responses[:, : end + fade].copy()
    tail = early[:, end:]
    tail *= np.cos(0.5 * np.pi * (np.arange(tail.shape[1]) + 0.5) / fade) ** 2
    return early


def draw_place(rng: np.random.Generator, material: Material, num_microphones: int, measured_share: float) -> Place:
    """Draws a place with `num_microphones` microphones: neighbours are a stereo pair, further ones are elsewhere in
    it.

    Half of all places ring longer than a second.
    """
    low, high = ((0.25, 1.0), (1.0, 3.8))[int(rng.random() < 0.55)]
    rt60_s = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    if material.rooms and rng.random() < measured_share:
        responses, recipe = _measured(rng, material, num_microphones, rt60_s)
    else:
        responses, recipe = _generated(rng, num_microphones, rt60_s)
    if rng.random() < 0.7 or recipe["kind"] == "generated":
        drr_db = float(rng.uniform(-13.0, 10.0))
        _set_drr(rng, responses, drr_db)
    responses = responses[:, : round(LONGEST_S * SAMPLE_RATE)].astype(np.float32)
    try:
        measured_s = t20_s(responses[0].astype(np.float64), SAMPLE_RATE)
    except ValueError:
        measured_s = rt60_s
    drr_db = energy_ratio_db(responses[0], SAMPLE_RATE, DIRECT_S)
    return Place(responses, float(np.clip(measured_s, 0.05, 12.0)), drr_db, recipe)


def _measured(
    rng: np.random.Generator, material: Material, num_microphones: int, rt60_s: float
) -> tuple[np.ndarray, dict[str, Any]]:
    """Microphones of one measured space, their decay changed by an exponential window."""
    spaces = sorted({room.space for room in material.rooms})
    space = spaces[int(rng.integers(len(spaces)))]
    rooms = [room for room in material.rooms if room.space == space]
    picks = rng.permutation(len(rooms))
    channels, files, own_s = [], [], rooms[picks[0]].t20_s
    for pick in picks:
        loaded = rooms[pick].responses().astype(np.float64)
        first = int(rng.integers(2)) if len(loaded) > 1 else 0
        channels += list(loaded[[first, 1 - first]] if len(loaded) > 1 else loaded)
        files.append(rooms[pick].path.name)
        if len(channels) >= num_microphones:
            break
    # A place with too few microphones lends the tail of one, shifted: the same decay, other reflections.
    while len(channels) < num_microphones:
        base, shift = channels[int(rng.integers(len(channels)))], int(rng.integers(100, 2000))
        late = round(DIRECT_S * SAMPLE_RATE)
        other = base.copy()
        other[late:] = np.roll(base[late:], shift) * rng.choice([-1.0, 1.0])
        channels.append(other)
    wanted_s = float(np.clip(rt60_s, 0.4 * own_s, 2.0 * own_s))
    length = max(map(len, channels))
    responses = np.stack([np.pad(channel, (0, length - len(channel))) for channel in channels[:num_microphones]])
    decay_per_s = 3 * np.log(10) * (1 / wanted_s - 1 / own_s)
    responses *= np.exp(-decay_per_s * np.arange(length) / SAMPLE_RATE)
    return responses, {"kind": "measured", "space": space, "files": files, "rt60_s": wanted_s}


def _generated(rng: np.random.Generator, num_microphones: int, rt60_s: float) -> tuple[np.ndarray, dict[str, Any]]:
    """A direct sound, sparse early reflections, and noise that decays in every octave at a rate of its own.

    Neighbours stand 15 to 40 cm apart, and the diffuse sound between them has the coherence `sin(kd) / kd`; further
    microphones hear another noise of the same decays.
    """
    length = fft.next_fast_len(round(min(1.3 * rt60_s + 0.1, LONGEST_S) * SAMPLE_RATE), real=True)
    frequencies = fft.rfftfreq(length, 1 / SAMPLE_RATE).astype(np.float32)
    # Bass rings longer, highs shorter: air and cloth.
    shape = np.interp(np.log(OCTAVES_HZ), np.log([63, 500, 2000, 16000]), [rng.uniform(0.8, 1.6), 1, 1, 0.5])
    shape[-2:] *= rng.uniform(0.4, 1.0)
    decays_s = rt60_s * shape * np.exp(rng.normal(0, 0.1, len(shape)))
    levels_db = rng.normal(0, 2.5, len(shape)) - np.linspace(0, 1, len(shape)) ** 2 * rng.uniform(0, 14)
    build_up = 1 - np.exp(-np.arange(length) / SAMPLE_RATE / rng.uniform(0.002, 0.03))
    spectra = np.empty((num_microphones, len(frequencies)), np.complex64)
    distance_m = rng.uniform(0.1, 0.4)
    coherence = np.sinc(2 * frequencies * distance_m / SPEED_OF_SOUND)
    for microphone in range(num_microphones):
        noise = fft.rfft(rng.standard_normal(length, np.float32))
        if microphone % 2:
            noise = coherence * spectra[microphone - 1] + np.sqrt(1 - coherence**2) * noise
        spectra[microphone] = noise
    responses = np.zeros((num_microphones, length), np.float32)
    time_s = np.arange(length, dtype=np.float32) / SAMPLE_RATE
    octave = np.log2(np.maximum(frequencies, 20.0))
    for centre_hz, decay_s, level_db in zip(OCTAVES_HZ, decays_s, levels_db, strict=True):
        weight = np.cos(0.5 * np.pi * np.clip(np.abs(octave - np.log2(centre_hz)), 0, 1)).astype(np.float32)
        envelope = np.exp(-3 * np.log(10) / decay_s * time_s) * np.float32(10 ** (level_db / 20))
        responses += fft.irfft(spectra * weight, length, axis=-1) * envelope
    responses *= build_up.astype(np.float32) / np.sqrt(np.mean(np.square(responses)))
    times_s = np.sort(rng.uniform(0.003, 0.09, int(rng.integers(4, 30))))
    for time in times_s:
        amplitude = 30 * rng.uniform(0.2, 1.0) * np.exp(-3 * np.log(10) / rt60_s * time) * rng.choice([-1, 1])
        for microphone in range(num_microphones):
            arrival = time * (1 + 0.3 * rng.uniform(-1, 1) * (microphone // 2)) + rng.uniform(-1, 1) * distance_m / 343
            responses[microphone, int(max(arrival, 0.0025) * SAMPLE_RATE)] += amplitude * rng.uniform(0.5, 1)
    responses[:, : round(0.001 * SAMPLE_RATE)] = 0
    responses[:, 0] = 100.0
    return responses.astype(np.float64), {"kind": "generated", "rt60_s": rt60_s, "distance_m": float(distance_m)}


def _set_drr(rng: np.random.Generator, responses: np.ndarray, drr_db: float) -> None:
    """Scales what is behind the direct sound, so that the first pair has this ratio, and others about it."""
    direct = round(DIRECT_S * SAMPLE_RATE)
    for first in range(0, len(responses), 2):
        pair = responses[first : first + 2]
        ratio = np.square(pair[:, :direct]).sum() / (np.square(pair[:, direct:]).sum() + 1e-12)
        wanted_db = drr_db + (rng.normal(0, 3) if first else 0.0)
        pair[:, direct:] *= np.sqrt(ratio * 10 ** (-wanted_db / 10))
