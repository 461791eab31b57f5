"""Simulated halls: a shoebox with two loudspeakers and two pairs of microphones, by images and traced rays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.fft import next_fast_len

OCTAVES_HZ = np.array([125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0])
SPEED_OF_SOUND = 343.0
IMAGE_DELAY = 40  # samples by which pyroomacoustics delays image sources: half its fractional delay filter
HIGHS_DECAY = np.array([1.25, 1.1, 1.0, 1.0, 0.95, 0.85, 0.65, 0.45])  # of a hall, relative to its middle
CROWD_ABSORPTION = np.array([0.25, 0.4, 0.6, 0.75, 0.85, 0.85, 0.8, 0.75])
AIR_PER_M = np.array([0.0, 0.0001, 0.0003, 0.0006, 0.001, 0.003, 0.01, 0.03])


def wall_absorption(rt60_s: float, size_m: np.ndarray, floor: np.ndarray, air_per_m: np.ndarray) -> np.ndarray:
    """Computes the absorption of walls and ceiling per octave, (8,), so that Eyring's formula gives `rt60_s`.

    Eyring: RT60 = 0.161 V / (-S ln(1 - a) + 4 m V), a the mean absorption over all surfaces, `floor` among them.
    """
    length, width, height = size_m
    volume = length * width * height
    floor_area = length * width
    surface = 2 * (floor_area + length * height + width * height)
    mean = 1 - np.exp(-np.maximum(0.161 * volume / (rt60_s * HIGHS_DECAY) - 4 * air_per_m * volume, 0.0) / surface)
    return np.clip((mean * surface - floor * floor_area) / (surface - floor_area), 0.02, 0.95)


def simulate(rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Simulates a hall of 300 to 30000 m3: (loudspeakers 2, microphones 4, samples), as long as it rings.

    Two pairs, 15 to 40 cm apart, stand 4 to 35 m from the stage. Image sources to the third order and ray tracing
    (pyroomacoustics), an absorbing audience on the floor. Takes about a second on one core.
    """
    import pyroomacoustics as pra

    volume = float(np.exp(rng.uniform(np.log(300.0), np.log(30000.0))))
    shape = np.array([rng.uniform(1.2, 2.2), 1.0, rng.uniform(0.3, 0.7)])
    size_m = np.maximum(shape * (volume / shape.prod()) ** (1 / 3), (0.0, 0.0, 3.2))
    volume = float(size_m.prod())
    rt60_s = float(np.clip(0.8 * (volume / 300) ** 0.27 * np.exp(rng.normal(0.0, 0.45)), 0.3, 3.8))
    room = empty_hall(rng, size_m, rt60_s, sample_rate)
    room.set_ray_tracing(
        n_rays=8000, receiver_radius=float(np.clip(0.05 * volume ** (1 / 3), 0.4, 1.2)), hist_bin_size=0.004
    )
    distance_m = float(rng.uniform(0.15, 0.4))
    stage_x = hang_loudspeakers(rng, room, size_m)
    positions = []
    for _ in range(2):
        x, y, z = seat(rng, size_m, stage_x)
        positions += [[x, y - side * distance_m / 2, z] for side in (-1.0, 1.0)]
    room.add_microphone_array(np.array(positions).T)
    pra.random.seed(int(rng.integers(2**31)))
    room.image_source_model()
    room.ray_tracing()
    # Line arrays keep the highs off the ceiling and the back wall, more than a cardioid does.
    array_gain = 10 ** (-rng.uniform(0.0, 8.0) * np.linspace(0.3, 1.0, len(OCTAVES_HZ)) / 20)
    for source in room.sources:
        source.damping[:, source.orders > 0] *= array_gain[:, None]
    tails = [
        [traced_tail(rng, room, (first, first + 1), [source], array_gain, distance_m) for first in (0, 2)]
        for source in range(2)
    ]
    # The library's own tails of traced rays take ten times as long as `traced_tail`: it adds image sources only.
    room.simulator_state["rt_needed"] = False
    room.compute_rir()
    parts = [part for source in tails for part in source] + [image for microphone in room.rir for image in microphone]
    responses = np.zeros((2, 4, max(part.shape[-1] for part in parts)))
    for source in range(2):
        for microphone in range(4):
            image, tail = room.rir[microphone][source], tails[source][microphone // 2][microphone % 2]
            responses[source, microphone, : len(image)] += image
            responses[source, microphone, : len(tail)] += tail
    return responses


def empty_hall(rng: np.random.Generator, size_m: np.ndarray, rt60_s: float, sample_rate: int) -> Any:
    """Makes a shoebox, a `pyroomacoustics.Room`, whose walls are jittered and whose floor is a crowd."""
    import pyroomacoustics as pra

    crowd = CROWD_ABSORPTION * rng.uniform(0.5, 1.0)
    walls = wall_absorption(rt60_s, size_m, crowd, AIR_PER_M)
    scattering = np.linspace(0.05, 0.6, len(OCTAVES_HZ)) * rng.uniform(0.6, 1.0)

    def surface(absorption: np.ndarray) -> pra.Material:
        return pra.Material(
            {"coeffs": np.clip(absorption, 0.01, 0.98).tolist(), "center_freqs": OCTAVES_HZ.tolist()},
            {"coeffs": scattering.tolist(), "center_freqs": OCTAVES_HZ.tolist()},
        )

    sides = ("east", "west", "north", "south", "ceiling")
    surfaces = {side: surface(walls * rng.uniform(0.7, 1.3)) for side in sides} | {"floor": surface(crowd)}
    return pra.ShoeBox(size_m, fs=sample_rate, materials=surfaces, max_order=3, air_absorption=True)


def hang_loudspeakers(rng: np.random.Generator, room: Any, size_m: np.ndarray) -> float:
    """Hangs two loudspeakers beside the stage at x = 0, aimed at the middle of the audience; returns their x in m."""
    import pyroomacoustics as pra

    length, width, height = size_m
    stage_x = min(1.5, 0.1 * length)
    spread = rng.uniform(0.25, 0.4) * width
    hung_at = min(height - 0.5, rng.uniform(2.5, 6.0))
    pattern = rng.uniform(0.3, 0.5)  # hyper- to plain cardioid
    for side in (-1.0, 1.0):
        aim = np.arctan2(-side * spread * 0.5, 0.6 * length)
        direction = pra.directivities.DirectionVector(azimuth=np.degrees(aim), colatitude=95.0)
        room.add_source(
            [stage_x, width / 2 + side * spread, hung_at],
            directivity=pra.directivities.CardioidFamily(direction, p=pattern),
        )
    return float(stage_x)


def seat(rng: np.random.Generator, size_m: np.ndarray, stage_x: float) -> tuple[float, float, float]:
    """Draws a place for microphones in the audience, 4 to 35 m from the stage: x, y, z in m."""
    length, width, _ = size_m
    x = stage_x + rng.uniform(min(4.0, 0.4 * length), min(35.0, length - stage_x - 1.0))
    y = width / 2 + np.clip(rng.normal(0.0, 0.15), -0.4, 0.4) * width
    return float(x), float(y), float(rng.uniform(1.4, 2.4))


def traced_tail(
    rng: np.random.Generator,
    room: Any,
    microphones: Sequence[int],
    sources: Sequence[int],
    gain: np.ndarray,
    distance_m: float,
) -> np.ndarray:
    """Makes the tail of some sources at one or two microphones as the traced rays' energy has it: (mics, samples).

    D. Schroeder, "Physically based real-time auralization of interactive virtual environments", 2011, section 5.3.4,
    with Gaussian noise in place of a Poisson sequence: the image sources cover the time before reflections are dense.

    Args:
        gain: (8,), of the reverberant field per octave.
        distance_m: Between the two, for the coherence of their noise.
    """
    bin_s = room.rt_args["hist_bin_size"]
    energy = np.array(
        [np.sum([sum(room.rt_histograms[mic][source]) for source in sources], axis=0) for mic in microphones]
    )
    filled = np.flatnonzero(energy.any(axis=(0, 1)))
    energy = energy[..., : filled[-1] + 1] if len(filled) else energy[..., :1]
    centres = (np.arange(energy.shape[-1]) + 0.5) * bin_s
    time = np.arange(int(energy.shape[-1] * bin_s * room.fs)) / room.fs
    envelopes = np.empty((len(OCTAVES_HZ), len(microphones), len(time)))
    for band in range(len(OCTAVES_HZ)):
        air = np.exp(-0.5 * room.air_absorption[band] * SPEED_OF_SOUND * time)
        for channel in range(len(microphones)):
            density = np.interp(time, centres, energy[channel, band]) / (bin_s * room.fs)
            envelopes[band, channel] = np.sqrt(density) * air * gain[band]
    return np.pad(shaped_noise(rng, envelopes, room.fs, distance_m), ((0, 0), (IMAGE_DELAY, 0)))


def shaped_noise(rng: np.random.Generator, envelopes: np.ndarray, sample_rate: int, distance_m: float) -> np.ndarray:
    """Makes noise with its own envelope in every octave at one or two microphones: (bands, mics, samples) -> (mics,
    samples).

    White noise of unit variance under envelopes of one. The coherence of two is that of a diffuse field, sinc(2 f d /
    c) (Cook et al., JASA 27, 1955).
    """
    _, num_mics, samples = envelopes.shape
    size = next_fast_len(samples, real=True)
    frequencies = np.fft.rfftfreq(size, 1 / sample_rate)
    noise = np.fft.rfft(rng.standard_normal((num_mics, size)))
    if num_mics == 2:
        coherence = np.sinc(2 * frequencies * distance_m / SPEED_OF_SOUND)
        noise[1] = coherence * noise[0] + np.sqrt(1 - coherence**2) * noise[1]
    # Octave bands as triangles over log frequency, which add up to one.
    position = np.clip(np.log2(np.maximum(frequencies, 1.0) / OCTAVES_HZ[0]), 0, len(OCTAVES_HZ) - 1)
    tail = np.zeros((num_mics, samples))
    for band, envelope in enumerate(envelopes):
        weight = np.maximum(0.0, 1.0 - np.abs(position - band))
        tail += np.fft.irfft(noise * weight, size)[:, :samples] * envelope
    return tail
