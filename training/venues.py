"""Venues that were never built: a cheap generator for variety, and simulated halls with two PA loudspeakers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.fft import next_fast_len

OCTAVES_HZ = np.array([125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0])
SPEED_OF_SOUND = 343.0
PAIR_SPACING_M = 0.17
IMAGE_DELAY = 40  # samples by which pyroomacoustics delays image sources: half its fractional delay filter


@dataclass(frozen=True)
class Venue:
    """Responses of one performance.

    Args:
        responses: (microphones * mic_channels, samples); both loudspeakers summed, which play the same.
        mic_channels: 1, or 2 where every microphone is a stereo pair.
        rt60_s: the reverberation time it was made for, at 500 Hz to 1 kHz.
    """

    responses: np.ndarray
    mic_channels: int
    rt60_s: float


def shaped_noise(rng: np.random.Generator, envelopes: np.ndarray, sample_rate: int) -> np.ndarray:
    """The diffuse tail: noise with its own envelope in every octave, (bands, mics, samples) -> (mics, samples).

    White noise of unit variance under envelopes of one. Two microphones are a pair 17 cm apart in a diffuse field:
    their coherence is sinc(2 f d / c) (Cook et al., JASA 27, 1955).
    """
    _, num_mics, samples = envelopes.shape
    size = next_fast_len(samples, real=True)
    frequency = np.fft.rfftfreq(size, 1 / sample_rate)
    noise = np.fft.rfft(rng.standard_normal((num_mics, size)))
    if num_mics == 2:
        coherence = np.sinc(2 * frequency * PAIR_SPACING_M / SPEED_OF_SOUND)
        noise[1] = coherence * noise[0] + np.sqrt(1 - coherence**2) * noise[1]
    # Octave bands as triangles over log frequency, which add up to one.
    position = np.clip(np.log2(np.maximum(frequency, 1.0) / OCTAVES_HZ[0]), 0, len(OCTAVES_HZ) - 1)
    tail = np.zeros((num_mics, samples))
    for band, envelope in enumerate(envelopes):
        weight = np.maximum(0.0, 1.0 - np.abs(position - band))
        tail += np.fft.irfft(noise * weight, size)[:, :samples] * envelope
    return tail


# --- The cheap generator ---------------------------------------------------------------------------------------------


def generate(rng: np.random.Generator, sample_rate: int) -> Venue:
    """A venue from statistics only: direct path, sparse early reflections, noise decaying band by band.

    RT60 0.2 to 3.5 s, DRR -9 to +10 dB, both uniform (RT60 in its logarithm), 1 to 4 microphones.
    """
    rt60_s = float(np.exp(rng.uniform(np.log(0.2), np.log(3.5))))
    size = np.clip(rt60_s / 1.2, 0.3, 2.0)  # larger rooms ring longer, and their reflections come later
    bands = rt60_s * np.array([1.2, 1.1, 1.0, 1.0, 0.9, 0.75, 0.5, 0.35])
    bands *= np.exp(rng.uniform(-0.25, 0.25)) ** np.linspace(-1, 1, len(bands)) * rng.uniform(0.85, 1.15, len(bands))
    # Walls and air take the highs: the diffuse field is darker than the direct path.
    level_db = -rng.uniform(1.0, 5.0) * np.maximum(0.0, np.log2(OCTAVES_HZ / 1000.0))
    mic_channels = int(rng.integers(1, 3))
    num_mics = int(rng.integers(1, 5))
    responses = []
    for _ in range(num_mics):
        time = np.arange(int(bands.max() * sample_rate)) / sample_rate
        decay_db = level_db[:, None, None] - 60.0 * time / bands[:, None, None]
        tail = shaped_noise(rng, np.repeat(10 ** (decay_db / 20), mic_channels, axis=1), sample_rate)
        gap = round(rng.uniform(0.004, 0.03) * size * sample_rate)
        tail[:, :gap] *= np.linspace(0.0, 1.0, gap) ** 2
        tail /= np.sqrt(np.square(tail).sum(axis=1, keepdims=True))
        early = np.zeros_like(tail)
        count = int(rng.integers(4, 30))
        for delay_s in rng.exponential(0.025 * size, count) + 0.0026:
            level = 10 ** (-rng.uniform(0.5, 1.5) * delay_s / 0.05) * rng.choice((-1.0, 1.0)) * rng.uniform(0.3, 1.0)
            # Between the capsules of a pair a reflection differs by at most the way between them.
            for channel in range(mic_channels):
                at = round((delay_s + rng.uniform(0, PAIR_SPACING_M / SPEED_OF_SOUND)) * sample_rate)
                if at < early.shape[-1]:
                    early[channel, at] += level * rng.uniform(0.7, 1.0)
        early /= np.sqrt(np.square(early).sum(axis=1, keepdims=True) + 1e-12)
        share = rng.uniform(0.1, 0.6)
        reverberation = np.sqrt(share) * early + np.sqrt(1 - share) * tail
        reverberation[:, : round(0.0025 * sample_rate)] = 0.0
        reverberation /= np.sqrt(np.square(reverberation).sum(axis=1, keepdims=True))
        drr_db = rng.uniform(-9.0, 10.0) + rng.uniform(-1.0, 1.0, (mic_channels, 1))
        response = reverberation * 10 ** (-drr_db / 20)
        response[:, 0] = 1.0
        responses.append(response)
    return Venue(np.concatenate(responses), mic_channels, rt60_s)


# --- Simulated halls -------------------------------------------------------------------------------------------------


def wall_absorption(rt60_s: float, size_m: np.ndarray, floor: np.ndarray, air_per_m: np.ndarray) -> np.ndarray:
    """Absorption of walls and ceiling per octave, (8,), so that Eyring's formula gives `rt60_s` with this floor.

    Eyring: RT60 = 0.161 V / (-S ln(1 - a) + 4 m V), a the mean absorption over all surfaces.
    """
    length, width, height = size_m
    volume = length * width * height
    floor_area = length * width
    surface = 2 * (floor_area + length * height + width * height)
    # High octaves of a real hall decay faster than its middle.
    target = rt60_s * np.array([1.25, 1.1, 1.0, 1.0, 0.95, 0.85, 0.65, 0.45])
    mean = 1 - np.exp(-np.maximum(0.161 * volume / target - 4 * air_per_m * volume, 0.0) / surface)
    return np.clip((mean * surface - floor * floor_area) / (surface - floor_area), 0.02, 0.95)


def simulate(rng: np.random.Generator, sample_rate: int) -> Venue:
    """A shoebox hall of 300 to 30000 m3 with two PA loudspeakers and 2 to 4 microphones or pairs at 4 to 35 m.

    Image sources to the third order and ray tracing (pyroomacoustics), an absorbing audience on the floor.
    """
    import pyroomacoustics as pra

    volume = float(np.exp(rng.uniform(np.log(300.0), np.log(30000.0))))
    shape = np.array([rng.uniform(1.2, 2.2), 1.0, rng.uniform(0.3, 0.7)])
    size_m = np.maximum(shape * (volume / shape.prod()) ** (1 / 3), (0.0, 0.0, 3.2))
    volume = float(size_m.prod())
    rt60_s = float(np.clip(0.5 * (volume / 300) ** 0.27 * np.exp(rng.normal(0.0, 0.4)), 0.3, 3.5))
    length, width, height = size_m

    crowd = np.array([0.25, 0.4, 0.6, 0.75, 0.85, 0.85, 0.8, 0.75]) * rng.uniform(0.5, 1.0)
    air_per_m = np.array([0.0, 0.0001, 0.0003, 0.0006, 0.001, 0.003, 0.01, 0.03])
    walls = wall_absorption(rt60_s, size_m, crowd, air_per_m)
    scattering = np.linspace(0.05, 0.6, len(OCTAVES_HZ)) * rng.uniform(0.6, 1.0)

    def material(absorption: np.ndarray) -> "pra.Material":
        return pra.Material(
            {"coeffs": np.clip(absorption, 0.01, 0.98).tolist(), "center_freqs": OCTAVES_HZ.tolist()},
            {"coeffs": scattering.tolist(), "center_freqs": OCTAVES_HZ.tolist()},
        )

    materials = {
        side: material(walls * rng.uniform(0.7, 1.3)) for side in ("east", "west", "north", "south", "ceiling")
    }
    room = pra.ShoeBox(
        size_m,
        fs=sample_rate,
        materials={**materials, "floor": material(crowd)},
        max_order=3,
        ray_tracing=True,
        air_absorption=True,
    )
    radius = float(np.clip(0.05 * volume ** (1 / 3), 0.4, 1.2))
    room.set_ray_tracing(n_rays=8000, receiver_radius=radius, hist_bin_size=0.004)

    # Stage at x = 0; loudspeakers hang left and right of it and aim at the middle of the audience.
    stage_x = min(1.5, 0.1 * length)
    spread = rng.uniform(0.25, 0.4) * width
    pa_height = min(height - 0.5, rng.uniform(2.5, 6.0))
    pattern = rng.uniform(0.3, 0.5)  # hyper- to plain cardioid
    for side in (-1.0, 1.0):
        aim = np.arctan2(-side * spread * 0.5, 0.6 * length)
        room.add_source(
            [stage_x, width / 2 + side * spread, pa_height],
            directivity=pra.directivities.CardioidFamily(
                pra.directivities.DirectionVector(azimuth=np.degrees(aim), colatitude=95.0), p=pattern
            ),
        )
    mic_channels = int(rng.integers(1, 3))
    num_mics = int(rng.integers(2, 5)) if mic_channels == 1 else int(rng.integers(2, 4))
    positions = []
    for _ in range(num_mics):
        x = stage_x + rng.uniform(min(4.0, 0.4 * length), min(35.0, length - stage_x - 1.0))
        y = width / 2 + np.clip(rng.normal(0.0, 0.15), -0.4, 0.4) * width
        z = rng.uniform(1.4, 2.4)
        if mic_channels == 1:
            positions.append([x, y, z])
        else:
            positions += [[x, y - side * PAIR_SPACING_M / 2, z] for side in (-1.0, 1.0)]
    room.add_microphone_array(np.array(positions).T)
    pra.random.seed(int(rng.integers(2**31)))
    room.image_source_model()
    room.ray_tracing()
    # Line arrays keep the highs off the ceiling and the back wall, more than a cardioid does.
    array_gain = 10 ** (-rng.uniform(0.0, 8.0) * np.linspace(0.3, 1.0, len(OCTAVES_HZ)) / 20)
    for source in room.sources:
        source.damping[:, source.orders > 0] *= array_gain[:, None]
    tails = [
        traced_tail(rng, room, range(first, first + mic_channels), array_gain)
        for first in range(0, len(positions), mic_channels)
    ]
    # The library's own tails of traced rays take ten times as long as `traced_tail`: it adds image sources only.
    room.simulator_state["rt_needed"] = False
    room.compute_rir()
    images = [response for per_mic in room.rir for response in per_mic]
    responses = np.zeros((len(positions), max(part.shape[-1] for part in images + tails)))
    for first, tail in zip(range(0, len(positions), mic_channels), tails, strict=True):
        responses[first : first + mic_channels, : tail.shape[-1]] += tail
    for sums, per_mic in zip(responses, room.rir, strict=True):
        for response in per_mic:
            sums[: len(response)] += response
    return Venue(responses, mic_channels, rt60_s)


def traced_tail(rng: np.random.Generator, room: Any, mics: Sequence[int], gain: np.ndarray) -> np.ndarray:
    """The tail at neighbouring microphones as the traced rays' energy has it, of all sources: (mics, samples).

    D. Schroeder, "Physically based real-time auralization of interactive virtual environments", 2011, section 5.3.4,
    with Gaussian noise in place of a Poisson sequence: the image sources cover the time before reflections are dense.

    Args:
        gain: (8,), of the reverberant field per octave.
    """
    bin_s = room.rt_args["hist_bin_size"]
    energy = np.array([np.sum([sum(of_source) for of_source in room.rt_histograms[mic]], axis=0) for mic in mics])
    filled = np.flatnonzero(energy.any(axis=(0, 1)))
    energy = energy[..., : filled[-1] + 1] if len(filled) else energy[..., :1]
    centres = (np.arange(energy.shape[-1]) + 0.5) * bin_s
    time = np.arange(int(energy.shape[-1] * bin_s * room.fs)) / room.fs
    envelopes = np.empty((len(OCTAVES_HZ), len(mics), len(time)))
    for band in range(len(OCTAVES_HZ)):
        air = np.exp(-0.5 * room.air_absorption[band] * SPEED_OF_SOUND * time)
        for channel in range(len(mics)):
            density = np.interp(time, centres, energy[channel, band]) / (bin_s * room.fs)
            envelopes[band, channel] = np.sqrt(density) * air * gain[band]
    return np.pad(shaped_noise(rng, envelopes, room.fs), ((0, 0), (IMAGE_DELAY, 0)))
