"""What the page says: what it takes and gives, what was wrong with a recording, what helps, what was heard."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline_aud2studio.files import AudioError
from pipeline_aud2studio.inspection import UNITS, WORDS

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
)
UNREADABLE = "{name} cannot be read as a recording: it is damaged, or of a kind that is not known here. " + EXPORT

FACTS = {
    "rt60_s": "Reverberation (RT60)",
    "drr_db": "Direct sound over room (DRR)",
    "snr_db": "Music over audience (SNR)",
    "bandwidth_hz": "Bandwidth",
    "voice": "Probability of a voice",
}


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
