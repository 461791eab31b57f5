"""Takes that are read a piece at a time, and their clocks: where an event of the reference lies in a recording."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soxr
from scipy.signal import oaconvolve

from ..decode import AudioStream
from ..files import Spool

if TYPE_CHECKING:
    from ..chunks import Source

# Silence: nothing in the file above this level. -90 dBFS is the dither of a 16-bit file.
SILENCE_PEAK = 10 ** (-90 / 20)
# Pieces that are looked at to see how the channels of a stereo take relate.
NUM_PROBES, PROBE_S = 32, 2.0


class Recording:
    """A mono or stereo take of any length and rate; a file stays on disk and is read where it is asked for.

    Args:
        source: path of an audio file, an array `(samples)` or `(channels, samples)`, or what is read like a spool.
        sample_rate: rate of what is no file in Hz; a file brings its own.
        name: how messages call the take; the file's name where there is one.

    Raises:
        ValueError: not audio, no samples, more than two channels; when read, samples that are not finite.
    """

    def __init__(
        self, source: Source | np.ndarray | str | os.PathLike[str], sample_rate: float = 0.0, name: str = ""
    ) -> None:
        self.path: Path | None = None
        self.name = name or "recording"
        self._read: Callable[[int, int], np.ndarray]  # samples [start, stop), both within the take
        if isinstance(source, (str, os.PathLike)):
            self.path = Path(source)
            self.name = name or self.path.name
            self._read, rate, self.num_channels, self.num_samples, close = _opened(self.path)
            self.sample_rate = float(rate)
            weakref.finalize(self, close)
        else:
            if sample_rate <= 0:
                raise ValueError(f"{self.name}: an array needs its sample_rate in Hz, got {sample_rate}")
            self.sample_rate = float(sample_rate)
            if not isinstance(source, np.ndarray):
                self.num_channels, self.num_samples, self._read = source.num_channels, source.num_samples, source.read
            else:
                array = np.atleast_2d(source)
                if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
                    raise ValueError(f"{self.name}: expected floats of shape (samples) or (channels, samples)")
                self.num_channels, self.num_samples = array.shape
                self._read = lambda start, stop: array[:, start:stop]
        if self.num_samples == 0:
            raise ValueError(f"{self.name}: is empty")
        if self.num_channels > 2:
            raise ValueError(f"{self.name}: has {self.num_channels} channels; only mono and stereo can be aligned")

    @property
    def duration_s(self) -> float:
        return self.num_samples / self.sample_rate

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples `[start, stop)` as float32 `(channels, stop - start)`; zeros where the take has none."""
        out = np.zeros((self.num_channels, stop - start), dtype=np.float32)
        first, last = max(start, 0), min(stop, self.num_samples)
        if first >= last:
            return out
        piece = self._read(first, last)
        if not np.isfinite(piece).all():
            raise ValueError(f"{self.name}: holds NaN or infinite samples near {first / self.sample_rate:.1f} s")
        out[:, first - start : first - start + piece.shape[1]] = piece
        return out

    def mono(self, start: int, stop: int) -> np.ndarray:
        """One channel `(stop - start)` to compare with: the sum of both, or their difference where they oppose."""
        return self._mix_weights @ self.read(start, stop)

    @cached_property
    def is_silent(self) -> bool:
        """Whether no sample rises above -90 dBFS."""
        size = int(30 * self.sample_rate)
        blocks = [(start, min(start + size, self.num_samples)) for start in range(0, self.num_samples, size)]
        return all(np.abs(self.read(*block)).max() < SILENCE_PEAK for block in (*self._probes, *blocks))

    @property
    def _probes(self) -> list[tuple[int, int]]:
        length = min(int(PROBE_S * self.sample_rate), self.num_samples)
        starts = np.unique(np.linspace(0, self.num_samples - length, NUM_PROBES).astype(int))
        return [(int(start), int(start) + length) for start in starts]

    @cached_property
    def _mix_weights(self) -> np.ndarray:
        if self.num_channels == 1:
            return np.ones(1, dtype=np.float32)
        # A pair wired in anti-phase would vanish in a plain sum.
        opposed = sum(float(np.prod(self.read(*bounds), axis=0).sum()) for bounds in self._probes) < 0
        return np.array([0.5, -0.5 if opposed else 0.5], dtype=np.float32)


def _opened(path: Path) -> tuple[Callable[[int, int], np.ndarray], int, int, int, Callable[[], object]]:
    """Open a file for reading anywhere in it: how, rate, channels, samples, and how to close it.

    What is compressed or damaged is decoded to a temporary file first, 1.3 GB an hour in stereo.

    Raises:
        AudioError: see `AudioStream`.
    """
    stream = AudioStream(path)
    if stream.is_seekable and stream.frames is not None and not stream.notices:
        position = 0

        def read(start: int, stop: int) -> np.ndarray:
            nonlocal position
            if position != start:
                stream.seek(start)
            position = stop
            return stream.read(stop - start)

        return read, stream.sample_rate, stream.channels, stream.frames, stream.close
    with stream:
        spool = Spool(Path(tempfile.gettempdir()), stream.channels, stream.sample_rate, is_measured=False)
        spool.extend(stream.blocks())
        return spool.read, stream.sample_rate, stream.channels, spool.num_samples, spool.close


# --- Clocks ----------------------------------------------------------------------------------------------------------

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
    """Reads the recording at the instants `start .. stop - 1` of a clock of `sample_rate` Hz.

    The first instant is reached by a fractional shift, the following ones by a sinc resampler (soxr) run at the exact
    ratio of the two clocks. Float32 `(channels, stop - start)`, or `(stop - start)` for `mono`; zeros outside the
    recording, whatever the segment's bounds.
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


def read_pair(
    reference: Recording, recording: Recording, segment: Segment, start: int, length: int, sample_rate: float
) -> list[np.ndarray]:
    """Reads one channel of both from sample `start` of the reference's clock on, `(length)` each."""
    takes = (reference, IDENTITY), (recording, segment)
    return [read_on_reference_clock(*take, start, start + length, sample_rate, mono=True) for take in takes]


def blocks_on_reference_clock(
    recording: Recording, segments: tuple[Segment, ...], num_samples: int, sample_rate: float, block_s: float = 30.0
) -> Iterator[np.ndarray]:
    """Yields the whole recording on the reference's clock, `num_samples`, in pieces; zeros where it recorded nothing.

    A piece is float32 `(channels, samples)`.
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
