"""Which loudspeaker every channel of a file is meant for, and what of it goes to stereo."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .audio import Waveform

_H = math.sqrt(0.5)
# By FFmpeg's names: what goes left and right (ITU-R BS.775). The subwoofer is left out, as the recommendation has it.
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
# The bits of WAVEX, from the lowest; the last ones hang from the ceiling.
_MASK = tuple("FL FR FC LFE BL BR FLC FRC BC SL SR TC TFL TFC TFR TBL TBC TBR".split())
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


def by_count(count: int) -> tuple[str, ...]:
    """Name the loudspeakers of so many channels by WAV's order; "?" where it has none."""
    return _BY_COUNT.get(count, ("?",) * count)


def named(names: Sequence[str], count: int) -> tuple[str, ...] | None:
    """Return the loudspeakers as they are called, None where they are not that many or have no names."""
    return tuple(names) if len(names) == count and any(name in DOWNMIX for name in names) else None


def of_mask(mask: int | None, count: int) -> tuple[str, ...]:
    """Name the loudspeakers of WAVEX's mask.

    By WAV's order where the mask does not fit the number of channels; "?" where there is none, as with channels that
    are no loudspeakers'.
    """
    if mask is None:
        return ("?",) * count
    return named([name for bit, name in enumerate(_MASK) if mask >> bit & 1], count) or by_count(count)


def of_aac(head: bytes, count: int) -> tuple[str, ...]:
    """Name the loudspeakers of AAC's program config element, which FFmpeg drops where it has no word for the whole.

    Args:
        head: an AudioSpecificConfig, as MP4 and Matroska have it, or the beginning of an ADTS stream.
        count: of channels; all are "?" where the element names another number.
    """
    position = 0

    def bits(width: int) -> int:
        nonlocal position
        position += width
        return int.from_bytes(head, "big") >> max(8 * len(head) - position, 0) & (1 << width) - 1

    def rate() -> None:
        if bits(4) == 15:
            bits(24)

    if head[:1] == b"\xff":
        position = 56 if head[1] & 1 else 72  # a checksum follows the header
        is_told = not (head[2] & 1 or head[3] >> 6) and bits(3) == 5
    else:
        kind = bits(5)
        rate()
        is_told = not bits(4)
        if kind in (5, 29):  # with spectral band replication
            rate()
            bits(5)
        bits(1)
        bits(14 * bits(1) + 1)
    names = _of_program(bits, rate) if is_told else []
    return tuple(names) if len(names) == count else ("?",) * count


def _of_program(bits: Callable[[int], int], rate: Callable[[], None]) -> list[str]:
    """Read a program config element (ISO/IEC 14496-3, 4.4.1.1)."""
    bits(6)
    rate()
    groups = [bits(4) for _ in range(3)]
    num_lfe = bits(2)
    bits(7)
    for width in (4, 4, 3):  # what is mixed down how
        if bits(1):
            bits(width)
    # Of two pairs the outer one comes last.
    pairs = [["FL FR", "FLC FRC"], ["SL SR"], ["BL BR", "SL SR"]]
    singles = ["FC", "LFE", "BC"]  # a single one at the side is how FFmpeg's encoder writes the subwoofer of 5.1(side)
    found = []
    for number, pair, single in zip(groups, pairs, singles, strict=True):
        is_pair = [(bits(1), bits(4))[0] for _ in range(number)]
        left = pair[: sum(is_pair)]
        for each in is_pair:
            found += ((left.pop() if left else "? ?") if each else single).split()
    return found + ["LFE"] * num_lfe


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
