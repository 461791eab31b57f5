"""Room responses of several microphones of one place: measured and simulated ones, varied, and generated ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import fft, ndimage

from .material import SAMPLE_RATE, Material, Room
from .rooms import DIRECT_S, EARLY_S, FADE_S, SPEED_OF_SOUND, energy_decay_db, energy_ratio_db, t20_s

LONGEST_S = 4.0
OCTAVES_HZ = np.array([63.0, 125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0])
LONG_SHARE = 0.58  # of the decays that are drawn; a part of them is heard shorter, so that half ring over a second
SHORTEST, LONGEST = 0.4, 2.0  # how far the decay of a known place is changed
KNOWN_DB = -30.0  # a response is believed to here; below, in the noise of its measurement, a lengthened one is made up


@dataclass(frozen=True)
class Place:
    """Responses, the direct sound at sample 0, and what they are.

    Attributes:
        responses: (microphones, samples) float32, of one loudspeaker. Neighbours are a stereo pair.
        across: (2, samples), of the other side's loudspeaker at the first pair, where two play different things.
        rt60_s, drr_db: Of the first microphone, measured.
    """

    responses: np.ndarray
    across: np.ndarray
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


def draw_place(rng: np.random.Generator, material: Material, num_microphones: int) -> Place:
    """Draws a place with `num_microphones` microphones: neighbours are a stereo pair, further ones are elsewhere in
    it.

    Half of all places ring longer than a second. Measured, simulated and generated ones are as frequent.
    """
    low, high = ((0.25, 1.0), (1.0, 5.0))[int(rng.random() < LONG_SHARE)]
    rt60_s = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    known = [rooms for rooms in (material.rooms, material.halls) if rooms]
    kind = int(rng.integers(len(known) + 1))
    if kind < len(known):
        responses, recipe = _known(rng, known[kind], num_microphones + 2, rt60_s)
    else:
        responses, recipe = _generated(rng, num_microphones + 2, rt60_s)
    if rng.random() < 0.7 or recipe["kind"] == "generated":
        _set_drr(rng, responses, float(rng.uniform(-20.0, 10.0)))
    responses = responses[:, : round(LONGEST_S * SAMPLE_RATE)].astype(np.float32)
    # A microphone of a pair hears the other side's loudspeaker later, and less.
    shift = round(float(rng.uniform(0, 0.003)) * SAMPLE_RATE)
    crosstalk = float(rng.uniform(0.3, 0.9))
    across = crosstalk * np.pad(responses[-2:], ((0, 0), (shift, 0)))[:, : responses.shape[1]]
    try:
        measured_s = t20_s(responses[0].astype(np.float64), SAMPLE_RATE)
    except ValueError:
        measured_s = rt60_s
    drr_db = energy_ratio_db(responses[0], SAMPLE_RATE, DIRECT_S)
    recipe |= {"across_delay_s": shift / SAMPLE_RATE, "crosstalk": crosstalk}
    return Place(responses[:-2], across, float(np.clip(measured_s, 0.05, 12.0)), drr_db, recipe)


def _known(
    rng: np.random.Generator, rooms: tuple[Room, ...], num_microphones: int, rt60_s: float
) -> tuple[np.ndarray, dict[str, Any]]:
    """Microphones of one measured or simulated space, whose decay can be brought near what is wanted."""
    near = [room for room in rooms if SHORTEST * room.t20_s <= rt60_s <= LONGEST * room.t20_s] or list(rooms)
    spaces = sorted({room.space for room in near})
    space = spaces[int(rng.integers(len(spaces)))]
    near = [room for room in near if room.space == space]
    channels, files = [], []
    picks = [near[int(pick)] for pick in rng.permutation(len(near))]
    for room in picks:
        loaded = room.responses()
        first = int(rng.integers(2)) if len(loaded) > 1 else 0
        channels += list(loaded[[first, 1 - first]]) + list(loaded[2:]) if len(loaded) > 1 else list(loaded)
        files.append(room.path.name)
        if len(channels) >= num_microphones:
            break
    own_s = picks[0].t20_s
    wanted_s = float(np.clip(rt60_s, SHORTEST * own_s, LONGEST * own_s))
    length = max(map(len, channels))
    responses = np.stack([np.pad(channel, (0, length - len(channel))) for channel in channels[:num_microphones]])
    responses = _with_decay(rng, responses.astype(np.float64), own_s, wanted_s)
    # A place with too few microphones lends the tail of one, shifted: the same decay, other reflections.
    late = round(DIRECT_S * SAMPLE_RATE)
    lent: list[np.ndarray] = []
    while len(responses) + len(lent) < num_microphones:
        other = responses[int(rng.integers(len(responses)))].copy()
        shift = int(rng.integers(100, 2000))
        other[late + shift :] = other[late:-shift] * rng.choice([-1.0, 1.0])
        other[late : late + shift] *= rng.uniform(0.3, 1.0)
        lent.append(other)
    responses = np.stack([*responses, *lent])
    return responses, {"kind": picks[0].kind, "space": space, "files": files, "rt60_s": wanted_s}


def _with_decay(rng: np.random.Generator, responses: np.ndarray, own_s: float, wanted_s: float) -> np.ndarray:
    """Changes the decay of responses (microphones, samples) by an exponential window.

    Where that makes it longer, what lies 30 dB down and further is replaced by noise of the colour that was heard
    before, which decays as is wanted. The end of a measurement would else grow until it stops.
    """
    decay_per_s = 3 * np.log(10) * (1 / wanted_s - 1 / own_s)
    changed = responses * np.exp(-decay_per_s * np.arange(responses.shape[1]) / SAMPLE_RATE)
    if wanted_s <= own_s:
        return changed
    block = round(0.02 * SAMPLE_RATE)
    ends = [int(np.argmax(energy_decay_db(response) <= KNOWN_DB)) for response in responses]
    length = max(ends) + round(min(0.6 * wanted_s, LONGEST_S) * SAMPLE_RATE) + 2 * block
    out = np.zeros((len(responses), fft.next_fast_len(length, real=True)))
    noise = _diffuse_noise(rng, len(responses), out.shape[1], 0.3)
    fall = np.exp(-3 * np.log(10) / wanted_s * np.arange(out.shape[1]) / SAMPLE_RATE)
    for row, response, spectrum, end in zip(out, changed, noise, ends, strict=True):
        end = max(end, 3 * block)
        heard = response[max(0, end - 5 * block) : end]
        power = ndimage.gaussian_filter1d(np.abs(np.fft.rfft(heard)) ** 2, 2.0)
        grid = np.linspace(0, 1, len(spectrum))
        tail = fft.irfft(spectrum * np.sqrt(np.interp(grid, np.linspace(0, 1, len(power)), power)), out.shape[1])
        level = np.sqrt(np.mean(np.square(response[end - block : end])) / (np.mean(np.square(tail[:block])) + 1e-30))
        ramp = np.sqrt(np.linspace(0, 1, block))
        start = end - block
        row[:end] = response[:end]
        row[start:end] *= ramp[::-1]
        tail = level * tail[: out.shape[1] - start] * fall[: out.shape[1] - start]
        tail[:block] *= ramp
        row[start:] += tail
    return out


def _diffuse_noise(rng: np.random.Generator, num_microphones: int, length: int, distance_m: float) -> np.ndarray:
    """Spectra (microphones, bins) complex64 of white noise, in neighbours with the coherence of a diffuse field.

    Neighbours stand `distance_m` apart, and the coherence between them is `sin(kd) / kd`; further ones share nothing.
    """
    frequencies = fft.rfftfreq(length, 1 / SAMPLE_RATE).astype(np.float32)
    coherence = np.sinc(2 * frequencies * np.float32(distance_m / SPEED_OF_SOUND))
    spectra = fft.rfft(rng.standard_normal((num_microphones, length), np.float32), axis=-1)
    for second in range(1, num_microphones, 2):
        spectra[second] = coherence * spectra[second - 1] + np.sqrt(1 - coherence**2) * spectra[second]
    return spectra


def _generated(rng: np.random.Generator, num_microphones: int, rt60_s: float) -> tuple[np.ndarray, dict[str, Any]]:
    """A direct sound, sparse early reflections, and noise that decays in every octave at a rate of its own.

    Neighbours stand 10 to 40 cm apart.
    """
    length = fft.next_fast_len(round(min(1.3 * rt60_s + 0.1, LONGEST_S) * SAMPLE_RATE), real=True)
    frequencies = fft.rfftfreq(length, 1 / SAMPLE_RATE).astype(np.float32)
    # Bass rings longer, highs shorter: air and cloth.
    shape = np.interp(np.log(OCTAVES_HZ), np.log([63, 500, 2000, 16000]), [rng.uniform(0.8, 1.6), 1, 1, 0.5])
    shape[-2:] *= rng.uniform(0.4, 1.0)
    decays_s = rt60_s * shape * np.exp(rng.normal(0, 0.1, len(shape)))
    levels_db = rng.normal(0, 2.5, len(shape)) - np.linspace(0, 1, len(shape)) ** 2 * rng.uniform(0, 22)
    distance_m = rng.uniform(0.1, 0.4)
    spectra = _diffuse_noise(rng, num_microphones, length, distance_m)
    responses = np.zeros((num_microphones, length), np.float32)
    time_s = np.arange(length, dtype=np.float32) / SAMPLE_RATE
    octave = np.log2(np.maximum(frequencies, 20.0))
    for centre_hz, decay_s, level_db in zip(OCTAVES_HZ, decays_s, levels_db, strict=True):
        weight = np.cos(0.5 * np.pi * np.clip(np.abs(octave - np.log2(centre_hz)), 0, 1)).astype(np.float32)
        envelope = np.exp(np.float32(-3 * np.log(10) / decay_s) * time_s) * np.float32(10 ** (level_db / 20))
        responses += fft.irfft(spectra * weight, length, axis=-1) * envelope
    responses *= 1 - np.exp(-time_s / np.float32(rng.uniform(0.002, 0.03)))
    responses *= 0.01 / np.sqrt(np.mean(np.square(responses)))
    for time in np.sort(rng.uniform(0.003, 0.09, int(rng.integers(4, 30)))):
        amplitude = 0.3 * rng.uniform(0.2, 1.0) * np.exp(-3 * np.log(10) / rt60_s * time) * rng.choice([-1, 1])
        for microphone in range(num_microphones):
            arrival = time * (1 + 0.3 * rng.uniform(-1, 1) * (microphone // 2)) + rng.uniform(-1, 1) * distance_m / 343
            responses[microphone, int(max(arrival, 0.0025) * SAMPLE_RATE)] += amplitude * rng.uniform(0.5, 1)
    responses[:, : round(0.001 * SAMPLE_RATE)] = 0
    responses[:, 0] = 1.0
    return responses.astype(np.float64), {"kind": "generated", "rt60_s": rt60_s, "distance_m": float(distance_m)}


def _set_drr(rng: np.random.Generator, responses: np.ndarray, drr_db: float) -> None:
    """Scales what is behind the direct sound, so that the first pair has this ratio, and others about it."""
    direct = round(DIRECT_S * SAMPLE_RATE)
    for first in range(0, len(responses), 2):
        pair = responses[first : first + 2]
        ratio = np.square(pair[:, :direct]).sum() / (np.square(pair[:, direct:]).sum() + 1e-12)
        wanted_db = drr_db + (rng.normal(0, 3) if first else 0.0)
        pair[:, direct:] *= np.sqrt(ratio * 10 ** (-wanted_db / 10))
