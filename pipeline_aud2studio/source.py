"""Where the samples of a take come from: an array, or something on a disk that is read where it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from .audio import Waveform


class Source(Protocol):
    """A take of known length that can be read anywhere."""

    @property
    def num_channels(self) -> int: ...

    @property
    def num_samples(self) -> int: ...

    def read(self, start: int, stop: int) -> Waveform:
        """Samples (channels, stop - start) as float32; both bounds lie within the take."""
        ...


class ArraySource:
    """A waveform (channels, samples) in memory."""

    def __init__(self, waveform: Waveform) -> None:
        self._waveform = waveform
        self.num_channels, self.num_samples = waveform.shape

    def read(self, start: int, stop: int) -> Waveform:
        return self._waveform[:, start:stop]


class Scaled:
    """A source times a gain."""

    def __init__(self, source: Source, gain: float) -> None:
        self._source, self._gain = source, np.float32(gain)
        self.num_channels, self.num_samples = source.num_channels, source.num_samples

    def read(self, start: int, stop: int) -> Waveform:
        return self._source.read(start, stop) * self._gain


class Padded:
    """All channels of some takes one below the other, over the span of the first one, with what an STFT needs around.

    In coordinates of the padded signal: `pad` samples that reflect the beginning, whole frames of the takes (zeros
    where one has none), `pad` samples that reflect their end, and zeros without end.

    Args:
        takes: The first one sets the span.
        num_frames, hop_length: The span in frames.
        pad: Length of the reflected edges in samples, less than the span.
    """

    def __init__(self, takes: Sequence[Source], num_frames: int, hop_length: int, pad: int) -> None:
        self._takes, self._length, self._pad = takes, num_frames * hop_length, pad
        self._span = takes[0].num_samples
        self._before = self._body(1, pad + 1)[:, ::-1]
        self._after = self._body(self._length - 1 - pad, self._length - 1)[:, ::-1]

    def _body(self, start: int, stop: int) -> Waveform:
        """Samples [start, stop) of all channels, from within the whole frames."""
        body = np.zeros((sum(take.num_channels for take in self._takes), stop - start), np.float32)
        row = 0
        for take in self._takes:
            last = min(stop, take.num_samples, self._span)
            if start < last:
                body[row : row + take.num_channels, : last - start] = take.read(start, last)
            row += take.num_channels
        return body

    def window(self, begin: int, end: int) -> torch.Tensor:
        """Padded samples [begin, end): (channels, end - begin)."""
        pad, length = self._pad, self._length
        parts = [self._before[:, begin:end]] if begin < pad else []
        start, stop = max(begin - pad, 0), min(end - pad, length)
        if start < stop:
            parts.append(self._body(start, stop))
        start, stop = max(begin - pad - length, 0), min(end - pad - length, pad)
        if start < stop:
            parts.append(self._after[:, start:stop])
        found = sum(part.shape[1] for part in parts)
        parts.append(np.zeros((len(self._before), end - begin - found), np.float32))
        return torch.from_numpy(np.concatenate(parts, axis=1))
