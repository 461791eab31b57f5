"""Audio files in and out.

Waveforms are float32 numpy arrays of shape (channels, samples), full scale is 1.0.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from .audio import Waveform

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 8_000, 192_000
MAX_CHANNELS = 2
_H = math.sqrt(0.5)
# To stereo after ITU-R BS.775, by the number of channels in the order of WAV and FLAC; the subwoofer's is left out.
DOWNMIX = {
    3: ((1, 0, _H), (0, 1, _H)),  # left, right, centre
    4: ((1, 0, _H, 0), (0, 1, 0, _H)),  # left, right, surrounds
    5: ((1, 0, _H, _H, 0), (0, 1, _H, 0, _H)),
    6: ((1, 0, _H, 0, _H, 0), (0, 1, _H, 0, 0, _H)),  # the fourth is the subwoofer
    8: ((1, 0, _H, 0, _H, 0, _H, 0), (0, 1, _H, 0, 0, _H, 0, _H)),
}

# What a folder given as input is searched for. Other files are still tried when they are named one by one.
SUFFIXES_READ = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .m4a .mp4 .mov .aac .aif .aiff .caf .3gp .amr .webm .mka .mkv .wma".split()
)
# Per output format: the sample formats it can hold, by their names in libsndfile.
BYTES_PER_SAMPLE = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}
MAX_NAME_BYTES = 255  # of a file, on all common file systems
MAX_WAV_BYTES = 2**32 - 2**16  # a header counts 32 bits of them, and tags want some room
SUBTYPES_WRITTEN = {".wav": ("PCM_16", "PCM_24", "FLOAT"), ".flac": ("PCM_16", "PCM_24")}

TAGS = ("title", "artist", "album", "date", "tracknumber", "genre", "comment", "copyright", "license")
_FFMPEG_TAGS = {"tracknumber": "track"}
_BLOCK_FRAMES = 1 << 16


class AudioError(ValueError):
    """A file or a signal that cannot be worked on; the message says what is wrong with it, in one sentence."""


@dataclass(frozen=True)
class Audio:
    """A decoded file.

    Attributes:
        waveform: float32 `(channels, samples)`, 1 or 2 channels.
        sample_rate: in Hz.
        tags: what is known of `TAGS`, without empty ones.
        subtype: libsndfile's name of the file's sample format ("PCM_16"); None where another library decoded it.
    """

    waveform: Waveform
    sample_rate: int
    tags: dict[str, str] = field(default_factory=dict)
    subtype: str | None = None

    @property
    def seconds(self) -> float:
        return self.waveform.shape[1] / self.sample_rate


@dataclass(frozen=True)
class Sound:
    """A file while it is open.

    Attributes:
        blocks: its samples, blocks `(channels, samples)` of float32, once.
        frames: samples of the whole file as its header has it; None where only decoding tells.
        tags, subtype: see `Audio`.
    """

    sample_rate: int
    num_channels: int
    frames: int | None
    tags: dict[str, str]
    subtype: str | None
    blocks: Iterator[Waveform]


@contextlib.contextmanager
def opened(
    path: str | os.PathLike[str], start_s: float | None = None, end_s: float | None = None, downmix: bool = False
) -> Iterator[Sound]:
    """A file, or the part of it between two times, to be decoded block by block.

    libsndfile decodes WAV, FLAC, OGG, MP3 and its like, PyAV the rest (M4A, MP4, MOV, ...). Both drop the silence that
    lossy encoders put before and after the music, as far as the file says how long it is.

    Args:
        start_s, end_s: The part that is wanted, in s; from the beginning and to the end by default.
        downmix: Whether surround sound is mixed down to stereo instead of refused.

    Raises:
        AudioError: the file is missing, not audio, empty, of another kind than this project restores (more than two
            channels, a rate outside 8 to 192 kHz), or, while it is decoded, holds NaN or infinite samples or ends
            before the start.
    """
    path = Path(path)
    start_s = 0.0 if start_s is None else start_s
    if not start_s >= 0 or (end_s is not None and not end_s > start_s):
        raise AudioError(
            f"the excerpt has to start at 0 s or later and end after its start, not {start_s} to {end_s} s"
        )
    if not path.exists():
        raise AudioError(f"{path} does not exist")
    if path.is_dir():
        raise AudioError(f"{path} is a folder, not an audio file")
    if not path.is_file():  # opening a pipe would wait for its other end
        raise AudioError(f"{path} is not a file but a pipe or a device")
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb", buffering=0))
            if not file.read(1):
                raise AudioError(f"{path} is empty (0 bytes)")
            file.seek(0)
            try:
                # By its descriptor, so that libsndfile goes by the content, not by the name.
                sound = stack.enter_context(soundfile.SoundFile(file.fileno(), closefd=False))
                found = _of_soundfile(path, sound, start_s, end_s, downmix)
            except soundfile.LibsndfileError:
                found = _of_av(path, stack, start_s, end_s, downmix)
        except OSError as error:
            raise AudioError(f"{path} cannot be read: {error.strerror}") from None
        yield replace(found, blocks=_usable(path, found, start_s))


def _usable(path: Path, sound: Sound, start_s: float) -> Iterator[Waveform]:
    """The blocks, mixed down; an error for a file without any, or with samples that are no numbers."""
    position = 0
    try:
        for block in sound.blocks:
            if len(block) > MAX_CHANNELS:
                block = np.array(DOWNMIX[len(block)], np.float32) @ block
            finite = np.isfinite(block)
            if not finite.all():
                at_s = start_s + (position + int(np.argmin(finite.all(axis=0)))) / sound.sample_rate
                raise AudioError(f"{path} holds NaN or infinite samples (the first at {at_s:.3f} s): export it again")
            position += block.shape[1]
            if block.shape[1]:
                yield block
    except (OSError, soundfile.LibsndfileError) as error:
        raise AudioError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not position:
        reason = "holds no audio" if start_s == 0 else f"ends before the start that was asked for ({start_s:g} s)"
        raise AudioError(f"{path} {reason}")


def read(
    path: str | os.PathLike[str], start_s: float | None = None, end_s: float | None = None, downmix: bool = False
) -> Audio:
    """Decode a file, or the part of it between two times, into memory.

    Raises:
        AudioError: see `opened`.
    """
    with opened(path, start_s, end_s, downmix) as sound:
        return Audio(np.concatenate([*sound.blocks], axis=1), sound.sample_rate, sound.tags, sound.subtype)


def _check_format(path: Path, sample_rate: int, channels: int, downmix: bool) -> None:
    if channels > MAX_CHANNELS and channels not in DOWNMIX:
        raise AudioError(f"{path} has {channels} channels: only 1, 2, {', '.join(map(str, DOWNMIX))} can be used")
    if channels > MAX_CHANNELS and not downmix:
        raise AudioError(f"{path} has {channels} channels: pass --downmix to mix them down to stereo")
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise AudioError(
            f"{path} has a sampling rate of {sample_rate} Hz: what can be restored is {MIN_SAMPLE_RATE} to"
            f" {MAX_SAMPLE_RATE} Hz"
        )


def excerpt_bounds(start_s: float, end_s: float | None, sample_rate: int, length: float) -> tuple[int, int | float]:
    """First sample, and the one after the last; `length` may be infinite where it is not known yet."""
    stop = length if end_s is None else min(length, round(end_s * sample_rate))
    return round(start_s * sample_rate), stop


def _of_soundfile(path: Path, file: soundfile.SoundFile, start_s: float, end_s: float | None, downmix: bool) -> Sound:
    _check_format(path, file.samplerate, file.channels, downmix)
    start, stop = excerpt_bounds(start_s, end_s, file.samplerate, file.frames)

    def blocks() -> Iterator[Waveform]:
        if start < stop:
            file.seek(start)
            # A truncated file holds less than its header says.
            for block in file.blocks(_BLOCK_FRAMES, frames=int(stop) - start, dtype="float32", always_2d=True):
                yield block.T

    tags = {name: text for name, text in file.copy_metadata().items() if name in TAGS and text}
    channels = min(file.channels, MAX_CHANNELS)
    return Sound(file.samplerate, channels, file.frames, tags, file.subtype, blocks())


def _of_av(path: Path, stack: contextlib.ExitStack, start_s: float, end_s: float | None, downmix: bool) -> Sound:
    """Decodes from the beginning, so that an excerpt is exact to the sample whatever the codec's memory."""
    import av  # here, because it takes a quarter of a second that WAV and FLAC need not wait for

    try:
        container = stack.enter_context(av.open(os.fspath(path)))
        if not container.streams.audio:
            raise AudioError(f"{path} has no sound in it")
        stream = container.streams.audio[0]
        # A stream of no known codec has neither.
        rate, channels = getattr(stream, "sample_rate", 0), getattr(stream, "channels", 0)
        if not rate or not channels:
            raise AudioError(f"{path} is not audio that can be decoded (no sampling rate or channels)")
        _check_format(path, rate, channels, downmix)
        # The last packet is padded to a whole frame. MP4 and MOV know where the music ends; others only guess.
        exact = container.format.name.startswith("mov") and stream.duration is not None
        total = round(stream.duration * stream.time_base * rate) if exact else math.inf
        start, stop = excerpt_bounds(start_s, end_s, rate, total)
        planar = av.AudioResampler(format="fltp", layout=stream.layout, rate=rate)
        tags = _av_tags({**container.metadata, **stream.metadata})
    except (av.FFmpegError, OSError) as error:
        raise AudioError(f"{path} is not audio that can be decoded ({error.strerror})") from None

    def blocks() -> Iterator[Waveform]:
        position, waiting, length = 0, [], 0
        try:
            for frame in container.decode(stream):
                for part in planar.resample(frame):
                    end = position + part.samples
                    if end > start and position < stop:
                        cut = slice(max(0, start - position), int(min(stop - position, part.samples)))
                        waiting.append(part.to_ndarray()[:, cut].astype(np.float32, copy=False))
                        length += waiting[-1].shape[1]
                    position = end
                if length >= _BLOCK_FRAMES:
                    yield np.concatenate(waiting, axis=1)
                    waiting, length = [], 0
                if position >= stop:
                    break
        except (av.FFmpegError, OSError) as error:
            raise AudioError(f"{path} is not audio that can be decoded ({error.strerror})") from None
        if waiting:
            yield np.concatenate(waiting, axis=1)

    return Sound(rate, min(channels, MAX_CHANNELS), int(total) if exact else None, tags, None, blocks())


def _av_tags(metadata: Mapping[str, str]) -> dict[str, str]:
    known = {name.lower(): text for name, text in metadata.items() if text}
    named = {tag: known.get(_FFMPEG_TAGS.get(tag, tag)) for tag in TAGS}
    return {tag: text for tag, text in named.items() if text is not None}


def check_output(path: str | os.PathLike[str], overwrite: bool = False, num_bytes: int = 0) -> None:
    """Find out before the work whether a file can be written: format, folder, permission, space.

    Raises:
        AudioError: it cannot, and why.
    """
    path = Path(path)
    if path.suffix.lower() not in SUBTYPES_WRITTEN and not path.is_dir():
        raise AudioError(f"{path} cannot be written: the name has to end in {' or '.join(SUBTYPES_WRITTEN)}")
    check_writable(path, overwrite, num_bytes)


def check_writable(path: str | os.PathLike[str], overwrite: bool = False, num_bytes: int = 0) -> None:
    """The part of `check_output` that holds for any kind of file."""
    path = Path(path)
    if path.is_dir():
        raise AudioError(f"{path} is a folder: give the name of a file")
    if not path.parent.is_dir():
        raise AudioError(f"the folder {path.parent} does not exist: create it first")
    if path.exists() and not overwrite:
        raise AudioError(f"{path} exists already: pass --overwrite to replace it")
    try:
        # Trying is the only test that also knows read-only file systems and access lists.
        with atomic_path(path) as temporary:
            temporary.touch()
            temporary.unlink()
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise AudioError(f"{path} cannot be written: {error.strerror}") from None
    if num_bytes > free:
        raise AudioError(f"{path} needs {num_bytes / 1e6:.0f} MB, but its disk has {free / 1e6:.0f} MB left")


def name_beside(path: Path, suffix: str, prefix: str = "") -> Path:
    """The path with something around its name, which is shortened where it would get too long for file systems."""
    room = MAX_NAME_BYTES - len(os.fsencode(prefix + suffix))
    name = path.name
    if len(os.fsencode(name)) > room:
        digest = hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()
        name = os.fsencode(name)[: room - len(digest)].decode("utf-8", "ignore") + digest
    return path.with_name(f"{prefix}{name}{suffix}")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place if the block leaves a file there and raises nothing."""
    temporary = name_beside(path, f".{os.getpid()}.part", ".")
    try:
        yield temporary
        if temporary.exists():
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def output_subtype(suffix: str, subtype: str | None) -> str:
    """The sample format that keeps what a recording of format `subtype` holds, out of those of an output format."""
    suffix = suffix.lower()
    if subtype in SUBTYPES_WRITTEN[suffix]:
        return subtype
    if subtype in ("PCM_S8", "PCM_U8", "ULAW", "ALAW"):
        return "PCM_16"
    wide = subtype in ("PCM_32", "FLOAT", "DOUBLE")
    return "FLOAT" if wide and suffix == ".wav" else "PCM_24"


def write(
    path: str | os.PathLike[str],
    waveform: Waveform,
    sample_rate: int,
    subtype: str = "PCM_24",
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write `(channels, samples)` as WAV or FLAC; see `write_blocks`."""
    blocks = (waveform[:, first : first + _BLOCK_FRAMES] for first in range(0, waveform.shape[1], _BLOCK_FRAMES))
    write_blocks(path, blocks, len(waveform), waveform.shape[1], sample_rate, subtype, tags)


def write_blocks(
    path: str | os.PathLike[str],
    blocks: Iterable[Waveform],
    num_channels: int,
    num_samples: int,
    sample_rate: int,
    subtype: str = "PCM_24",
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write WAV or FLAC, whichever the name ends in; an existing file is replaced once the new one is complete.

    A WAV file of more than 4 GB, whose header cannot say how long it is, becomes RF64 (EBU Tech 3306), which players
    take for WAV.

    Args:
        path: the name decides the format.
        blocks: float `(channels, samples)`; integer formats round it and clip it at full scale.
        num_channels, num_samples: of all blocks together.
        sample_rate: in Hz.
        subtype: "PCM_16", "PCM_24" or, in WAV, "FLOAT".
        tags: any of `TAGS`; what the format has no place for is left out.

    Raises:
        AudioError: another format or sample format is asked for.
        OSError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    subtypes = SUBTYPES_WRITTEN.get(path.suffix.lower())
    if subtypes is None:
        raise AudioError(f"{path} cannot be written: the name has to end in {' or '.join(SUBTYPES_WRITTEN)}")
    if subtype not in subtypes:
        raise AudioError(f"{path} cannot hold {subtype} samples: choose one of {', '.join(subtypes)}")
    container = path.suffix[1:].upper()
    if container == "WAV" and num_samples * num_channels * BYTES_PER_SAMPLE[subtype] > MAX_WAV_BYTES:
        container = "RF64"
    with atomic_path(path) as temporary:
        try:
            with soundfile.SoundFile(temporary, "w", sample_rate, num_channels, subtype, format=container) as file:
                for name, text in (tags or {}).items():
                    if name in TAGS:
                        setattr(file, name, text)
                for block in blocks:
                    file.write(_quantised(block, subtype).T)
        except soundfile.LibsndfileError as error:
            raise OSError(f"{path} could not be written: {error.error_string}") from None


def _quantised(waveform: Waveform, subtype: str) -> NDArray[np.float32 | np.int32]:
    """Integers rounded to the nearest step (libsndfile rounds down); in 32 bits, of which it writes the upper ones."""
    if subtype == "FLOAT":
        return waveform.astype(np.float32, copy=False)
    bits = int(subtype.removeprefix("PCM_"))
    full_scale = 2 ** (bits - 1)
    steps = np.clip(np.rint(waveform.astype(np.float64) * full_scale), -full_scale, full_scale - 1)
    return steps.astype(np.int32) << (32 - bits)


@contextlib.contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """A folder to be filled, which is synced to the disk and takes its final name if all went well."""
    temporary = final.with_name(final.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    for path in [*temporary.rglob("*"), temporary]:
        _sync(path)
    if final.is_dir():
        remove_folder(final)
    os.rename(temporary, final)
    _sync(final.parent)


def remove_folder(folder: Path) -> None:
    """Deletes a folder so that, killed in between, no half of it is taken for the whole."""
    leftover = folder.with_name(folder.name + ".old.tmp")
    shutil.rmtree(leftover, ignore_errors=True)
    os.rename(folder, leftover)
    shutil.rmtree(leftover)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
