"""What the pipeline is given: takes of a performance, and which channels of them share an image."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch

from .audio import NORMAL_RMS_DB

AudioInput = np.ndarray | torch.Tensor
SILENCE_RMS = 1e-6  # -120 dBFS: below it there is nothing to restore


def assign_slots(num_channels: list[int], max_recordings: int) -> list[list[int]]:
    """Which channels make up the image of each of the reference's channels.

    Slot 0 is the channel to be restored; then the reference's other channel, which shares the room but not the crowd
    beside it; then the like channel of every further take. Two channels are two recordings here: the same gain on both
    could not dereverberate what differs between them, and a downmix would lose what is in opposite phase.

    Args:
        num_channels: Channels of every take, the reference first; the channels of all takes are counted through.

    Returns:
        For every channel of the reference the indices of at most `max_recordings` channels, as many for one as for
        the other.
    """
    offsets = np.cumsum([0, *num_channels])
    slots = []
    for channel in range(num_channels[0]):
        others = [other for other in range(num_channels[0]) if other != channel]
        further = [
            int(offset) + min(channel, channels - 1)
            for offset, channels in zip(offsets[1:-1], num_channels[1:], strict=True)
        ]
        room = max_recordings - 1 - len(further)
        slots.append([channel, *others[: max(room, 0)], *further])
    return slots


def as_performances(audio: AudioInput | Sequence[AudioInput], max_recordings: int) -> list[list[np.ndarray]]:
    """Sorts the forms that the pipeline's `audio` may have: for every batch item its takes (channels, samples).

    Raises:
        ValueError: If the shape, the number of takes or channels, the type or a sample is not usable.
    """
    if isinstance(audio, np.ndarray | torch.Tensor):
        if audio.ndim != 3:
            return [[_as_take(audio)]]
        if not len(audio):
            raise ValueError("`audio` is an empty batch.")
        return [[_as_take(take)] for take in audio]
    if isinstance(audio, str | bytes | os.PathLike):
        raise ValueError(
            f"`audio` has to be samples, not the path of a file: read {audio!r} first, for example with "
            f"`soundfile.read`, and pass its sampling rate, too."
        )
    if not isinstance(audio, Sequence):
        raise ValueError(
            f"`audio` has to be a numpy array, a torch tensor or a list of these, got {type(audio).__name__}."
        )
    if not 1 <= len(audio) <= max_recordings:
        raise ValueError(f"`audio` can be a list of 1 to {max_recordings} takes, got {len(audio)}.")
    return [[_as_take(take) for take in audio]]


def _as_take(audio: AudioInput) -> np.ndarray:
    if not isinstance(audio, np.ndarray | torch.Tensor):
        raise ValueError(
            f"Every take of `audio` has to be a numpy array or a torch tensor, got {type(audio).__name__}."
        )
    is_float = audio.is_floating_point() if isinstance(audio, torch.Tensor) else audio.dtype.kind == "f"
    if not is_float:
        raise ValueError(f"`audio` has to be floating point with full scale at 1.0, got {audio.dtype}.")
    waveform = audio.detach().cpu().float().numpy() if isinstance(audio, torch.Tensor) else audio
    waveform = waveform[None] if waveform.ndim == 1 else waveform
    if waveform.ndim != 2 or not 1 <= len(waveform) <= 2:
        raise ValueError(
            "`audio` has to be `(samples)`, `(channels, samples)` or `(batch, channels, samples)` with one or two "
            f"channels, or a list of such takes without a batch; got the shape {tuple(audio.shape)}."
        )
    if waveform.shape[1] == 0:
        raise ValueError("`audio` has no samples.")
    waveform = waveform.astype(np.float32)
    if not np.isfinite(waveform).all():
        raise ValueError("`audio` has NaN or infinite samples.")
    return waveform


def level_gain(level_rms: float) -> float:
    """Gain that brings a take of this RMS, see :func:`rms`, to the level at which the networks see every recording."""
    return 10 ** (NORMAL_RMS_DB / 20) / max(level_rms, SILENCE_RMS)


def rms(waveform: np.ndarray) -> float:
    """Root mean square over the samples (channels, samples) in which anything was recorded.

    A take that began late or was paused is zero there, to the bit, on the reference's clock; that is no quiet music.
    """
    power = np.square(waveform, dtype=np.float64).sum(axis=0)
    return float(np.sqrt(power.sum() / len(waveform) / max(np.count_nonzero(power), 1)))
