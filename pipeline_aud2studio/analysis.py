"""Recordings of any length as the networks see them, stretch by stretch, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from .chunks import Padded
from .features import HISTORY, LOOK_AHEAD, BandImage, Features
from .prediction import BLOCK_FRAMES, OVERLAP_FRAMES, predict_late


class Stretch(NamedTuple):
    """Consecutive frames of what is to be restored."""

    first: int  # the first frame
    stft: torch.Tensor  # (rows, bins, frames), of the coarse transform
    late: torch.Tensor  # (rows, bins, frames), the predicted late sound
    features: Features

    def cut(self, first: int, frames: int) -> Stretch:
        """Returns the frames [first, first + frames), counted from the beginning of the recording."""
        begin = first - self.first
        inside = slice(begin, begin + frames)
        return Stretch(first, self.stft[..., inside], self.late[..., inside], self.features.cut(begin, frames))

    def joined(self, following: Stretch) -> Stretch:
        """Returns this stretch and the one after it as one."""
        pairs = zip(self.features, following.features, strict=True)
        features = [one if one.dtype == torch.bool else torch.cat([one, other], dim=-1) for one, other in pairs]
        stft, late = torch.cat([self.stft, following.stft], -1), torch.cat([self.late, following.late], -1)
        return Stretch(self.first, stft, late, Features(*features))


def analyzed(
    padded: Padded, image: BandImage, slots: list[list[int]], num_frames: int, last: int | None = None
) -> Iterator[Stretch]:
    """Looks at recordings from their beginning to their end.

    The late sound is predicted in blocks, whose filters differ, and cross-faded; everything else is the same wherever
    a block begins.

    Args:
        padded: The recordings at the normal level, the reference's channels first.
        image: What the networks see.
        slots: The channels that every row sees; row `r` is channel `r`.
        num_frames: Of the recordings, in frames of the coarse transform.
        last: Where to end; what is behind `num_frames` is the recording backwards, from which no filter learns.
    """
    last = num_frames if last is None else last
    starts = list(range(0, max(num_frames - OVERLAP_FRAMES, 1), BLOCK_FRAMES - OVERLAP_FRAMES))
    starts[-1] = max(min(starts[-1], num_frames - BLOCK_FRAMES), 0)
    faded = torch.sin(torch.linspace(0, torch.pi / 2, OVERLAP_FRAMES)).square()
    tail: torch.Tensor | None = None
    for start, following in zip(starts, [*starts[1:], last], strict=True):
        end = last if following == last else start + BLOCK_FRAMES
        samples, stft, history = _block(padded, image, start, end)
        late = _late(stft, len(slots), history, end - start, num_frames - start)
        if tail is not None:
            ramp = faded.to(late.device)
            late[..., :OVERLAP_FRAMES] = tail * (1 - ramp) + late[..., :OVERLAP_FRAMES] * ramp
        count = following - start
        tail = late[..., count : count + OVERLAP_FRAMES].clone()
        everywhere = torch.nn.functional.pad(late, (history, LOOK_AHEAD))
        features = image.features(stft, everywhere, _log_mel(image, samples), slots).cut(history, count)
        yield Stretch(start, stft[: len(slots), :, history : history + count], late[..., :count], features)


def _block(padded: Padded, image: BandImage, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Samples and coarse spectra of a block with what is before and after it, and how many frames are before it."""
    coarse, history = image.coarse, min(start, HISTORY)
    begin = (start - history) * coarse.hop_length
    samples = padded.window(begin, (end + LOOK_AHEAD) * coarse.hop_length + 2 * coarse.pad)
    return samples, coarse.stft_of_padded(samples), history


def _log_mel(image: BandImage, samples: torch.Tensor) -> torch.Tensor:
    """The log-mel (channels, mel, mel_frames) of samples with the edges of the coarse transform."""
    edge = image.coarse.pad - image.fine.pad
    return image.fine.log_mel(image.fine.stft_of_padded(samples[:, edge : samples.shape[-1] - edge]))


def _late(stft: torch.Tensor, num_targets: int, history: int, frames: int, recorded: int) -> torch.Tensor:
    """Late sound (rows, bins, frames) of a block, of whose frames only the first `recorded` were recorded."""
    stft = stft[..., : history + frames]
    targets = stft[:num_targets, :, history:]
    power = (targets.real.square() + targets.imag.square()).mean(0)
    power[:, recorded:] = torch.inf
    return predict_late(stft, num_targets, power=power, history=history)


def chunks_of(stretches: Iterable[Stretch], starts: Iterable[int], frames: int) -> Iterator[Stretch]:
    """Cuts stretches, which follow each other, into chunks of `frames` frames from each of `starts` on."""
    stretches = iter(stretches)
    held = next(stretches)
    for start in starts:
        while held.first + held.stft.shape[-1] < start + frames:
            held = held.cut(start, held.first + held.stft.shape[-1] - start).joined(next(stretches))
        yield held.cut(start, frames)
