"""Room responses: their measures (ISO 3382-1), how they are trimmed and normalised, and simulated halls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import soxr
from scipy.fft import next_fast_len
from scipy.signal import resample_poly

DIRECT_S = 0.0025  # the direct path: the first 2.5 ms, as the usual definition of the DRR has it
EARLY_S = 0.05
FADE_S = 0.005
BLOCK_S = 0.01


def energy_decay_db(response: np.ndarray) -> np.ndarray:
    """Integrates backward, as Schroeder does, (samples,) -> (samples,) in dB, 0 dB at the start.

    M. R. Schroeder, "New method of measuring reverberation time", JASA 37, 1965.
    """
    energy = np.cumsum(np.square(response[::-1], dtype=np.float64))[::-1]
    if energy[0] == 0.0:
        raise ValueError("the response is silent")
    return 10.0 * np.log10(np.maximum(energy / energy[0], 1e-30))


def t20_s(response: np.ndarray, sample_rate: int) -> float:
    """Measures the reverberation time from the line through the decay between -5 and -25 dB; (samples,) -> seconds."""
    decay = energy_decay_db(response)
    inside = np.flatnonzero((decay <= -5.0) & (decay >= -25.0))
    if len(inside) < 2:
        raise ValueError("the response does not decay between -5 and -25 dB in more than one step")
    slope, _ = np.polyfit(inside / sample_rate, decay[inside], 1)
    return float(-60.0 / slope)


def energy_ratio_db(response: np.ndarray, sample_rate: int, seconds: float) -> float:
    """Measures the energy before `seconds` over that after it in dB, within 99 dB: DRR for 2.5 ms, C50 for 50."""
    split = round(seconds * sample_rate)
    early, late = (np.square(part, dtype=np.float64).sum() for part in (response[:split], response[split:]))
    return float(np.clip(10.0 * np.log10((early + 1e-30) / (late + 1e-30)), -99.0, 99.0))


def onset(response: np.ndarray, sample_rate: int, threshold_db: float = -6.0) -> int:
    """Finds the direct path's peak: the highest sample within 1 ms from where the response comes near its maximum.

    The direct path need not be the maximum: focused reflections and a second loudspeaker can be stronger. A threshold
    much lower than -6 dB finds what a measurement has before it: leakage, pre-ringing, sound through a wall.
    """
    magnitude = np.abs(response)
    if not magnitude.any():
        raise ValueError("the response is silent")
    first = int(np.argmax(magnitude >= magnitude.max() * 10 ** (threshold_db / 20)))
    return first + int(np.argmax(magnitude[first : first + max(1, round(1e-3 * sample_rate))]))


def from_direct_path(response: np.ndarray, sample_rate: int) -> np.ndarray:
    """Cuts a response at its direct path, whose peak is shifted onto the sample grid first: (samples,) -> (fewer,).

    A band-limited pulse that peaks between two samples rings on both sides; one that peaks on a sample does not ring.
    Cutting at the peak would otherwise lose the half that comes before it.
    """
    oversampling = 16
    start = onset(response, sample_rate)
    before = min(start, 32)
    near = resample_poly(response[start - before : start + 33], oversampling, 1)
    centre = before * oversampling
    reach = oversampling  # up to one sample each way
    window = np.abs(near[max(0, centre - reach) : centre + reach + 1])
    offset = (int(np.argmax(window)) - min(centre, reach)) / oversampling
    if offset:
        size = len(response) + 64
        spectrum = np.fft.rfft(response, size)
        response = np.fft.irfft(spectrum * np.exp(2j * np.pi * np.fft.rfftfreq(size) * offset), size)[: len(response)]
    return response[start:]


def decay_end(response: np.ndarray, sample_rate: int, range_db: float = 60.0, noise_margin_db: float = 6.0) -> int:
    """Finds the sample after which nothing but noise or less than -60 dB of the strongest 10 ms is left."""
    size = round(BLOCK_S * sample_rate)
    blocks = np.square(response[: len(response) // size * size], dtype=np.float64).reshape(-1, size).mean(axis=1)
    if len(blocks) < 2:
        return len(response)
    floor = np.median(blocks[-max(1, len(blocks) // 10) :]) * 10 ** (noise_margin_db / 10)
    above = np.flatnonzero(blocks > max(blocks.max() * 10 ** (-range_db / 10), floor))
    return min(len(response), int(above[-1] + 1) * size) if len(above) else len(response)


def tidy(responses: np.ndarray, sample_rate: int, target_rate: int) -> np.ndarray:
    """Resamples, trims every channel to its direct path, cuts the decayed end, normalises.

    Args:
        responses: (channels, samples) at `sample_rate` in Hz.

    Returns:
        (channels, fewer samples) float32 at `target_rate`. Sample 0 is the peak of the direct path and positive; the
        first 2.5 ms have unit energy in every channel.
    """
    if not np.isfinite(responses).all():
        raise ValueError("the response has NaN or infinite samples")
    if sample_rate != target_rate:
        responses = soxr.resample(responses.T, sample_rate, target_rate, quality="VHQ").T
    trimmed = [from_direct_path(response.astype(np.float64), target_rate) for response in responses]
    ends = [decay_end(response, target_rate) for response in trimmed]
    length = max(max(ends), round(2 * DIRECT_S * target_rate))
    tidied = np.zeros((len(trimmed), length), dtype=np.float32)
    fade = round(FADE_S * target_rate)
    for row, response, end in zip(tidied, trimmed, ends, strict=True):
        response = response[:end]
        if end > 2 * fade:
            response[-fade:] *= np.linspace(1.0, 0.0, fade)
        direct = response[: round(DIRECT_S * target_rate)]
        row[: len(response)] = response * np.sign(response[0]) / np.sqrt(np.square(direct).sum())
    return tidied


# --- Simulated halls -------------------------------------------------------------------------------------------------
#
# A shoebox with two loudspeakers and two pairs of microphones, by images and traced rays.

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
