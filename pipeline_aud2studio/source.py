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
    where one has none), and the takes backwards and forwards again for ever: a last chunk that hangs over the end sees
    music there. Zeros would look to the network like a pause that nobody played.

    Args:
        takes: The first one sets the span.
        num_frames, hop_length: The span in frames.
        pad: Length of the reflected edges in samples, less than the span.
        device: Where the samples are wanted.
    """

    def __init__(
        self, takes: Sequence[Source], num_frames: int, hop_length: int, pad: int, device: torch.device | str = "cpu"
    ) -> None:
        self._takes, self._length, self._pad, self._device = takes, num_frames * hop_length, pad, device
        self._span = takes[0].num_samples

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
        position, stop = begin - self._pad, end - self._pad
        period = 2 * (self._length - 1)
        parts = []
        while position < stop:
            phase = position % period
            if phase < self._length:  # forwards
                part = self._body(phase, min(phase + stop - position, self._length))
            else:
                last = period - phase
                part = self._body(max(last - (stop - position), 0) + 1, last + 1)[:, ::-1]
            parts.append(part)
            position += part.shape[1]
        return torch.from_numpy(np.concatenate(parts, axis=1)).to(self._device)
