"""Which loudspeaker a channel is meant for, and what of it goes to stereo (ITU-R BS.775)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .audio import Waveform

_H = math.sqrt(0.5)
# By FFmpeg's names: what goes left and right. The subwoofer is left out, as the recommendation has it.
DOWNMIX = {
    "FL": (1.0, 0.0),
    "FR": (0.0, 1.0),
    "FC": (_H, _H),
    "LFE": (0.0, 0.0),
    "BL": (_H, 0.0),
    "BR": (0.0, _H),
    "SL": (_H, 0.0),
    "SR": (0.0, _H),
    "BC": (0.5, 0.5),  # a single surround
    "DL": (1.0, 0.0),  # a stereo mix that came along
    "DR": (0.0, 1.0),
}
_MASK = ("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR")  # the bits of WAVEX, from the lowest
# Where a file does not say, the order of WAV and FLAC.
_BY_COUNT = {
    1: ("FC",),
    2: ("FL", "FR"),
    3: ("FL", "FR", "FC"),
    4: ("FL", "FR", "BL", "BR"),
    5: ("FL", "FR", "FC", "BL", "BR"),
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}


def named(names: Sequence[str], count: int) -> tuple[str, ...]:
    """The loudspeakers of so many channels: as they are called, else by WAV's order, else "?"."""
    if len(names) == count and any(name in DOWNMIX for name in names):
        return tuple(names)
    return _BY_COUNT.get(count, ("?",) * count)


def speakers_of_mask(mask: int, count: int) -> tuple[str, ...]:
    """The loudspeakers of WAVEX's mask; of WAV's order where the mask does not fit the number of channels."""
    return named([name for bit, name in enumerate(_MASK) if mask >> bit & 1], count)


def mixed(waveform: Waveform, speakers: Sequence[str], channels: int) -> Waveform:
    """Bring `(len(speakers), samples)` to `channels` (1 or 2): surround is mixed down, mono goes to both sides.

    Raises:
        KeyError: nobody knows where a channel belongs.
    """
    if len(speakers) == channels:
        return waveform
    if len(speakers) == 1:
        return np.repeat(waveform, channels, axis=0)
    if len(speakers) > 2:
        waveform = np.array([DOWNMIX[name] for name in speakers], np.float32).T @ waveform
    return waveform if channels == 2 else waveform.mean(axis=0, keepdims=True)
