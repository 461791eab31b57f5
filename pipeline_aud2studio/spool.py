"""Waveforms on disk instead of in memory: written once from beginning to end, then read anywhere."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np

from .audio import LoudnessMeter, Waveform

BLOCK_SAMPLES = 1 << 18


class Spool:
    """A waveform in a temporary file without a name, which the system forgets with the process, however it ends.

    32-bit float, interleaved; a source as `source.Source` has it.

    Args:
        folder: Whose disk holds the file.
        num_channels, sample_rate: Of the waveform.
        is_measured: Whether the meter is wanted; it costs more than the writing.

    Attributes:
        meter: Loudness, level and peak of what was written.
    """

    def __init__(self, folder: Path, num_channels: int, sample_rate: int, is_measured: bool = True) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)
        self.num_channels, self.sample_rate, self.num_samples = num_channels, sample_rate, 0
        self.meter, self._is_measured = LoudnessMeter(num_channels, sample_rate), is_measured

    def extend(self, blocks: Iterable[Waveform]) -> Spool:
        """Writes blocks (channels, samples); returns itself.

        Raises:
            OSError: The disk is full.
        """
        with ThreadPoolExecutor(1) as measuring:  # measured while it is written and the next block is computed
            measured: Future[None] | None = None
            for block in blocks:
                if measured is not None:
                    measured.result()
                if self._is_measured:
                    measured = measuring.submit(self.meter.push, block)
                write_all(self._file, interleaved(block))
                self.num_samples += block.shape[1]
            if measured is not None:
                measured.result()
        return self

    def read(self, start: int, stop: int) -> Waveform:
        """Samples (channels, stop - start) as float32."""
        self._file.seek(4 * self.num_channels * start)
        return read_interleaved(self._file, self.num_channels, stop - start)

    def blocks(self, gain: float = 1.0) -> Iterator[Waveform]:
        """All of it (channels, samples), times a gain, in blocks."""
        for start in range(0, self.num_samples, BLOCK_SAMPLES):
            yield self.read(start, min(start + BLOCK_SAMPLES, self.num_samples)) * np.float32(gain)

    def close(self) -> None:
        """Gives the disk space back."""
        self._file.close()


def interleaved(block: Waveform) -> memoryview:
    """Samples (channels, samples) as 32-bit floats, one sample of all channels after the other."""
    return np.ascontiguousarray(block.T, np.float32).reshape(-1).view(np.uint8).data


def write_all(file: io.RawIOBase | IO[bytes], content: bytes | memoryview) -> None:
    """Writes all of it to an unbuffered file, which may take a part of it at a time."""
    view, written = memoryview(content), 0
    while written < len(view):
        written += file.write(view[written:]) or 0


def read_interleaved(file: io.RawIOBase | IO[bytes], num_channels: int, num_samples: int) -> Waveform:
    """The next samples (channels, samples) of an unbuffered file of 32-bit floats."""
    content = bytearray(4 * num_channels * num_samples)
    view, done = memoryview(content), 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[union-attr]
        if not count:
            raise OSError("the temporary file is shorter than what was written to it")
        done += count
    return np.frombuffer(content, np.float32).reshape(-1, num_channels).T
