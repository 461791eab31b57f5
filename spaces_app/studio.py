"""What the Space does with the files that somebody gives it: check, align, restore, compare, draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_aud2studio import files
from pipeline_aud2studio.alignment.command import plot_lags
from pipeline_aud2studio.alignment.gather import gather
from pipeline_aud2studio.chunks import Scaled, Source
from pipeline_aud2studio.files import Spool
from pipeline_aud2studio.plot import plot_spectrograms
from pipeline_aud2studio.restore_file import Settings, Take, restore, take_of_file

if TYPE_CHECKING:
    from pipeline_aud2studio.pipeline import Aud2StudioPipeline

MAX_RECORDINGS = 4
MAX_SECONDS = 600  # of each recording: what a visitor waits for
MAX_BYTES = 250_000_000  # of each file
FORMATS = {"FLAC": ".flac", "WAV": ".wav"}
SILENT_LUFS = -100.0


@dataclass(frozen=True)
class Outcome:
    """Files of a finished restoration, all in one folder, and what is to be known about it.

    Attributes:
        result: The restored recording, to download.
        before, after: Recording and result at the same loudness, to compare.
        spectrograms: PNG of both.
        lags: PNG of the alignment; None for one recording.
        notices: Sentences.
    """

    result: Path
    before: Path
    after: Path
    spectrograms: Path
    lags: Path | None
    notices: list[str]


def check(paths: Sequence[Path]) -> None:
    """Raises a ValueError, a sentence for the visitor, for what is too many, too large, too long or no audio."""
    if not paths:
        raise ValueError("There is nothing to restore: upload or record something, or take the example.")
    if len(paths) > MAX_RECORDINGS:
        raise ValueError(f"{len(paths)} recordings are too many: {MAX_RECORDINGS} at most.")
    for path in paths:
        megabytes = path.stat().st_size / 1e6
        if megabytes > MAX_BYTES / 1e6:
            raise ValueError(f"{path.name} has {megabytes:.0f} MB: {MAX_BYTES / 1e6:.0f} MB at most.")
        with files.opened(path) as sound:
            seconds = (sound.frames or 0) / sound.sample_rate
        if seconds > MAX_SECONDS:
            raise ValueError(
                f"{path.name} lasts {seconds / 60:.1f} minutes: {MAX_SECONDS // 60} at most here. Longer recordings"
                " want the command line on your own machine."
            )


def restore_recordings(
    paths: Sequence[Path],
    settings: Settings,
    suffix: str,
    folder: Path,
    load_pipeline: Callable[[], Aud2StudioPipeline],
) -> Outcome:
    """Restores one recording, or several of one performance, into files in `folder`.

    Args:
        suffix: `.flac` or `.wav`.

    Raises:
        ValueError: A recording cannot be used; the message is a sentence without the folders of this machine.
    """
    notices: list[str] = []
    try:
        check(paths)
        with _open(paths, folder, notices.append) as (lags, reference, takes):
            name = Path(paths[reference].name)
            result = folder / f"{name.stem}.restored{suffix}"
            subtype, tags = files.output_subtype(suffix, takes[0].subtype), takes[0].tags
            say = partial(_say_of, name, notices.append)
            with restore(takes, load_pipeline, settings, folder, say) as done:
                out, rate = done.result, done.result.sample_rate
                blocks = out.blocks(done.gain)
                files.write_blocks(result, blocks, out.num_channels, out.num_samples, rate, subtype, tags)
                before, after = _compared(done.original, out, done.gain, folder)
                spectrograms = folder / "spectrograms.png"
                original: tuple[Source, int] = done.original, done.original.sample_rate
                plot_spectrograms(spectrograms, {"Before": original, "After": (Scaled(out, done.gain), rate)})
    except ValueError as error:
        message = str(error)
        for path in paths:
            message = message.replace(str(path), path.name)
        raise ValueError(message) from error
    return Outcome(result, before, after, spectrograms, lags, notices)


def _say_of(name: Path, say: Callable[[str], None], text: str) -> None:
    say(f"{name} {text}")


@contextmanager
def _open(
    paths: Sequence[Path], folder: Path, say: Callable[[str], None]
) -> Iterator[tuple[Path | None, int, list[Take]]]:
    """The alignment's picture, which recording is the reference, and the takes, the reference first."""
    takes = [take_of_file(path, None, None, downmix=True) for path in paths]
    if len(paths) == 1:
        yield None, 0, takes
        return
    with gather(takes, [path.name for path in paths], MAX_RECORDINGS, None, False, say, folder) as found:
        lags = folder / "alignment.png"
        plot_lags(lags, found.alignment)
        yield lags, found.reference, found.takes


def _compared(original: Spool, result: Spool, gain: float, folder: Path) -> tuple[Path, Path]:
    """Both as FLAC at the loudness of the quieter one: what is louder would win every comparison."""
    loudness = [original.meter.lufs, result.meter.lufs]
    gains = [1.0, gain]
    if min(loudness) > SILENT_LUFS:
        own = [loudness[0], loudness[1] + 20 * math.log10(gain)]
        gains = [10 ** ((min(own) - own[0]) / 20), gain * 10 ** ((min(own) - own[1]) / 20)]
    paths = []
    for name, spool, factor in (("before", original, gains[0]), ("after", result, gains[1])):
        path = folder / f"{name}.flac"
        files.write_blocks(
            path, spool.blocks(factor), spool.num_channels, spool.num_samples, spool.sample_rate, "PCM_16", {}
        )
        paths.append(path)
    return paths[0], paths[1]
