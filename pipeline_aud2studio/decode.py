"""The one way into audio files: a stream of samples, whatever the container and the codec.

soundfile reads WAV and AIFF, PyAV what is compressed. That is FLAC, too: libsndfile does not tell where damage is.

Waveforms are float32 numpy arrays of shape (channels, samples), full scale is 1.0.
"""

from __future__ import annotations

import itertools
import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from .audio import AudioNotice, Waveform, resampled
from .containers import MAX_DECODER_PADDING, Layout, Part, PartFile, layout_of, mp3_layout_of
from .speakers import by_count, mixed, named, of_aac, of_mask

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 8_000, 192_000
MAX_CHANNELS = 2
BLOCK_FRAMES = 1 << 16
TAGS = ("title", "artist", "album", "date", "tracknumber", "genre", "comment", "copyright", "license")
_FFMPEG_TAGS = {"tracknumber": "track"}
# Playlists and pictures are no recordings, and a playlist would make FFmpeg open what it names.
_DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,loas,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpc,mpc8,"
    "mpeg,mpegts,ogg,rm,shn,tak,truehd,tta,voc,w64,wav,wv,xwma,dsf,iff,oma,gsm,matroska,webm"
)
_INTEGERS = {"u8": 2.0**7, "s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63}


class AudioError(ValueError):
    """A file or a signal that cannot be worked on; the message says what is wrong with it, in one sentence."""


@dataclass(frozen=True)
class _Piece:
    """Samples as the codec gave them, before all of a file is brought to one form."""

    samples: Waveform
    rate: int
    speakers: tuple[str, ...]


class AudioStream:
    """A file while it is open.

    Args:
        path: of the file.
        downmix: whether surround sound is mixed down to stereo instead of refused.
        track: which audio track of a container, from 1; the container's default by default.
        strict: whether damage is an error instead of a notice.

    Attributes:
        sample_rate: in Hz.
        channels: 1 or 2, of what is read.
        frames: samples that the file promises; None where only decoding tells. What is read may be less.
        tags: what is known of `TAGS`, without empty ones.
        subtype: libsndfile's name of the sample format ("PCM_16"); None for lossy codecs.
        chunks: WAV's `bext`, `cue ` and `LIST` chunks, whole.
        has_cover: whether a picture comes with it.
        notices: half sentences about what is wrong with the file, as far as it was read.

    Raises:
        AudioError: the file is missing, not audio, empty, of another kind than this project restores (more than two
            channels without `downmix`, a rate outside 8 to 192 kHz); while it is read: NaN or infinite samples.
    """

    def __init__(
        self, path: str | os.PathLike[str], downmix: bool = False, track: int | None = None, strict: bool = False
    ) -> None:
        self.path, self._downmix, self._track, self._strict = Path(path), downmix, track, strict
        self.notices: list[str] = []
        self.subtype: str | None = None
        self.tags: dict[str, str] = {}
        self.has_cover = False
        self._said = 0
        self._file = _opened(self.path)
        try:
            self._layout = layout_of(self._file.fileno())
            self.chunks = self._layout.chunks
            self._open_first()
            for notice in self._layout.notices:
                self._note(notice)
        except (OSError, soundfile.LibsndfileError) as error:
            self.close()
            raise AudioError(f"{self.path} cannot be read: {_reason(error)}") from None
        except BaseException:
            self.close()
            raise
        self._pieces = self._from(0)
        self._rest: Waveform | None = None
        self._position = 0

    def __enter__(self) -> AudioStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def is_seekable(self) -> bool:
        """Whether `frames` is exact and `seek` costs nothing."""
        return self._layout.library == "soundfile" and len(self._layout.parts) == 1 and self.subtype != "GSM610"

    def seek(self, frame: int) -> None:
        """Go to a sample; what is compressed is decoded from the beginning, so that it is exact for every codec."""
        self._pieces, self._rest, self._position = self._from(frame), None, frame

    def read(self, frames: int) -> Waveform:
        """Read the next samples `(channels, frames)`; fewer at the end, where nothing is made up.

        Raises:
            AudioError: NaN or infinite samples, or damage where that is refused.
        """
        found, count = [], 0
        while count < frames:
            block = self._rest if self._rest is not None else next(self._pieces, None)
            self._rest = None
            if block is None:
                break
            if block.shape[1] > frames - count:
                block, self._rest = block[:, : frames - count], block[:, frames - count :]
            found.append(block)
            count += block.shape[1]
        waveform = np.concatenate(found, axis=1) if found else np.zeros((self.channels, 0), np.float32)
        finite = np.isfinite(waveform).all(axis=0)
        if not finite.all():
            at_s = (self._position + int(np.argmin(finite))) / self.sample_rate
            raise AudioError(f"{self.path} holds NaN or infinite samples (the first at {at_s:.3f} s): export it again")
        self._position += count
        return waveform

    def blocks(self) -> Iterator[Waveform]:
        """Read the rest in blocks; at its end, what is wrong with the file is said as warnings."""
        while (block := self.read(BLOCK_FRAMES)).shape[1]:
            yield block
        for notice in self.notices[self._said :]:
            warnings.warn(f"{self.path} {notice}", AudioNotice, stacklevel=2)
        self._said = len(self.notices)

    def _note(self, notice: str) -> None:
        if self._strict:
            raise AudioError(f"{self.path} {notice}, which --strict refuses")
        if notice not in self.notices:
            self.notices.append(notice)

    def _open_first(self) -> None:
        """Find rate, channels, length and tags."""
        if self._layout.library == "soundfile":
            try:
                with soundfile.SoundFile(self._part_file(self._layout.parts[0])) as file:
                    self.sample_rate, self._speakers = file.samplerate, of_mask(self._layout.mask, file.channels)
                    self.subtype = file.subtype
                    self.tags = {name: text for name, text in file.copy_metadata().items() if name in TAGS and text}
                    is_whole = len(self._layout.parts) == 1
                    self.frames: int | None = file.frames if is_whole else None
                    self._check_format()
                    return
            except soundfile.LibsndfileError:
                size = os.fstat(self._file.fileno()).st_size
                self._layout = Layout("av", "", [Part(0, size)])
        self._open_first_av()

    def _open_first_av(self) -> None:
        with _demuxed(self.path, self._part_file(self._layout.parts[0]), self._layout.kind) as container:
            stream = _track(self.path, container, self._track)
            if (
                not self._layout.kind
                and container.format.name == "mp3"
                and stream.codec_context.name.startswith("mp3")
            ):
                self._layout = mp3_layout_of(self._file.fileno())  # behind what is no sound
                return self._open_first_av()
            rate, channels = getattr(stream, "sample_rate", 0), getattr(stream, "channels", 0)
            if not rate or not channels:
                raise AudioError(f"{self.path} is not audio that can be decoded (no sampling rate or channels)")
            self._aac = b""
            if stream.codec_context.name.startswith("aac"):
                self._aac = stream.codec_context.extradata or self._part_file(self._layout.parts[0]).read(128)
            self.sample_rate, self._speakers = rate, self._speakers_of(stream.layout, channels)
            self.tags = _av_tags({**container.metadata, **stream.metadata})
            self.has_cover = bool(container.streams.video)
            promised = [part.frames for part in self._layout.parts]
            self.frames = sum(promised) if None not in promised else None  # type: ignore[arg-type]
            if self.frames is None and stream.duration and container.format.name.startswith("mov"):
                self.frames = round(stream.duration * stream.time_base * rate)
            if self._layout.bits:
                self.subtype = "PCM_16" if 8 < self._layout.bits <= 16 else "PCM_24"
                self.subtype = "PCM_S8" if self._layout.bits <= 8 else self.subtype
        self._check_format()

    def _check_format(self) -> None:
        count = len(self._speakers)
        self.channels = min(count, MAX_CHANNELS)
        if count > MAX_CHANNELS:
            try:
                mixed(np.zeros((count, 1), np.float32), self._speakers, MAX_CHANNELS)
            except KeyError:
                raise AudioError(
                    f"{self.path} has {count} channels without places that could be mixed to stereo"
                ) from None
            if not self._downmix:
                raise AudioError(f"{self.path} has {count} channels: pass --downmix to mix them down to stereo")
        if not MIN_SAMPLE_RATE <= self.sample_rate <= MAX_SAMPLE_RATE:
            raise AudioError(
                f"{self.path} has a sampling rate of {self.sample_rate} Hz: what can be restored is"
                f" {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz"
            )

    def _speakers_of(self, layout: Any, count: int) -> tuple[str, ...]:
        """The loudspeakers of a frame that PyAV decoded."""
        names = named([channel.name for channel in layout.channels], count)
        if names is None and self._aac and count > 2:
            names = of_aac(self._aac, count)
        return names or by_count(count)

    def _part_file(self, part: Part) -> PartFile:
        return PartFile(self._file.fileno(), part)

    def _from(self, frame: int) -> Iterator[Waveform]:
        """All samples from one on, in the first part's form."""
        try:
            if self.is_seekable:
                yield from self._of_soundfile(self._layout.parts[0], frame)
                return
            for block in self._in_one_form(self._parts()):
                if frame < block.shape[1]:
                    yield block[:, frame:]
                frame = max(0, frame - block.shape[1])
        except (OSError, soundfile.LibsndfileError) as error:
            raise AudioError(f"{self.path} cannot be read: {_reason(error)}") from None

    def _in_one_form(self, pieces: Iterator[_Piece]) -> Iterator[Waveform]:
        """The pieces resampled and mixed to the form of the first."""
        position = 0
        for (rate, speakers), group in itertools.groupby(pieces, lambda piece: (piece.rate, piece.speakers)):
            if rate != self.sample_rate or len(speakers) != len(self._speakers):
                self._note(
                    f"changes at {position / self.sample_rate:.2f} s to {rate} Hz and {len(speakers)} channels: it is"
                    f" brought to the {self.sample_rate} Hz and {len(self._speakers)} of its beginning"
                )
            blocks = (mixed(piece.samples, piece.speakers, self.channels) for piece in group)
            for block in resampled(blocks, rate, self.sample_rate):
                position += block.shape[1]
                yield block

    def _parts(self) -> Iterator[_Piece]:
        parts = self._layout.parts
        if len(parts) > 1:
            self._note(f"is {len(parts)} files that were joined: all of them are read")
        for part in parts:
            if self._layout.library == "soundfile":
                with soundfile.SoundFile(self._part_file(part)) as file:
                    speakers = of_mask(self._layout.mask, file.channels)
                    for block in file.blocks(BLOCK_FRAMES, frames=file.frames, dtype="float32", always_2d=True):
                        yield _Piece(block.T, file.samplerate, speakers)
            else:
                yield from self._trimmed(part)

    def _of_soundfile(self, part: Part, frame: int) -> Iterator[Waveform]:
        with soundfile.SoundFile(self._part_file(part)) as file:
            file.seek(min(frame, file.frames))
            position = file.tell()
            while True:
                block = file.read(min(BLOCK_FRAMES, file.frames - position), dtype="float32", always_2d=True)
                if not len(block):
                    break
                position += len(block)
                yield mixed(block.T, self._speakers, self.channels)
            promised = part.frames or file.frames
            if position < promised:
                self._note(_short(position, promised, self.sample_rate))

    def _trimmed(self, part: Part) -> Iterator[_Piece]:
        """A part without the encoder's delay and padding, and a notice if it is shorter than its header says."""
        skip, total = part.skip, part.frames
        position, beyond = 0, []
        for piece, promised in self._decoded(part):
            total = promised if total is None else total
            samples = piece.samples[:, skip:]
            skip = max(0, skip - piece.samples.shape[1])
            room = samples.shape[1] if total is None else max(0, total - position)
            position += samples.shape[1]
            if room:
                yield _Piece(samples[:, :room], piece.rate, piece.speakers)
            if room < samples.shape[1]:
                beyond.append(_Piece(samples[:, room:], piece.rate, piece.speakers))
                assert total is not None
                if position - total > MAX_DECODER_PADDING:  # no padding: the header is wrong
                    yield from beyond
                    self._note("is longer than its header says: all of it is read")
                    beyond, total = [], None
        if total is not None and position < total:
            self._note(_short(position, total, self.sample_rate))

    def _decoded(self, part: Part) -> Iterator[tuple[_Piece, int | None]]:
        """Decodes a part by PyAV; yields with it how many samples its container promises. FLAC's gaps are silence."""
        is_flac, position, gaps, damaged, failing = self._layout.kind == "flac", 0, [], 0, 0
        with _demuxed(self.path, self._part_file(part), self._layout.kind) as container:
            stream = _track(self.path, container, self._track)
            promised = None
            if container.format.name.startswith("mov") and stream.duration:
                promised = round(stream.duration * stream.time_base * stream.sample_rate)
            if is_flac:
                stream.codec_context.options = {"err_detect": "crccheck+explode"}
            if (container.format.name, stream.codec_context.name) == ("caf", "alac"):
                stream.codec_context.options = {"flags2": "+skip_manual"}  # the last frame is short by itself
            for frame, is_damaged in _frames(self.path, container, stream):
                failing += is_damaged
                if frame is None:
                    continue
                damaged, failing = damaged + failing, 0  # what fails at the end is an end
                samples = _as_float(frame)
                speakers = self._speakers_of(frame.layout, len(samples))
                if is_flac and frame.pts is not None:
                    start = round(frame.pts * frame.time_base * frame.sample_rate)
                    limit = part.frames or start
                    if position < start <= limit:
                        gaps.append((position, start))
                        for first in range(position, start, BLOCK_FRAMES):
                            silence = np.zeros((len(samples), min(BLOCK_FRAMES, start - first)), np.float32)
                            yield _Piece(silence, frame.sample_rate, speakers), promised
                        position = start
                position += samples.shape[1]
                yield _Piece(samples, frame.sample_rate, speakers), promised
        if gaps:
            times = ", ".join(f"{a / self.sample_rate:.2f} to {b / self.sample_rate:.2f} s" for a, b in gaps[:8])
            self._note(f"is damaged: {times} are silence" + (f", and {len(gaps) - 8} more" if len(gaps) > 8 else ""))
        elif damaged:
            self._note(f"is damaged: {damaged} packets could not be decoded")


def _opened(path: Path) -> Any:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise AudioError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise AudioError(f"{path} cannot be read: {_reason(error)}") from None
    if stat.S_ISDIR(mode):
        raise AudioError(f"{path} is a folder, not an audio file")
    if not stat.S_ISREG(mode):  # opening a pipe would wait for its other end
        raise AudioError(f"{path} is not a file but a pipe or a device")
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {error.strerror}") from None
    if not file.read(1):
        file.close()
        raise AudioError(f"{path} is empty (0 bytes)")
    return file


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def _short(found: int, promised: int, rate: int) -> str:
    return (
        f"ends at {found / rate:.2f} s: its header promised {promised / rate:.2f} s,"
        f" {(promised - found) / rate:.2f} s more"
    )


def _demuxed(path: Path, file: PartFile, kind: str) -> Any:
    import av  # here, because it takes a quarter of a second that WAV need not wait for

    format_name = kind if kind in ("mp3", "flac", "ogg", "dts") else None
    options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
    try:
        return av.open(file, format=format_name, options=options, metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise AudioError(f"{path} is not audio that can be decoded ({_reason(error)})") from None


def _track(path: Path, container: Any, track: int | None) -> Any:
    audio = container.streams.audio
    if not audio:
        raise AudioError(f"{path} has no sound in it")
    if track is None:
        # Where several are, the container says which is heard.
        from av.stream import Disposition

        return next((stream for stream in audio if stream.disposition & Disposition.default), audio[0])
    if track > len(audio):
        raise AudioError(f"{path} has {len(audio)} audio tracks: --track {track} is not there")
    return audio[track - 1]


def _frames(path: Path, container: Any, stream: Any) -> Iterator[tuple[Any, bool]]:
    """The decoded frames of a stream; (None, True) for every packet that cannot be decoded."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.FFmpegError, OSError):
            yield None, True
            packet = None
        try:
            frames = stream.codec_context.decode(packet)
        except (av.FFmpegError, OSError):
            yield None, True
            frames = []
        for frame in frames:
            if frame.samples and frame.sample_rate:
                yield frame, False
        if packet is None:
            return


def _as_float(frame: Any) -> Waveform:
    """A frame's samples (channels, samples); integers at their exact values."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(frame.layout.channels) or 1).T
    kind = frame.format.name.removesuffix("p")
    if kind not in _INTEGERS:
        return samples.astype(np.float32, copy=False)
    scale = _INTEGERS[kind]
    return ((samples.astype(np.float64) - (scale if kind == "u8" else 0)) / scale).astype(np.float32)


def _av_tags(metadata: dict[str, str]) -> dict[str, str]:
    known = {name.lower(): text for name, text in metadata.items() if text}
    wanted = {tag: known.get(_FFMPEG_TAGS.get(tag, tag)) for tag in TAGS}
    return {tag: text for tag, text in wanted.items() if text is not None}
