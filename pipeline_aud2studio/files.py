"""Audio files in and out.

Waveforms are float32 numpy arrays of shape (channels, samples), full scale is 1.0.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import soundfile
from numpy.typing import NDArray

from .audio import LoudnessMeter, Waveform
from .command import UNFINISHED
from .decode import BLOCK_FRAMES, MAX_CHANNELS, MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, TAGS, AudioError, AudioStream

__all__ = ["MAX_CHANNELS", "MAX_SAMPLE_RATE", "MIN_SAMPLE_RATE", "TAGS", "AudioError", "AudioStream"]  # used as ours

# What a folder given as input is searched for. Other files are still tried when they are named one by one.
SUFFIXES_READ = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .m4a .mp4 .mov .aac .aif .aiff .caf .3gp .amr .webm .mka .mkv .wma".split()
)
# Per output format: the sample formats it can hold, by their names in libsndfile.
BYTES_PER_SAMPLE = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}
MAX_NAME_BYTES = 255  # of a file, on all common file systems
MAX_WAV_BYTES = 2**32 - 2**16  # a header counts 32 bits of them, and tags want some room
SUBTYPES_WRITTEN = {".wav": ("PCM_16", "PCM_24", "FLOAT"), ".flac": ("PCM_16", "PCM_24")}


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
    """A file, or a part of it, while it is open.

    Attributes:
        stream: the whole file, see `AudioStream`.
        blocks: the samples of the part, blocks `(channels, samples)` of float32, once.
    """

    stream: AudioStream
    blocks: Iterator[Waveform]

    @property
    def sample_rate(self) -> int:
        return self.stream.sample_rate

    @property
    def frames(self) -> int | None:
        return self.stream.frames


@contextlib.contextmanager
def opened(
    path: str | os.PathLike[str],
    start_s: float | None = None,
    end_s: float | None = None,
    downmix: bool = False,
    track: int | None = None,
    strict: bool = False,
) -> Iterator[Sound]:
    """Open a file, or the part of it between two times, to be decoded block by block.

    Args:
        start_s, end_s: The part that is wanted, in s; from the beginning and to the end by default.
        downmix, track, strict: See `AudioStream`.

    Raises:
        AudioError: see `AudioStream`; while it is decoded, also that it is empty or ends before the start.
    """
    start_s = 0.0 if start_s is None else start_s
    if not start_s >= 0 or (end_s is not None and not end_s > start_s):
        raise AudioError(
            f"the excerpt has to start at 0 s or later and end after its start, not {start_s} to {end_s} s"
        )
    with AudioStream(path, downmix, track, strict) as stream:
        yield Sound(stream, _excerpt(stream, start_s, end_s))


def _excerpt(stream: AudioStream, start_s: float, end_s: float | None) -> Iterator[Waveform]:
    start, stop = excerpt_bounds(start_s, end_s, stream.sample_rate, math.inf)
    if start:
        stream.seek(start)
    position = start
    for block in stream.blocks():
        yield block[:, : int(min(stop - position, block.shape[1]))]
        position += block.shape[1]
        if position >= stop:
            return
    if position == start:
        reason = "holds no audio" if start == 0 else f"ends before the start that was asked for ({start_s:g} s)"
        raise AudioError(f"{stream.path} {reason}")


def read(
    path: str | os.PathLike[str],
    start_s: float | None = None,
    end_s: float | None = None,
    downmix: bool = False,
    track: int | None = None,
    strict: bool = False,
) -> Audio:
    """Decode a file, or the part of it between two times, into memory.

    Raises:
        AudioError: see `opened`.
    """
    with opened(path, start_s, end_s, downmix, track, strict) as sound:
        stream = sound.stream
        waveform = np.concatenate([*sound.blocks], axis=1)
        return Audio(waveform, stream.sample_rate, stream.tags, stream.subtype)


def excerpt_bounds(start_s: float, end_s: float | None, sample_rate: int, length: float) -> tuple[int, int | float]:
    """First sample, and the one after the last; `length` may be infinite where it is not known yet."""
    stop = length if end_s is None else min(length, round(end_s * sample_rate))
    return round(start_s * sample_rate), stop


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
    UNFINISHED.add(os.fsencode(temporary.absolute()))
    try:
        yield temporary
        if temporary.exists():
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        UNFINISHED.discard(os.fsencode(temporary.absolute()))


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
    blocks = (waveform[:, first : first + BLOCK_FRAMES] for first in range(0, waveform.shape[1], BLOCK_FRAMES))
    write_blocks(path, blocks, len(waveform), waveform.shape[1], sample_rate, subtype, tags)


def write_blocks(
    path: str | os.PathLike[str],
    blocks: Iterable[Waveform],
    num_channels: int,
    num_samples: int,
    sample_rate: int,
    subtype: str = "PCM_24",
    tags: Mapping[str, str] | None = None,
    chunks: Sequence[bytes] = (),
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
        chunks: of WAV, whole, that come after the samples; not in RF64 and FLAC.

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
            with soundfile.SoundFile(
                os.fsencode(temporary), "w", sample_rate, num_channels, subtype, format=container
            ) as file:
                for tag, text in (tags or {}).items():
                    if tag in TAGS:
                        setattr(file, tag, text)
                for block in blocks:
                    file.write(_quantised(block, subtype).T)
            if chunks and container == "WAV":
                _append(temporary, chunks)
        except soundfile.LibsndfileError as error:
            raise OSError(f"{path} could not be written: {error.error_string}") from None


def _append(path: Path, chunks: Sequence[bytes]) -> None:
    """Add chunks to the end of a WAV file."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.write(b"\0" * (size % 2) + b"".join(chunks))
        size = file.tell()
        file.seek(4)
        file.write(struct.pack("<I", size - 8))


def carried(chunks: Sequence[bytes], suffix: str, is_same_time: bool) -> tuple[list[bytes], list[str]]:
    """Which chunks of a WAV file (`bext`, cue points and their names) an output can have, and what is left out.

    Args:
        chunks: see `AudioStream`.
        suffix: of the output.
        is_same_time: whether the output has the input's beginning and rate, which both count in.
    """
    kept = [chunk for chunk in chunks if chunk[:4] != b"LIST" or chunk[8:12] == b"adtl"]
    if suffix.lower() == ".wav" and is_same_time:
        return kept, []
    names = {b"bext": "the BWF description (bext)", b"cue ": "the cue points"}
    return [], [names[chunk[:4]] for chunk in kept if chunk[:4] in names]


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


# --- Waveforms on disk instead of in memory --------------------------------------------------------------------------

BLOCK_SAMPLES = 1 << 18


class Spool:
    """A waveform in a temporary file without a name, which the system forgets with the process, however it ends.

    32-bit float, interleaved; a source as `chunks.Source` has it.

    Args:
        folder: Whose disk holds the file.
        num_channels, sample_rate: Of the waveform.
        is_measured: Whether the meter is wanted; it costs more than the writing.

    Attributes:
        meter: Loudness, level and peak of what was written.
    """

    def __init__(self, folder: Path, num_channels: int, sample_rate: int, is_measured: bool = True) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)
        self.num_channels, self.sample_rate, self.num_samples = num_channels, sample_rate, 0
        self.meter, self._is_measured = LoudnessMeter(num_channels, sample_rate), is_measured

    def extend(self, blocks: Iterable[Waveform]) -> Spool:
        """Writes blocks (channels, samples); returns itself.

        Raises:
            OSError: The disk is full.
        """
        with ThreadPoolExecutor(1) as measuring:  # measured while it is written and the next block is computed
            measured: Future[None] | None = None
            for block in blocks:
                if measured is not None:
                    measured.result()
                if self._is_measured:
                    measured = measuring.submit(self.meter.push, block)
                write_all(self._file, interleaved(block))
                self.num_samples += block.shape[1]
            if measured is not None:
                measured.result()
        return self

    def read(self, start: int, stop: int) -> Waveform:
        """Samples (channels, stop - start) as float32."""
        self._file.seek(4 * self.num_channels * start)
        return read_interleaved(self._file, self.num_channels, stop - start)

    def blocks(self, gain: float = 1.0) -> Iterator[Waveform]:
        """All of it (channels, samples), times a gain, in blocks."""
        for start in range(0, self.num_samples, BLOCK_SAMPLES):
            yield self.read(start, min(start + BLOCK_SAMPLES, self.num_samples)) * np.float32(gain)

    def close(self) -> None:
        """Gives the disk space back."""
        self._file.close()


def interleaved(block: Waveform) -> memoryview:
    """Samples (channels, samples) as 32-bit floats, one sample of all channels after the other."""
    return np.ascontiguousarray(block.T, np.float32).reshape(-1).view(np.uint8).data


def write_all(file: io.RawIOBase | IO[bytes], content: bytes | memoryview) -> None:
    """Writes all of it to an unbuffered file, which may take a part of it at a time."""
    view, written = memoryview(content), 0
    while written < len(view):
        written += file.write(view[written:]) or 0


def read_interleaved(file: io.RawIOBase | IO[bytes], num_channels: int, num_samples: int) -> Waveform:
    """The next samples (channels, samples) of an unbuffered file of 32-bit floats."""
    content = bytearray(4 * num_channels * num_samples)
    view, done = memoryview(content), 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[union-attr]
        if not count:
            raise OSError("the temporary file is shorter than what was written to it")
        done += count
    return np.frombuffer(content, np.float32).reshape(-1, num_channels).T
