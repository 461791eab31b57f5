"""Long recordings in pieces: read where they are asked for, cut into chunks, cross-faded, added up to a waveform."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from diffusers.schedulers import SchedulerMixin

from .audio import Waveform
from .spectral import BandTransform

NOISE_BLOCK = 64  # frames that are drawn from one seed


def chunk_starts(num_frames: int, chunk_frames: int, overlap_frames: int) -> list[int]:
    """First frames of chunks that cover `num_frames`; the last one may hang over the end and is padded there."""
    stride = chunk_frames - overlap_frames
    return list(range(0, max(num_frames - overlap_frames, 1), stride))


class CrossFader:
    """Adds overlapping chunks up and hands out frames as soon as no later chunk can change them.

    Chunks are faded with raised-cosine ramps that sum to one, in the domain of gains and mels: fading waveforms would
    comb-filter where two chunks disagree in phase.

    Args:
        num_frames: Length of the whole, in frames.
        chunk_frames: Length of a chunk.
        overlap_frames: Frames shared by neighbours, at most half a chunk.
    """

    def __init__(self, num_frames: int, chunk_frames: int, overlap_frames: int) -> None:
        if not 0 <= overlap_frames <= chunk_frames // 2:
            raise ValueError(f"`overlap_frames` has to be within 0 and {chunk_frames // 2}, got {overlap_frames}.")
        self.num_frames, self.chunk_frames, self.overlap_frames = num_frames, chunk_frames, overlap_frames
        phase = (torch.arange(overlap_frames) + 0.5) / max(overlap_frames, 1)
        self._ramp = torch.sin(phase * torch.pi / 2).square()
        self._tail: torch.Tensor | None = None

    def add(self, first: int, chunk: torch.Tensor) -> torch.Tensor:
        """Takes the chunk (..., chunk_frames) that starts at frame `first`; returns what is final from there on.

        Chunks come in order. The last one returns everything up to the end.
        """
        last = first + self.chunk_frames >= self.num_frames
        overlap = self.overlap_frames
        if self._tail is not None and overlap:
            ramp = self._ramp.to(chunk.device)
            chunk = torch.cat([self._tail * (1 - ramp) + chunk[..., :overlap] * ramp, chunk[..., overlap:]], dim=-1)
        self._tail = chunk[..., self.chunk_frames - overlap :]
        return chunk[..., : self.num_frames - first] if last else chunk[..., : self.chunk_frames - overlap]


def overlap_added(
    transform: BandTransform, parts: Iterable[tuple[int, torch.Tensor]], num_samples: int
) -> Iterator[torch.Tensor]:
    """Waveform (rows, samples) piece by piece of spectra that come in parts, as `transform.istft` has it of the whole.

    Args:
        parts: First frame and spectrum (rows, bins, frames), one after the other, up to the last frame.
        num_samples: Length of the whole.
    """
    hop, pad = transform.hop_length, transform.pad
    # What a later part will add to: samples after the frames so far.
    tail, tail_energy = torch.zeros(1, 2 * pad), torch.zeros(2 * pad)
    skipped, wanted = pad, num_samples  # the reflected beginning, and what is still to be yielded
    for first, spectrum in parts:
        samples, energy = (part.cpu() for part in transform.overlap_add(spectrum))
        samples[:, : 2 * pad] += tail
        energy[: 2 * pad] += tail_energy
        final = spectrum.shape[-1] * hop
        if first + spectrum.shape[-1] >= transform.num_frames(num_samples):
            final = samples.shape[-1]
        tail, tail_energy = samples[:, final:], energy[final:]
        block = (samples[:, :final] / energy[:final].clamp_min(1e-8))[:, skipped : skipped + wanted]
        skipped, wanted = max(skipped - final, 0), wanted - block.shape[-1]
        if block.shape[-1]:
            yield block


def stft_parts(
    transform: BandTransform, blocks: Iterable[torch.Tensor], num_frames: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields first frame and spectrum (rows, bins, frames) of a waveform, as `transform.stft` has it of the whole.

    Args:
        blocks: The waveform (rows, samples), `num_frames` whole hops, one block after the other.
    """
    hop, pad = transform.hop_length, transform.pad
    waveform: torch.Tensor | None = None  # from `pad` samples before the frame `done` on
    done = heard = 0  # frames that are yielded, samples that came
    for samples in blocks:
        heard += samples.shape[-1]
        edge = samples[:, 1 : pad + 1].flip(-1)  # before the first sample is a reflected edge
        waveform = torch.cat([edge if waveform is None else waveform, samples], dim=-1)
        if heard == num_frames * hop:
            waveform = torch.cat([waveform, waveform[:, -pad - 1 : -1].flip(-1)], dim=-1)
        count = (waveform.shape[-1] - 2 * pad) // hop
        if count > 0:
            yield done, transform.stft_of_padded(waveform[:, : count * hop + 2 * pad])
            waveform, done = waveform[:, count * hop :], done + count


def frame_noise(seed: int, step: int, n_mels: int, first: int, num_frames: int) -> torch.Tensor:
    """Standard normal noise (n_mels, num_frames) that is a function of the seed, the step and the absolute frame."""
    blocks = []
    for block in range(first // NOISE_BLOCK, (first + num_frames - 1) // NOISE_BLOCK + 1):
        # Consecutive seeds give independent streams of the Mersenne twister; the strides keep step and block apart.
        generator = torch.Generator().manual_seed((seed + 1_000_003 * step + 8_191_000_003 * block) % 2**63)
        blocks.append(torch.randn(n_mels, NOISE_BLOCK, generator=generator))
    offset = first % NOISE_BLOCK
    return torch.cat(blocks, dim=-1)[:, offset : offset + num_frames]


def chunk_noise(
    seed: int, step: int, starts: Sequence[int], like: torch.Tensor, latents: torch.Tensor | None = None
) -> torch.Tensor:
    """Cuts the noise of chunks (rows of all chunks, 1, mel, frames) out of one noise for the whole recording.

    The channels of a recording share it, so that equal ones stay equal.

    Args:
        seed, step: See :func:`frame_noise`.
        starts: First frame of every chunk.
        like: The chunks' log-mels (rows of all chunks, slots, mel, frames).
        latents: Given noise (rows, 1, mel, all frames), repeated beyond its end, where the last chunk is padded.
    """
    rows, (bands, frames) = len(like) // len(starts), like.shape[2:]
    if latents is not None:
        noise = [latents[..., torch.arange(first, first + frames) % latents.shape[-1]] for first in starts]
    else:
        noise = [frame_noise(seed, step, bands, first, frames).expand(rows, 1, -1, -1) for first in starts]
    return torch.cat(noise).to(like)


def step_noise(
    scheduler: SchedulerMixin, seed: int, step: int, starts: Sequence[int], like: torch.Tensor
) -> dict[str, torch.Tensor | list[torch.Generator]]:
    """Makes the source of noise that `scheduler.step` takes, by its name; see :func:`chunk_noise`."""
    parameters = inspect.signature(scheduler.step).parameters
    if "variance_noise" in parameters:
        return {"variance_noise": chunk_noise(seed, step, starts, like)}
    if "generator" not in parameters:
        return {}
    # DDPM takes no noise, only generators: overlapping chunks then draw different noise, and are cross-faded.
    seeds = [(seed + 1_000_003 * step + 8_191_000_003 * first) % 2**63 for first in starts]
    rows = len(like) // len(starts)
    return {"generator": [torch.Generator().manual_seed(each) for each in seeds for _ in range(rows)]}


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
