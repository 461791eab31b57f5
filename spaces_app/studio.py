"""What the Space does with the files that somebody gives it: check, align, restore, compare, inspect, draw."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_aud2studio import files
from pipeline_aud2studio.alignment.command import plot_lags
from pipeline_aud2studio.alignment.gather import gather
from pipeline_aud2studio.audio import SILENCE_RMS_DB, AudioNotice, Waveform, resampled
from pipeline_aud2studio.chunks import Scaled, Source
from pipeline_aud2studio.files import Spool
from pipeline_aud2studio.inspection import inspect
from pipeline_aud2studio.plot import plot_spectrograms
from pipeline_aud2studio.restore_file import Restoration, Settings, Take, restore, take_of_file
from spaces_app.sentences import (
    MAX_BYTES,
    MAX_RECORDINGS,
    MAX_SECONDS,
    NOTHING_GIVEN,
    TOO_LARGE,
    TOO_LONG,
    Refused,
    notice,
    refusal,
)

if TYPE_CHECKING:
    from pipeline_aud2studio.pipeline import Aud2StudioPipeline

FORMATS = {"FLAC": ".flac", "WAV": ".wav"}
SILENT_LUFS = -100.0
PICTURE_INCHES = 4.0  # its letters of 10 points have 11 px where it is 320 px wide, on a phone of 390 px

Tell = Callable[[str, tuple[int, int] | None], None]  # what is being done, and how many of how many seconds


@dataclass(frozen=True)
class Outcome:
    """Files of a finished restoration, all in one folder, and what is to be known about it.

    Attributes:
        name: Of the recording that was restored.
        result: To download.
        subtype: Of the result, "PCM_24".
        before, after: Recording and result at the same loudness, to compare.
        spectrograms: PNG of both.
        lags: PNG of the alignment; None for one recording.
        facts: What `inspect` heard in the recording; nothing in silence.
        notices: Sentences.
    """

    name: str
    result: Path
    subtype: str
    before: Path
    after: Path
    spectrograms: Path
    lags: Path | None
    facts: dict[str, float]
    notices: list[str]


def check(paths: Sequence[Path]) -> None:
    """Looks at the files without reading them.

    Raises:
        Refused: There are none, too many, or too large ones.
    """
    if not paths:
        raise Refused(NOTHING_GIVEN)
    if len(paths) > MAX_RECORDINGS:
        raise Refused(f"{len(paths)} recordings are too many: choose the best {MAX_RECORDINGS} of them.")
    for path in paths:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise Refused(TOO_LARGE.format(name=path.name, megabytes=round(size / 1e6)))


def open_take(path: Path) -> Take:
    """A recording that may last `MAX_SECONDS`, whether its header tells how long it is or not.

    Raises:
        AudioError: See `take_of_file`.
        Refused: It is too long; where the header does not tell, while its blocks are read.
    """
    take = take_of_file(path, None, None, downmix=True)
    most = MAX_SECONDS * take.sample_rate
    too_long = Refused(TOO_LONG.format(name=path.name))
    if (take.frames or 0) > most:
        raise too_long

    def blocks() -> Iterator[Waveform]:
        count = 0
        for block in take.blocks():
            count += block.shape[1]
            if count > most:
                raise too_long
            yield block

    return replace(take, blocks=blocks)


class Telling:
    """A pipeline whose `stream` tells how many seconds of the recording are done."""

    def __init__(self, pipeline: Aud2StudioPipeline, tell: Tell) -> None:
        self._pipeline, self._tell, self.config = pipeline, tell, pipeline.config

    def stream(self, takes: Sequence[Source], *options: Any, **named: Any) -> Iterator[Waveform]:
        """As the pipeline's."""
        rate, done = self.config.sample_rate, 0
        total_s = math.ceil(takes[0].num_samples / rate)
        self._tell("Restoring", (0, total_s))
        for block in self._pipeline.stream(takes, *options, **named):
            done += block.shape[1]
            self._tell("Restoring", (math.ceil(done / rate), total_s))
            yield block


def restore_recordings(
    paths: Sequence[Path],
    settings: Settings,
    suffix: str,
    folder: Path,
    load_pipeline: Callable[[], Aud2StudioPipeline],
    tell: Tell,
) -> Outcome:
    """Restores one recording, or several of one performance, into files in `folder`.

    Args:
        suffix: `.flac` or `.wav`.
        tell: Is told what is being done.

    Raises:
        Refused: A recording cannot be used.
    """
    notices: list[str] = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", AudioNotice)
        try:
            check(paths)
            tell("Reading", None)
            with _open(paths, folder, notices.append, tell) as (lags, number, takes):
                name = paths[number].name
                result = folder / f"{paths[number].stem}.restored{suffix}"
                subtype = files.output_subtype(suffix, takes[0].subtype)
                settings = replace(settings, is_float=subtype == "FLOAT")
                chunks, lost = files.carried(takes[0].chunks, suffix, is_same_time=True)
                if lost := lost + ["the cover"] * takes[0].has_cover:
                    notices.append(f"{name} has what the result has not: {', '.join(lost)}")

                def say(text: str) -> None:
                    notices.append(f"{name} {text}")

                def telling() -> Any:
                    return Telling(load_pipeline(), tell)

                with restore(takes, telling, settings, folder, say) as done:
                    out = done.result
                    form = out.num_channels, out.num_samples, out.sample_rate, subtype
                    files.write_blocks(result, out.blocks(done.gain), *form, takes[0].tags, chunks)
                    tell("Comparing", None)
                    before, after, spectrograms = _compared(done, folder)
                    is_silent = done.original.meter.rms_db < SILENCE_RMS_DB
                    heard = {} if is_silent else _inspected(load_pipeline(), done.original)
        except files.AudioError as error:
            raise refusal(error, paths) from error
    notices += [str(warning.message) for warning in warned]
    notices = [notice(text, paths) for text in notices]
    return Outcome(name, result, subtype, before, after, spectrograms, lags, heard, notices)


@contextmanager
def _open(
    paths: Sequence[Path], folder: Path, say: Callable[[str], None], tell: Tell
) -> Iterator[tuple[Path | None, int, list[Take]]]:
    """The alignment's picture, which recording is the reference, and the takes, the reference first."""
    takes = [open_take(path) for path in paths]
    if len(paths) == 1:
        yield None, 0, takes
        return
    tell("Aligning", None)
    with gather(takes, [path.name for path in paths], MAX_RECORDINGS, None, False, say, folder) as found:
        lags = folder / "alignment.png"
        plot_lags(lags, found.alignment)
        yield lags, found.reference, found.takes


def _compared(done: Restoration, folder: Path) -> tuple[Path, Path, Path]:
    """Before and after as FLAC, at the loudness of the quieter one (what is louder would win), and their picture."""
    original, result = done.original, done.result
    gains = [1.0, done.gain]
    loudness = [original.meter.lufs, result.meter.lufs + 20 * math.log10(done.gain)]
    if min(loudness) > SILENT_LUFS:
        gains = [gain * 10 ** ((min(loudness) - own) / 20) for gain, own in zip(gains, loudness, strict=True)]
    peak = max(gains[0] * original.meter.peak, gains[1] * result.meter.peak, 1.0)  # float may be above full scale
    paths = [folder / "before.flac", folder / "after.flac"]
    for path, spool, gain in zip(paths, (original, result), gains, strict=True):
        form = spool.num_channels, spool.num_samples, spool.sample_rate, "PCM_16"
        files.write_blocks(path, spool.blocks(gain / peak), *form, {})
    panels: dict[str, tuple[Source, int]] = {
        "Before": (original, original.sample_rate),
        "After": (Scaled(result, done.gain), result.sample_rate),
    }
    plot_spectrograms(folder / "spectrograms.png", panels, width_inches=PICTURE_INCHES)
    return paths[0], paths[1], folder / "spectrograms.png"


def _inspected(pipeline: Aud2StudioPipeline, recording: Spool) -> dict[str, float]:
    """As `aud2studio inspect` does."""
    blocks = resampled(recording.blocks(), recording.sample_rate, pipeline.config.sample_rate)
    return inspect(pipeline, np.concatenate([*blocks], axis=1))
