"""Waveforms on disk instead of in memory: written once from beginning to end, then read anywhere."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from .audio import LoudnessMeter, Waveform

BLOCK_SAMPLES = 1 << 18


class Spool:
    """A waveform in a temporary file without a name, which the system forgets with the process, however it ends.

    32-bit float, interleaved; a source as `source.Source` has it.

    Args:
        folder: Whose disk holds the file.
        num_channels, sample_rate: Of the waveform.

    Attributes:
        meter: Loudness, level and peak of what was written.
    """

    def __init__(self, folder: Path, num_channels: int, sample_rate: int) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)
        self.num_channels, self.sample_rate, self.num_samples = num_channels, sample_rate, 0
        self.meter = LoudnessMeter(num_channels, sample_rate)

    def extend(self, blocks: Iterable[Waveform]) -> Spool:
        """Writes blocks (channels, samples); returns itself.

        Raises:
            OSError: The disk is full.
        """
        for block in blocks:
            content = np.ascontiguousarray(block.T, np.float32).tobytes()
            written = 0
            while written < len(content):  # an unbuffered write may take a part of it
                written += self._file.write(content[written:]) or 0
            self.num_samples += block.shape[1]
            self.meter.push(block)
        return self

    def read(self, start: int, stop: int) -> Waveform:
        """Samples (channels, stop - start) as float32."""
        self._file.seek(4 * self.num_channels * start)
        content = bytearray(4 * self.num_channels * (stop - start))
        view, done = memoryview(content), 0
        while done < len(view):
            count = self._file.readinto(view[done:])
            if not count:
                raise OSError("the temporary file is shorter than what was written to it")
            done += count
        return np.frombuffer(content, np.float32).reshape(-1, self.num_channels).T

    def blocks(self, gain: float = 1.0) -> Iterator[Waveform]:
        """All of it (channels, samples), times a gain, in blocks."""
        for start in range(0, self.num_samples, BLOCK_SAMPLES):
            yield self.read(start, min(start + BLOCK_SAMPLES, self.num_samples)) * np.float32(gain)

    def close(self) -> None:
        """Gives the disk space back."""
        self._file.close()
