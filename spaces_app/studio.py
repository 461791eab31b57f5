"""What the Space does with the files that somebody gives it, and what it says of them.

Check, align, restore, compare, inspect, draw; what was wrong with a recording, what helps, what was heard.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from pipeline_aud2studio.files import AudioError, Spool
from pipeline_aud2studio.inspection import UNITS, WORDS, inspect
from pipeline_aud2studio.plot import plot_spectrograms
from pipeline_aud2studio.restore_file import Restoration, Settings, Take, restore, take_of_file

if TYPE_CHECKING:
    from pipeline_aud2studio.pipeline import Aud2StudioPipeline

MAX_RECORDINGS = 4
MAX_SECONDS = 600  # of each recording: what a visitor waits for
MAX_BYTES = 250_000_000  # of each file

INTRODUCTION = f"""# aud2studio
Restores audience recordings of concerts: less crowd, less room, less microphone.

- **You give** one recording, or up to {MAX_RECORDINGS} of the same performance, which are aligned first. At most
  {MAX_SECONDS // 60} minutes and {MAX_BYTES // 10**6} MB each, as WAV, FLAC, AIFF, CAF, MP3, M4A, AAC, Ogg, Opus, WMA
  or AMR, or as the sound of an MP4, MOV, 3GP, MKV or WebM video. Surround sound is mixed down to stereo.
- **You get** a FLAC or WAV file as long as the recording, at its sampling rate, in 16 or 24 bit (32-bit float as WAV
  where the recording is). A minute of stereo at 44.1 or 48 kHz has 3 to 13 MB as FLAC, 11 to 23 MB as
  WAV.

Files are deleted after half an hour at the latest. Please restore only what you may."""

NOTHING_GIVEN = "There is nothing to restore yet. Upload or record something, or take the example."
VOCODER_IS_DRY = (
    "The vocoder cannot be mixed with the recording: its phase is its own. Set the dryness to 1, or choose another"
    " reconstruction."
)
TOO_LARGE = "{name} has {megabytes} MB, and a file may have " + f"{MAX_BYTES // 10**6} MB. Save it as FLAC, or cut it."
TOO_LONG = (
    "{name} lasts more than " + f"{MAX_SECONDS // 60} minutes, which is the most that this page restores. Cut it, or"
    " restore it with the command line on your own machine, where no limit applies."
)
OUR_FAULT = (
    "Something went wrong here, not with your recording. Please try again. If it happens once more, restore the"
    " recording with the command line on your own machine."
)
BUSY = "The page did not take this on: too many visitors wait, or the connection broke. Try again in a few minutes."

EXPORT = "Export it as WAV or FLAC from the program that made it, and upload that."
# What the decoder's sentence has in it, and what a visitor is told instead.
REFUSALS = (
    (r"is empty|holds no audio", "{name} is empty: there is no sound in it. Record or upload it again."),
    (r"has no sound in it", "{name} has a picture, but no sound. Upload a file with a sound track."),
    (
        r"sampling rate of (\d+) Hz: what can be restored is (\d+) to (\d+) Hz",
        "{name} has {0} samples a second; {1} to {2} can be restored. Convert it to 44100 or 48000.",
    ),
    (
        r"has (\d+) channels without places",
        "{name} has {0} channels that do not say which loudspeaker each belongs to. Mix it down to stereo first.",
    ),
    (
        r"the first at ([\d.]+) s",
        "{name} holds samples that are no numbers, the first at {0} s, as a faulty export leaves them. " + EXPORT,
    ),
    (
        r"fewer than two recordings can be aligned",
        "These do not seem to be recordings of the same performance, or are too short, quiet or noisy to tell. Restore"
        " each of them alone.",
    ),
    (
        r"has no sound in common with it",
        "These seem to be parts of one recording, one after the other. Restore each of them alone.",
    ),
)
UNREADABLE = "{name} cannot be read as a recording: it is damaged, or of a kind that is not known here. " + EXPORT

FACTS = {
    "rt60_s": "Reverberation (RT60)",
    "drr_db": "Direct sound over room (DRR)",
    "snr_db": "Music over audience (SNR)",
    "bandwidth_hz": "Bandwidth",
    "voice": "Probability of a voice",
}

FORMATS = {"FLAC": ".flac", "WAV": ".wav"}
SILENT_LUFS = -100.0
PICTURE_INCHES = 4.0  # its letters of 10 points have 11 px where it is 320 px wide, on a phone of 390 px

Tell = Callable[[str, tuple[int, int] | None], None]  # what is being done, and how many of how many seconds


class Refused(ValueError):
    """What a visitor gave cannot be restored; the message is for the visitor."""


def refusal(error: AudioError, paths: Sequence[Path]) -> Refused:
    """Says what is wrong with one of the recordings, and what to do about it, in place of the decoder's words."""
    name = next((path.name for path in paths if str(path) in str(error)), paths[0].name)
    for pattern, sentence in REFUSALS:
        if found := re.search(pattern, str(error)):
            return Refused(sentence.format(*found.groups(), name=name))
    return Refused(UNREADABLE.format(name=name))


def notice(text: str, paths: Sequence[Path]) -> str:
    """A sentence of a half one: files by their names, and without the advice that is for the command line."""
    for path in paths:
        text = text.replace(str(path), path.name)
    text = text.partition(": 32-bit float WAV")[0]
    if not any(text.startswith(path.name) for path in paths):
        text = text[:1].upper() + text[1:]
    return f"{text}."


def facts(values: Mapping[str, float]) -> Iterator[tuple[str, str, str]]:
    """What :func:`inspect` heard, and in words: a row each for the page."""
    for name, value in values.items():
        word = next(word for bound, word in WORDS[name] if value <= bound)
        number = f"{value / 1000:.1f} kHz" if name == "bandwidth_hz" else f"{value:.1f} {UNITS[name]}".strip()
        yield FACTS[name], number.replace("-", "\u2212"), word


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
        except AudioError as error:
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
