"""A recording from file to file, in memory that does not grow with its length.

read -> model's rate -> pipeline.stream -> own rate -> loudness -> dryness -> output's rate -> tilt -> limiter -> write
"""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import audio, files
from .audio import Waveform
from .files import Spool
from .speakers import mixed

if TYPE_CHECKING:
    from .pipeline import Aud2StudioPipeline


SAFE_PEAK = 0.6  # 4.4 dB below full scale: no samples of this height hide a true peak above -1 dBTP in music
# Look-ahead in s and release in dB/s of the limiter's rounds: slow and unheard, then what a loud master was made with.
LIMITER_ROUNDS = (*[(0.005, 60.0)] * 2, *[(0.001, 1500.0)] * 5)
MAKEUP_TOLERANCE_LU = 0.2


@dataclass(frozen=True)
class Take:
    """A recording that can be read from its beginning as often as it is needed.

    Attributes:
        blocks: opens it and gives its samples, blocks (channels, samples) of float32.
        only_predicts: whether it is on the others' clock to some 30 ms only: enough for its past to predict late
            sound, which an echo more or less does not harm, and not enough to be compared with the reference.
    """

    sample_rate: int  # Hz
    num_channels: int
    frames: int | None  # samples, as far as the header tells
    tags: dict[str, str]
    subtype: str | None
    blocks: Callable[[], Iterator[Waveform]]
    chunks: tuple[bytes, ...] = ()  # of WAV, see `AudioStream`
    has_cover: bool = False
    only_predicts: bool = False


def take_of_file(
    path: Path,
    start_s: float | None,
    end_s: float | None,
    downmix: bool,
    track: int | None = None,
    strict: bool = False,
) -> Take:
    """Open the part of a file between two times.

    Raises:
        AudioError: see `files.opened`; here for what its header tells, else while its blocks are read.
    """

    def blocks() -> Iterator[Waveform]:
        with files.opened(path, start_s, end_s, downmix, track, strict) as sound:
            yield from sound.blocks

    with files.opened(path, start_s, end_s, downmix, track, strict) as sound:
        stream, frames = sound.stream, sound.frames
        if frames is not None and end_s is not None:
            frames = min(frames, round(end_s * sound.sample_rate))
        return Take(
            stream.sample_rate,
            stream.channels,
            frames,
            stream.tags,
            stream.subtype,
            blocks,
            stream.chunks,
            stream.has_cover,
        )


def joined(parts: Sequence[Take], start_s: float | None, end_s: float | None) -> Take:
    """Put consecutive parts of one recording together, in the form of the first, and cut out an excerpt.

    Raises:
        AudioError: while the blocks are read, see `files.opened`; or the whole ends before the start.
    """
    first = parts[0]

    def blocks() -> Iterator[Waveform]:
        start, stop = files.excerpt_bounds(start_s or 0.0, end_s, first.sample_rate, math.inf)
        resampled = (audio.resampled(part.blocks(), part.sample_rate, first.sample_rate) for part in parts)
        whole = (mixed(block, ("FL", "FR")[: len(block)], first.num_channels) for part in resampled for block in part)
        if (yield from _between(whole, start, stop)) <= start:
            raise files.AudioError(f"the parts end before the start that was asked for ({start_s:g} s)")

    lengths = [round((part.frames or 0) * first.sample_rate / part.sample_rate) for part in parts]
    return replace(first, frames=sum(lengths), blocks=blocks)


def excerpt(take: Take, path: Path, start_s: float | None, end_s: float | None) -> Take:
    """The part between two times of a take of known length, as `take_of_file` would have given it.

    Raises:
        AudioError: the take, which messages call by its path, ends before the start.
    """
    assert take.frames is not None
    start, stop = files.excerpt_bounds(start_s or 0.0, end_s, take.sample_rate, take.frames)
    if start >= stop:
        raise files.AudioError(f"{path} ends before the start that was asked for ({start_s:g} s)")

    frames = int(stop) - start
    return replace(take, frames=frames, blocks=lambda: _between(take.blocks(), start, stop))


def _between(blocks: Iterable[Waveform], start: int, stop: float) -> Generator[Waveform, None, int]:
    """Yields the samples [start, stop) of blocks (channels, samples); returns how many samples there were."""
    position = 0
    for block in blocks:
        if (part := block[:, max(start - position, 0) : int(max(min(stop - position, block.shape[1]), 0))]).size:
            yield part
        position += block.shape[1]
        if position >= stop:
            break
    return position


@dataclass(frozen=True)
class Settings:
    """Wishes beyond the checkpoint's defaults; see the command line's help."""

    steps: int | None = None
    reconstruction: str = "faithful"
    seed: int = 0
    dryness: float = 1.0
    sample_rate: int | None = None
    tilt_db: float | None = None
    limit: bool = False
    is_float: bool = False  # the output holds samples above full scale


@dataclass(frozen=True)
class Restoration:
    """A restored recording, on the disk while the context lasts that gave it."""

    original: Spool
    result: Spool
    gain: float  # that the result still wants
    seconds: float  # that the work took, without reading the recording and loading the model


def decode(take: Take, folder: Path) -> tuple[Spool, float]:
    """Reads a take to the disk; returns it and its RMS over the samples in which anything was recorded.

    Raises:
        AudioError: the recording cannot be used.
        OSError: the disk is full.
    """
    count = 0

    def measured() -> Iterator[Waveform]:
        nonlocal count
        for block in take.blocks():
            count += int(np.count_nonzero(functools.reduce(np.logical_or, block)))
            yield block

    spool = Spool(folder, take.num_channels, take.sample_rate).extend(measured())
    # Samples in which nothing was recorded add nothing to the energy.
    return spool, 10 ** (spool.meter.rms_db / 20) * math.sqrt(spool.num_samples / max(count, 1))


@contextmanager
def restore(
    takes: Sequence[Take],
    load_pipeline: Callable[[], Aud2StudioPipeline],
    settings: Settings,
    folder: Path,
    say: Callable[[str], None],
) -> Iterator[Restoration]:
    """Restores the first take with the help of the others; a context, after which the temporary files are gone.

    Args:
        takes: Of one performance, on one clock, the reference first, those that only predict last.
        load_pipeline: Called when the recordings have turned out to be readable and not silent.
        folder: Whose disk holds the temporary files.
        say: Is told where there is nothing to restore.

    Raises:
        AudioError: a recording cannot be used.
        OSError: the disk is full.
    """
    with ExitStack() as spools:

        def kept(spool: Spool) -> Spool:
            return spools.enter_context(closing(spool))

        def spooled(blocks: Iterable[Waveform], sample_rate: int) -> Spool:
            return kept(Spool(folder, takes[0].num_channels, sample_rate)).extend(blocks)

        decoded = [decode(take, folder) for take in takes]
        for spool, _ in decoded:
            kept(spool)
        original, rate = decoded[0][0], takes[0].sample_rate
        started = time.perf_counter()
        if original.meter.rms_db < audio.SILENCE_RMS_DB:
            say("is silent: it is returned as it is")
            result, gain = original, 1.0
        else:
            from .takes import level_gain

            pipeline = load_pipeline()
            started = time.perf_counter()
            seen = sum(not take.only_predicts for take in takes)
            result = spooled(_restored(pipeline, decoded, seen, settings, folder), rate)
            raised = level_gain(decoded[0][1])
            gain = audio.loudness_gain(result.meter.level_lufs, original.meter.level_lufs, raised)
            if settings.dryness < 1:
                pairs = zip(result.blocks(gain), original.blocks(), strict=True)  # both in the blocks of a spool
                dryness = settings.dryness
                result = spooled((dryness * dry + (1 - dryness) * wet for dry, wet in pairs), rate)
                gain = audio.loudness_gain(result.meter.level_lufs, original.meter.level_lufs)
        to_rate = settings.sample_rate or rate
        if to_rate != rate or settings.tilt_db:
            blocks = audio.resampled(result.blocks(gain), rate, to_rate)
            blocks = audio.tilted(blocks, to_rate, settings.tilt_db) if settings.tilt_db else blocks
            result, gain = spooled(blocks, to_rate), 1.0
        if (settings.limit or not settings.is_float) and gain * result.meter.peak > SAFE_PEAK:
            result, gain = _limited(result, gain, spooled)
        yield Restoration(original, result, gain, time.perf_counter() - started)


def _restored(
    pipeline: Aud2StudioPipeline, decoded: Sequence[tuple[Spool, float]], seen: int, settings: Settings, folder: Path
) -> Iterator[Waveform]:
    """Runs the pipeline on takes and their RMS, of which it sees the first `seen`; yields the reference's blocks."""
    import torch

    from .chunks import Scaled
    from .takes import level_gain

    own_rate = pipeline.config.sample_rate
    with ExitStack() as spools:
        sources = []
        for original, rms in decoded:
            spool = original
            if original.sample_rate != own_rate:
                resampled = Spool(folder, original.num_channels, own_rate, is_measured=False)
                spool = spools.enter_context(closing(resampled))
                spool.extend(audio.resampled(original.blocks(), original.sample_rate, own_rate))
            sources.append(Scaled(spool, level_gain(rms)))
        generator = torch.Generator().manual_seed(settings.seed)
        blocks = pipeline.stream(sources, settings.steps, settings.reconstruction, generator, seen=seen)
        reference = decoded[0][0]
        yield from audio.resampled(blocks, own_rate, reference.sample_rate, reference.num_samples)


def _limited(spool: Spool, gain: float, spooled: Callable[[Iterable[Waveform], int], Spool]) -> tuple[Spool, float]:
    """Hold the true peaks below -1 dBTP, and the loudness as it is; a `LoudnessWarning` where that took a limiter."""
    wanted = spool.meter.level_lufs + 20 * math.log10(gain)
    result, makeup_db = spool, 0.0
    for lookahead_s, release_db_per_s in LIMITER_ROUNDS:
        reductions: list[float] = []
        blocks = spool.blocks(gain * 10 ** (makeup_db / 20))
        rate, ceiling_db = spool.sample_rate, audio.TRUE_PEAK_CEILING_DB
        result = spooled(audio.limited(blocks, rate, ceiling_db, lookahead_s, release_db_per_s, reductions), rate)
        if not max(reductions):
            return spool, gain
        missing = wanted - result.meter.level_lufs
        if abs(missing) < MAKEUP_TOLERANCE_LU:
            break
        makeup_db += missing
    quieter = f", and the result is {missing:.1f} LU quieter than the recording" if missing > 0.5 else ""
    warnings.warn(
        f"the limiter lowered peaks by up to {max(reductions):.1f} dB, to"
        f" {audio.TRUE_PEAK_CEILING_DB:g} dBTP{quieter}: 32-bit float WAV would keep them",
        audio.LoudnessWarning,
        stacklevel=2,
    )
    return result, 1.0
