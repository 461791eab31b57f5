"""Clocks: where an event of the reference lies in a recording, and the recording put on the reference's clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import soxr
from scipy.signal import oaconvolve

from .recording import Recording

# The fractional shift: a Kaiser-windowed sinc, flat to 0.95 of Nyquist, stop band near -100 dB.
SHIFT_HALF_LENGTH = 64
SHIFT_KAISER_BETA = 10.0
# Context on either side of a piece, in input samples: longer than soxr's filter, so that pieces meet without a seam.
MARGIN = 4096


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording without a jump, in which its clock runs evenly.

    Attributes:
        start_s, end_s: bounds on the recording's own clock.
        offset_s: where the recording's sample 0 lies on the reference's clock (extrapolated, after a jump).
        drift_ppm: how much faster the recording's clock runs, in millionths; positive: it counts more seconds.
    """

    start_s: float
    end_s: float
    offset_s: float
    drift_ppm: float

    @classmethod
    def from_line(cls, offset_s: float, slope: float, start_s: float, end_s: float) -> Segment:
        """The segment of a line `lag = offset_s + slope * recording time`; a lag is reference minus recording time."""
        return cls(start_s, end_s, offset_s, (1 / (1 + slope) - 1) * 1e6)

    @property
    def rate(self) -> float:
        return 1.0 + self.drift_ppm * 1e-6

    @property
    def slope(self) -> float:
        return 1 / self.rate - 1

    def to_reference(self, time_s: float | np.ndarray) -> float | np.ndarray:
        """Time on the reference's clock of a time on the recording's."""
        return time_s / self.rate + self.offset_s

    def to_recording(self, time_s: float | np.ndarray) -> float | np.ndarray:
        """Time on the recording's clock of a time on the reference's."""
        return (time_s - self.offset_s) * self.rate


IDENTITY = Segment(0.0, np.inf, 0.0, 0.0)


def fractional_delay_filter(fraction: float) -> np.ndarray:
    """Taps that advance a signal by `fraction` samples in [0, 1); convolve and drop `SHIFT_HALF_LENGTH` samples."""
    position = np.arange(-SHIFT_HALF_LENGTH, SHIFT_HALF_LENGTH + 1) + fraction
    support = np.clip(1 - (position / (SHIFT_HALF_LENGTH + 1)) ** 2, 0, None)
    return np.sinc(position) * np.i0(SHIFT_KAISER_BETA * np.sqrt(support)) / np.i0(SHIFT_KAISER_BETA)


def read_on_reference_clock(
    recording: Recording, segment: Segment, start: int, stop: int, sample_rate: float, mono: bool = False
) -> np.ndarray:
    """The recording's samples at the instants `start .. stop - 1` of a clock of `sample_rate` Hz.

    The instant of the first sample is reached by a fractional shift, the following ones by a sinc resampler (soxr)
    run at the exact ratio of the two clocks. The segment's bounds are not looked at.

    Returns:
        float32 `(channels, stop - start)`, or `(stop - start)` for `mono`; zeros outside the recording.
    """
    ratio = recording.sample_rate * segment.rate / sample_rate
    if ratio == 1.0 and segment.offset_s == 0.0:
        return recording.mono(start, stop) if mono else recording.read(start, stop)
    position = float(segment.to_recording(start / sample_rate)) * recording.sample_rate
    lead = int(np.ceil(MARGIN / ratio))
    first = position - lead * ratio
    whole = int(np.floor(first))
    count = int(np.ceil((lead + stop - start) * ratio)) + MARGIN
    bounds = whole - SHIFT_HALF_LENGTH, whole + count + SHIFT_HALF_LENGTH
    samples = np.atleast_2d(recording.mono(*bounds) if mono else recording.read(*bounds))
    taps = fractional_delay_filter(first - whole).astype(np.float32)
    shifted = oaconvolve(samples, taps[None], mode="valid", axes=-1)
    resampled = soxr.resample(shifted.T, recording.sample_rate * segment.rate, sample_rate, quality="VHQ").T
    piece = np.ascontiguousarray(resampled[:, lead : lead + stop - start], dtype=np.float32)
    return piece[0] if mono else piece


def blocks_on_reference_clock(
    recording: Recording, segments: tuple[Segment, ...], num_samples: int, sample_rate: float, block_s: float = 30.0
) -> Iterator[np.ndarray]:
    """The whole recording on the reference's clock, in pieces; zeros where it recorded nothing.

    Yields:
        float32 `(channels, samples)`, `num_samples` in total.
    """
    size = int(block_s * sample_rate)
    for start in range(0, num_samples, size):
        stop = min(start + size, num_samples)
        block = np.zeros((recording.num_channels, stop - start), dtype=np.float32)
        reached = start
        for segment in segments:
            begin, end = (
                int(np.ceil(float(segment.to_reference(edge)) * sample_rate))
                for edge in (segment.start_s, segment.end_s)
            )
            # Where a jump went backwards two stretches claim the same instants: the first one keeps them.
            begin, end = max(begin, reached), min(end, stop)
            if begin < end:
                piece = read_on_reference_clock(recording, segment, begin, end, sample_rate)
                block[:, begin - start : end - start] = piece
                reached = end
        yield block
