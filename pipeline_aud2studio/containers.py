"""Reads from a file's bytes, before anything is decoded, its kind, its parts, and the samples its headers promise.

A file can be several that were joined (`cat a.mp3 b.mp3`, chained OGG), and its header can be wrong: the recorder lost
power, 32 bits were too few. Decoders stop at such places or read past them; here every part is found, and only that is
handed on which is there.
"""

from __future__ import annotations

import io
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_DECODER_PADDING = 4608  # samples: the last frames of a lossy file, cut where the header says that it ends earlier
MP3_DECODER_DELAY = 529  # samples, which every MP3 decoder adds to the encoder's own
MAX_FILLING = 4096  # zeros that recorders write behind the last chunk
MAX_LEAD_IN = 1 << 20  # bytes of silence that a ripped DTS disc begins with
UNKNOWN_BYTES = 2**31 - 4096  # what 32 bits with a sign say of a size that nobody knew
_DTS_SYNC = ("fe7f0180", "7ffe8001", "ff1f00e8", "1fffe800")  # of 16 and 14 bits in either byte order
_AMBISONICS = bytes.fromhex("2107d3118644c8c1ca000000")  # the end of the B-format's GUID
_KBPS = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG-1 layer III
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG-2 and 2.5
)
_SOUNDFILE_WAV_CODECS = {1, 2, 3, 6, 7, 0x11, 0x31, 0xFFFE}  # PCM, MS ADPCM, float, A-law, u-law, IMA, GSM, extensible


@dataclass(frozen=True)
class Part:
    """A piece of a file that is decoded by itself.

    Attributes:
        start, stop: its bytes.
        header: bytes that stand in front of them in place of a wrong or missing header.
        skip: samples of the encoder's delay before the music.
        frames: samples of music that its header promises; None where it says nothing.
    """

    start: int
    stop: int
    header: bytes = b""
    skip: int = 0
    frames: int | None = None


@dataclass(frozen=True)
class Layout:
    """How a file is to be read.

    Attributes:
        library: "soundfile" or "av".
        kind: "mp3", "flac", "ogg", "wav", "dts", or "" for what only its demuxer knows.
        parts: one or more.
        mask: WAVEX's loudspeakers, a bit each; 0 where the file does not name them, None where it has none.
        notices: what is wrong with it, in half sentences.
        chunks: WAV's `bext`, `cue ` and `LIST` chunks, whole.
        bits: FLAC's bits a sample, else 0.
    """

    library: str
    kind: str
    parts: list[Part]
    mask: int | None = 0
    notices: tuple[str, ...] = ()
    chunks: tuple[bytes, ...] = ()
    bits: int = 0


class PartFile(io.RawIOBase):
    """A part of an open file as a file of its own."""

    def __init__(self, descriptor: int, part: Part) -> None:
        super().__init__()
        self._descriptor, self._part, self._position = descriptor, part, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        size = len(self._part.header) + self._part.stop - self._part.start
        self._position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: size}[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        header = self._part.header
        if self._position < len(header):
            piece = header[self._position : self._position + len(buffer)]
        else:
            at = self._part.start + self._position - len(header)
            piece = os.pread(self._descriptor, max(0, min(len(buffer), self._part.stop - at)), at)
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def layout_of(descriptor: int) -> Layout:
    """Look through an open file that is not empty."""
    size = os.fstat(descriptor).st_size
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as content:
        start = _after_id3(content, 0)
        head = content[start : start + 12]
        if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE":
            return _wav(content, start)
        if head[:4] in (b"RIFX", b"FORM", b".snd", b"riff"):  # the last is Sony's W64
            return Layout("soundfile", "", [_whole(content, start)])
        if head[:4] == b"caff":
            return Layout("av", "", [_whole(content, start)])
        if content[start : start + 4] == b"fLaC":
            return _flac(content, start)
        if head[:4] == b"OggS":
            return Layout("av", "ogg", [*_ogg_parts(content)])
        if (first := _mp3_frame(content, start)) and _mp3_frame(content, start + first.size):
            return _mp3(content, start)
    return Layout("av", "", [Part(0, size)])


def mp3_layout_of(descriptor: int) -> Layout:
    """Look through an open file that is an MP3 from some place on, behind zeros, other tags or anything else."""
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as content:
        return _mp3(content, 0)


def _after_id3(content: mmap.mmap, at: int) -> int:
    """Where an ID3v2 tag at a place ends; the place itself if there is none."""
    while content[at : at + 3] == b"ID3":
        size = content[at + 6 : at + 10]
        if len(size) < 4:
            break
        at += 10 + sum((byte & 127) << shift for byte, shift in zip(size, (21, 14, 7, 0), strict=True))
    return at


# --- AIFF, AU, W64 and CAF: as they are, and how long they should be -------------------------------------------------

_AIFC_LINEAR = b"NONE twos sowt in24 in32 42ni 23ni fl32 FL32 fl64 FL64 ulaw alaw ULAW ALAW"  # a frame is a sample
_AU_BYTES = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}  # of a sample, by its encoding


def _whole(content: mmap.mmap, start: int) -> Part:
    """The file from a place on, with the samples that its header promises where a sample is that many bytes."""
    end = len(content)
    kind = content[start : start + 4]
    if kind == b"FORM":
        return _aiff(content, start)
    frames = None
    if kind == b".snd":
        _, size, encoding, _, channels = struct.unpack(">5I", content[start + 4 : start + 24].ljust(20, b"\0"))
        if encoding in _AU_BYTES and size < UNKNOWN_BYTES:
            frames = size // max(channels * _AU_BYTES[encoding], 1)
    elif kind == b"riff":
        chunks = dict(_chunks(content, start + 40, "<16xQ", 24, 8))
        if b"fmt " in chunks and b"data" in chunks:
            body, _ = chunks[b"fmt "]
            block = struct.unpack("<H", content[body + 12 : body + 14].ljust(2, b"\0"))[0]
            is_linear = content[body : body + 2] in (b"\1\0", b"\3\0", b"\xfe\xff")
            frames = chunks[b"data"][1] // max(block, 1) if is_linear else None
    elif kind == b"caff":
        chunks = dict(_chunks(content, start + 8, ">4xQ", 0, 1))
        if b"desc" in chunks and b"data" in chunks:
            body, _ = chunks[b"desc"]
            packet, per_packet = struct.unpack(">2I", content[body + 16 : body + 24].ljust(8, b"\0"))
            size = chunks[b"data"][1] - 4
            frames = size // packet * per_packet if packet and size < 2**62 else None
    return Part(start, end, frames=frames or None)


def _chunks(content: mmap.mmap, at: int, header: str, own: int, align: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Names of chunks, and where their bodies begin and how long they are.

    Args:
        header: of a chunk, of which the size is read.
        own: bytes of the header that the size counts.
        align: bytes to whose multiples chunks are filled up.
    """
    width = struct.calcsize(header)
    while at + width <= len(content):
        size = struct.unpack(header, content[at : at + width])[0] - own
        yield content[at : at + 4], (at + width, size)
        if size < 0:
            return
        at += width + size + -size % align


def _aiff(content: mmap.mmap, start: int) -> Part:
    """AIFF and AIFF-C; libsndfile misspells one of the names of little-endian samples."""
    end = len(content)
    for name, (body, size) in _chunks(content, start + 12, ">4xI", 0, 2):
        if name != b"COMM" or size < 18 or body + size > end:
            continue
        frames = struct.unpack(">I", content[body + 2 : body + 6])[0]
        codec = content[body + 18 : body + 22] if content[start + 8 : start + 12] == b"AIFC" else b"NONE"
        promised = frames if codec in _AIFC_LINEAR.split(b" ") or codec == b"raw " else None
        if codec == b"42ni":
            return Part(body + 22, end, content[start : body + 18] + b"42n1", frames=promised or None)
        return Part(start, end, frames=promised or None)
    return Part(start, end)


# --- WAV -------------------------------------------------------------------------------------------------------------


def _is_chunk(content: mmap.mmap, at: int) -> bool:
    """Whether a RIFF chunk, or nothing, begins at a place; a few zeros to the end of the file are nothing, too."""
    name = content[at : at + 4]
    if not name.strip(b"\0"):
        return at <= len(content) <= at + MAX_FILLING and not content[at:].strip(b"\0")
    if name[:3] in (b"TAG", b"ID3"):  # of a program that takes every file for an MP3
        return True
    return len(name) == 4 and all(32 <= byte < 127 for byte in name)


def _after(content: mmap.mmap, body: int, length: int) -> int:
    """Where what follows a chunk begins: odd ones are padded, but not by every program."""
    end = body + length
    is_padded = length % 2 and end < len(content) and not (content[end] and _is_chunk(content, end))
    return end + bool(is_padded)


def _wav(content: mmap.mmap, start: int) -> Layout:
    """WAV, RF64 and BW64; with its data to the end of the file where its sizes cannot be true."""
    end, at = len(content), start + 12
    fmt, wide_size, notice, chunks, further = b"", None, "", [], []
    data, size, stop, is_plain = None, 0, end, not start
    while at + 8 <= end:
        name, length = content[at : at + 4], struct.unpack("<I", content[at + 4 : at + 8])[0]
        body = at + 8
        if name == b"ds64":
            wide_size = struct.unpack("<Q", content[body + 8 : body + 16].ljust(8, b"\0"))[0]
        elif name == b"fmt ":
            fmt = content[body : min(body + length, end)]
        elif name in (b"bext", b"cue ", b"LIST") and body + length <= end:
            chunks.append(content[at : body + length].ljust(8 + length + length % 2, b"\0"))
        elif name == b"data" and data is None:
            data = body
            size = wide_size if length == 0xFFFFFFFF and wide_size is not None else length
            length, notice = _data_bytes(content, body, size)
            stop = body + length
        elif name == b"data":
            further.append((body, min(body + length, end)))
        elif (
            (name in (b"RIFF", b"RF64", b"BW64") and data is not None)
            or not name.strip(b"\0")
            or not _is_chunk(content, at)
        ):
            break  # another file that was joined to this one, or no chunk at all
        at = _after(content, body, length)
        is_plain &= at >= end or at == body + length + length % 2  # or libsndfile loses its way
    if data is None or len(fmt) < 16:
        return Layout("soundfile", "wav", [Part(start, end)])
    codec = struct.unpack("<H", fmt[:2])[0]
    mask = struct.unpack("<I", fmt[20:24])[0] if codec == 0xFFFE and len(fmt) >= 24 else 0
    if codec == 0xFFFE and fmt[28:40] == _AMBISONICS:
        mask = None
    if codec == 1 and (first := _dts_sync(content, data)) is not None:
        return Layout("av", "dts", [Part(first, stop)])
    if codec not in _SOUNDFILE_WAV_CODECS:
        return Layout("av", "", [Part(start, end)], mask)
    joined = content[at : at + 4] in (b"RIFF", b"RF64", b"BW64")
    if is_plain and not joined and not further and not notice and content[:4] != b"BW64":
        return Layout("soundfile", "wav", [Part(0, end)], mask, (), tuple(chunks))
    is_linear = codec in (1, 3, 0xFFFE)
    is_short = notice.startswith("ends")
    promised = size // max(struct.unpack("<H", fmt[12:14])[0], 1) if is_short and is_linear else None
    notices = () if not notice or promised else (notice,)  # the reader says by how much it is short
    parts = [Part(data, stop, _wav_header(fmt, stop - data, chunks), frames=promised)]
    parts += [Part(first, last, _wav_header(fmt, last - first, [])) for first, last in further]
    if joined:
        parts += _wav(content, at).parts
    return Layout("soundfile", "wav", parts, mask, notices, tuple(chunks))


def _dts_sync(content: mmap.mmap, data: int) -> int | None:
    """Where the first of three equally distant DTS frames begins in what claims to be PCM; None without them."""
    for sync in map(bytes.fromhex, _DTS_SYNC):
        first = content.find(sync, data, data + MAX_LEAD_IN)
        second = content.find(sync, first + 4, first + 2**15) if first >= 0 else -1
        third = 2 * second - first
        if second >= 0 and content[third : third + 4] == sync:
            return first
    return None


def _data_bytes(content: mmap.mmap, body: int, size: int) -> tuple[int, str]:
    """How many bytes of samples really begin at `body`, where the header says `size`, and what is wrong with that."""
    rest = len(content) - body
    if size > rest:
        known = size < UNKNOWN_BYTES
        return rest, "ends before its header says" if known else "has a header that does not know its length"
    if _is_chunk(content, _after(content, body, size)) and (size or rest < 8):
        return size, ""
    if size == 0 and content[body : body + 4].strip(b"\0") and _is_chunk(content, body):
        return 0, ""
    for wraps in range(1, rest // 2**32 + 1):
        wrapped = size + wraps * 2**32
        if wrapped <= rest and _is_chunk(content, body + wrapped + wrapped % 2):
            return wrapped, "is longer than its header can say"
    return rest, "has a header that does not know its length"


def _wav_header(fmt: bytes, size: int, chunks: list[bytes]) -> bytes:
    """A header that says the truth: of WAV, or of RF64 where that has too few bits."""
    fmt += b"\0" * (len(fmt) % 2)
    middle = b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"".join(chunk for chunk in chunks if chunk[:4] == b"LIST")
    if size < 2**31:
        body = b"WAVE" + middle + b"data" + struct.pack("<I", size)
        return b"RIFF" + struct.pack("<I", len(body) + size) + body
    frames = size // max(struct.unpack("<H", fmt[12:14])[0], 1)
    ds64 = struct.pack("<QQQI", 52 + len(middle) + size, size, frames, 0)
    body = b"WAVEds64" + struct.pack("<I", len(ds64)) + ds64 + middle + b"data" + struct.pack("<I", 0xFFFFFFFF)
    return b"RF64" + struct.pack("<I", 0xFFFFFFFF) + body


# --- FLAC, Ogg and MP3 -----------------------------------------------------------------------------------------------


def _flac(content: mmap.mmap, start: int) -> Layout:
    magic = b"fLaC\0\0\0\x22"  # with the block that always comes first
    starts = [start]
    while (found := content.find(magic, starts[-1] + 4)) >= 0:
        starts.append(found)
    parts = []
    for first, last in zip(starts, [*starts[1:], len(content)], strict=True):
        packed = int.from_bytes(content[first + 18 : first + 26], "big")
        frames = packed & (2**36 - 1)
        parts.append(Part(first, last, frames=frames or None))
    bits = (int.from_bytes(content[start + 20 : start + 22], "big") >> 4 & 31) + 1
    return Layout("av", "flac", parts, bits=bits)


def _ogg_parts(content: mmap.mmap) -> Iterator[Part]:
    """Chained streams: a part begins with the first pages that begin a stream after others that do not."""
    at, start, is_opening = 0, 0, True
    while (at := content.find(b"OggS", at)) >= 0:
        page = content[at : at + 27 + 255]
        if len(page) < 27:
            break
        opens = bool(page[5] & 2)
        if opens and not is_opening:
            yield Part(start, at)
            start = at
        is_opening = opens
        at += 27 + page[26] + sum(page[27 : 27 + page[26]])
    yield Part(start, len(content))


@dataclass(frozen=True)
class _Frame:
    """The header of a frame of MPEG layer III."""

    size: int  # bytes
    rate: int  # Hz
    channels: int
    samples: int
    side_info: int  # bytes between the header and what a Xing tag would be


def _mp3_frame(content: mmap.mmap, at: int) -> _Frame | None:
    header = content[at : at + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version, kbps, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or kbps in (0, 15) or rate == 3:
        return None
    is_old = version == 3  # MPEG-1
    hertz = (44100, 48000, 32000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    size = (144 if is_old else 72) * 1000 * _KBPS[not is_old][kbps] // hertz + (header[2] >> 1 & 1)
    channels = 1 if header[3] >> 6 == 3 else 2
    side_info = (32 if channels == 2 else 17) if is_old else (17 if channels == 2 else 9)
    return _Frame(size, hertz, channels, 1152 if is_old else 576, side_info)


def _mp3(content: mmap.mmap, start: int) -> Layout:
    """Frame by frame; a part begins with a tag of its encoder, and where rate or channels change."""
    parts: list[Part] = []
    tag: tuple[int, int | None] | None = None
    first, count, form, at = start, 0, None, start

    def close(stop: int) -> None:
        if count:
            skip, frames = tag or (0, None)
            parts.append(Part(first, stop, skip=skip, frames=frames))

    while at < len(content):
        frame = _mp3_frame(content, at)
        if frame is None:
            at = _mp3_resync(content, at)
            continue
        found = _mp3_tag(content, at, frame)
        if found is not None or form not in (None, (frame.rate, frame.channels)):
            close(at)
            tag, count = found, 0
            first = at if found is None else at + frame.size
        form = frame.rate, frame.channels
        count += found is None
        at += frame.size
    close(len(content))
    return Layout("av", "mp3", parts or [Part(0, len(content))])


def _mp3_resync(content: mmap.mmap, at: int) -> int:
    """The next place at which two frames follow each other, or a tag ends."""
    if content[at : at + 3] == b"ID3":
        return max(_after_id3(content, at), at + 1)
    if content[at : at + 3] == b"TAG":
        return at + 128
    while (at := content.find(b"\xff", at + 1)) >= 0:
        frame = _mp3_frame(content, at)
        if frame and (_mp3_frame(content, at + frame.size) or at + frame.size >= len(content)):
            return at
    return len(content)


def _mp3_tag(content: mmap.mmap, at: int, frame: _Frame) -> tuple[int, int | None] | None:
    """Samples to skip and samples of music, as a Xing or Info tag in this frame has them; None without one."""
    place = at + 4 + frame.side_info
    if content[place : place + 4] not in (b"Xing", b"Info"):
        return None
    flags = struct.unpack(">I", content[place + 4 : place + 8])[0]
    count = struct.unpack(">I", content[place + 8 : place + 12])[0] if flags & 1 else 0
    encoder = place + 8 + 4 * bool(flags & 1) + 4 * bool(flags & 2) + 100 * bool(flags & 4) + 4 * bool(flags & 8)
    packed = int.from_bytes(content[encoder + 21 : encoder + 24], "big")
    delay, padding = packed >> 12, packed & 0xFFF
    skip = delay + MP3_DECODER_DELAY if packed else 0
    return skip, (count * frame.samples - delay - padding if count else None)
