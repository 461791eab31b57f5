"""Venues that were never built: a cheap generator for variety, and simulated halls with two PA loudspeakers."""

from dataclasses import dataclass

import numpy as np

from training.data.halls import (
    OCTAVES_HZ,
    SPEED_OF_SOUND,
    empty_hall,
    hang_loudspeakers,
    seat,
    shaped_noise,
    traced_tail,
)

PAIR_SPACING_M = 0.17


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
        tail = shaped_noise(rng, np.repeat(10 ** (decay_db / 20), mic_channels, axis=1), sample_rate, PAIR_SPACING_M)
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
    room = empty_hall(rng, size_m, rt60_s, sample_rate)
    radius = float(np.clip(0.05 * volume ** (1 / 3), 0.4, 1.2))
    room.set_ray_tracing(n_rays=8000, receiver_radius=radius, hist_bin_size=0.004)
    stage_x = hang_loudspeakers(rng, room, size_m)
    mic_channels = int(rng.integers(1, 3))
    num_mics = int(rng.integers(2, 5)) if mic_channels == 1 else int(rng.integers(2, 4))
    positions = []
    for _ in range(num_mics):
        x, y, z = seat(rng, size_m, stage_x)
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
        traced_tail(rng, room, range(first, first + mic_channels), range(2), array_gain, PAIR_SPACING_M)
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
