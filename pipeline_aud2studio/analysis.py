"""Recordings of any length as the networks see them, stretch by stretch, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from .chunks import Padded
from .features import HISTORY, LOOK_AHEAD, POWER_FLOOR, BandImage, Features
from .prediction import BLOCK_FRAMES, OVERLAP_FRAMES, power_of, predict_late

HELD_OUT_FRAMES = 64  # 1.5 s: every other such stretch tests what was learned from those between
HELPS = 0.98  # of what the reference's own past leaves, at most, for other recordings to take part


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
        slots: The channels that every row sees; row `r` is channel `r`. Channels behind these only predict.
        num_frames: Of the recordings, in frames of the coarse transform.
        last: Where to end; what is behind `num_frames` is the recording backwards, from which no filter learns.
    """
    last = num_frames if last is None else last
    seen = 1 + max(map(max, slots))
    starts = list(range(0, max(num_frames - OVERLAP_FRAMES, 1), BLOCK_FRAMES - OVERLAP_FRAMES))
    starts[-1] = max(min(starts[-1], num_frames - BLOCK_FRAMES), 0)
    faded = torch.sin(torch.linspace(0, torch.pi / 2, OVERLAP_FRAMES)).square()
    tail: torch.Tensor | None = None
    for start, following in zip(starts, [*starts[1:], last], strict=True):
        end = last if following == last else start + BLOCK_FRAMES
        samples, stft, history = _block(padded, image, start, end)
        late = _late(stft[..., : history + end - start], image, len(slots), history, num_frames - start)
        if tail is not None:
            ramp = faded.to(late.device)
            late[..., :OVERLAP_FRAMES] = tail * (1 - ramp) + late[..., :OVERLAP_FRAMES] * ramp
        count = following - start
        tail = late[..., count : count + OVERLAP_FRAMES].clone()
        everywhere = torch.nn.functional.pad(late, (history, LOOK_AHEAD))
        features = image.features(stft[:seen], everywhere, _log_mel(image, samples[:seen]), slots).cut(history, count)
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


def _late(stft: torch.Tensor, image: BandImage, num_targets: int, history: int, recorded: int) -> torch.Tensor:
    """Late sound (rows, bins, frames) of a block, of whose frames only the first `recorded` were recorded.

    Other recordings take part in the bands in which they help: in which, learned from one half of the block, they
    predict more of the other half than the reference's own past does. A silent or foreign one changes nothing.
    """
    targets = stft[:num_targets, :, history:]
    power = power_of(targets)
    known = power.clone()
    known[:, recorded:] = torch.inf
    own = predict_late(stft[:num_targets], num_targets, power=known, history=history)
    is_heard = stft.real.abs().amax((1, 2)) > 0
    is_heard[:num_targets] = True
    if int(is_heard.sum()) == num_targets:
        return own
    stft = stft[is_heard]
    tested = torch.arange(power.shape[-1], device=stft.device) // HELD_OUT_FRAMES % 2 == 1
    learned = known.clone()
    learned[:, tested] = torch.inf
    tested[recorded:] = False
    weight = 1 / image.coarse.spread(image.coarse.average(power[None]))[:, :, tested].clamp_min(POWER_FLOOR)
    left = []
    for channels in (stft[:num_targets], stft):
        late = predict_late(channels, num_targets, power=learned, history=history)
        rest = (targets - late)[:, :, tested]
        left.append(((rest.real.square() + rest.imag.square()) * weight).sum((0, 2)))
    by_band = image.coarse.average(torch.stack(left)[..., None])  # (2, bands, 1)
    helps = image.coarse.spread((by_band[1] < HELPS * by_band[0]).to(power)[None]) > 0.5
    if not helps.any():
        return own
    return torch.where(helps, predict_late(stft, num_targets, power=known, history=history), own)


def chunks_of(stretches: Iterable[Stretch], starts: Iterable[int], frames: int) -> Iterator[Stretch]:
    """Cuts stretches, which follow each other, into chunks of `frames` frames from each of `starts` on."""
    stretches = iter(stretches)
    held = next(stretches)
    for start in starts:
        while held.first + held.stft.shape[-1] < start + frames:
            held = held.cut(start, held.first + held.stft.shape[-1] - start).joined(next(stretches))
        yield held.cut(start, frames)
