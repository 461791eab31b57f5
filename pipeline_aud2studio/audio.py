"""Audio files in and out, sampling rates, loudness, and the two finishing touches (tilt, limiter).

Waveforms are float32 numpy arrays of shape (channels, samples), full scale is 1.0.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
import pyloudnorm
import soundfile
import soxr
from numpy.typing import NDArray
from scipy import ndimage, signal

Waveform: TypeAlias = NDArray[Any]  # float32 is returned; float64 is taken, too

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 8_000, 192_000
MAX_CHANNELS = 2

# The level at which the networks see every recording, in training and in use.
NORMAL_RMS_DB = -23.0
# Of mere applause next to nothing is left; lifting that to the applause's loudness would lift only dirt.
MAX_LOUDNESS_GAIN_DB = 20.0
PEAK_CEILING_DB = -0.1
SILENCE_RMS_DB = -120.0  # below it there is nothing to restore

# What a folder given as input is searched for. Other files are still tried when they are named one by one.
SUFFIXES_READ = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .m4a .mp4 .mov .aac .aif .aiff .caf .3gp .amr .webm .mka .mkv .wma".split()
)
# Per output format: the sample formats it can hold, by their names in libsndfile.
SUBTYPES_WRITTEN = {".wav": ("PCM_16", "PCM_24", "FLOAT"), ".flac": ("PCM_16", "PCM_24")}

TAGS = ("title", "artist", "album", "date", "tracknumber", "genre", "comment", "copyright", "license")
_FFMPEG_TAGS = {"tracknumber": "track"}
_BLOCK_FRAMES = 1 << 18


class AudioError(ValueError):
    """A file or a signal that cannot be worked on; the message says what is wrong with it, in one sentence."""


class LoudnessWarning(UserWarning):
    """The loudness could not be kept, and why."""


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


def read(path: str | os.PathLike[str], start_s: float | None = None, end_s: float | None = None) -> Audio:
    """Decode a file, or the part of it between two times.

    libsndfile decodes WAV, FLAC, OGG, MP3 and its like, PyAV the rest (M4A, MP4, MOV, ...). Both drop the silence that
    lossy encoders put before and after the music, as far as the file says how long it is.

    Raises:
        AudioError: the file is missing, not audio, empty, of another kind than this project restores (more than two
            channels, a rate outside 8 to 192 kHz), or holds NaN or infinite samples; or the times lie outside it.
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
    try:
        with path.open("rb", buffering=0) as file:
            if not file.read(1):
                raise AudioError(f"{path} is empty (0 bytes)")
            file.seek(0)
            try:
                # By its descriptor, so that libsndfile goes by the content, not by the name.
                with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
                    _check_format(path, sound.samplerate, sound.channels)
                    tags = {name: text for name, text in sound.copy_metadata().items() if name in TAGS and text}
                    audio = Audio(_read_soundfile(sound, start_s, end_s), sound.samplerate, tags, sound.subtype)
            except soundfile.LibsndfileError:
                audio = _read_av(path, start_s, end_s)
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {error.strerror}") from None

    if audio.waveform.shape[1] == 0:
        reason = "holds no audio" if start_s == 0 else f"ends before the start that was asked for ({start_s:g} s)"
        raise AudioError(f"{path} {reason}")
    finite = np.isfinite(audio.waveform).all(axis=0)
    if not finite.all():
        at_s = start_s + int(np.argmin(finite)) / audio.sample_rate
        raise AudioError(f"{path} holds NaN or infinite samples (the first at {at_s:.3f} s): export it again")
    return audio


def _check_format(path: Path, sample_rate: int, channels: int) -> None:
    if channels > MAX_CHANNELS:
        raise AudioError(
            f"{path} has {channels} channels: mix it down to stereo first (for instance `ffmpeg -i IN -ac 2 OUT`)"
        )
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise AudioError(
            f"{path} has a sampling rate of {sample_rate} Hz: what can be restored is {MIN_SAMPLE_RATE} to"
            f" {MAX_SAMPLE_RATE} Hz"
        )


def _excerpt(start_s: float, end_s: float | None, sample_rate: int, length: float) -> tuple[int, int | float]:
    """First sample, and the one after the last; `length` may be infinite where it is not known yet."""
    stop = length if end_s is None else min(length, round(end_s * sample_rate))
    return round(start_s * sample_rate), stop


def _read_soundfile(file: soundfile.SoundFile, start_s: float, end_s: float | None) -> Waveform:
    start, stop = _excerpt(start_s, end_s, file.samplerate, file.frames)
    length = max(0, int(stop) - start)
    waveform = np.empty((file.channels, length), np.float32)
    if length == 0:
        return waveform
    file.seek(start)
    position = 0
    for block in file.blocks(_BLOCK_FRAMES, frames=length, dtype="float32", always_2d=True):
        waveform[:, position : position + len(block)] = block.T
        position += len(block)
    return waveform[:, :position]  # a truncated file holds less than its header says


def _read_av(path: Path, start_s: float, end_s: float | None) -> Audio:
    """Decode from the beginning, so that an excerpt is exact to the sample whatever the codec's memory."""
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.audio:
                raise AudioError(f"{path} has no sound in it")
            stream = container.streams.audio[0]
            rate, channels = stream.sample_rate, stream.channels
            if not rate or not channels:
                raise AudioError(f"{path} is not audio that can be decoded (no sampling rate or channels)")
            _check_format(path, rate, channels)
            # The last packet is padded to a whole frame. MP4 and MOV know where the music ends; others only guess.
            exact = container.format.name.startswith("mov") and stream.duration is not None
            total = round(stream.duration * stream.time_base * rate) if exact else math.inf
            start, stop = _excerpt(start_s, end_s, rate, total)
            planar = av.AudioResampler(format="fltp", layout=stream.layout, rate=rate)
            blocks, position = [], 0
            for frame in container.decode(stream):
                for part in planar.resample(frame):
                    end = position + part.samples
                    if end > start and position < stop:
                        cut = slice(max(0, start - position), int(min(stop - position, part.samples)))
                        blocks.append(part.to_ndarray()[:, cut])
                    position = end
                if position >= stop:
                    break
            tags = _av_tags({**container.metadata, **stream.metadata})
    except (av.FFmpegError, OSError) as error:
        raise AudioError(f"{path} is not audio that can be decoded ({error.strerror})") from None
    waveform = np.concatenate(blocks, axis=1) if blocks else np.empty((channels, 0), np.float32)
    return Audio(waveform.astype(np.float32, copy=False), rate, tags)


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


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place if the block leaves a file there and raises nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
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
    """Write WAV or FLAC, whichever the name ends in; an existing file is replaced once the new one is complete.

    Args:
        path: the name decides the format.
        waveform: float `(channels, samples)`; integer formats round it and clip it at full scale.
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
    with atomic_path(path) as temporary:
        try:
            with soundfile.SoundFile(temporary, "w", sample_rate, len(waveform), subtype, format=container) as file:
                for name, text in (tags or {}).items():
                    if name in TAGS:
                        setattr(file, name, text)
                for first in range(0, waveform.shape[1], _BLOCK_FRAMES):
                    file.write(_quantised(waveform[:, first : first + _BLOCK_FRAMES], subtype).T)
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


def resample(waveform: Waveform, source_rate: int, target_rate: int, length: int | None = None) -> Waveform:
    """Bring `(channels, samples)` to another rate (soxr, VHQ: linear phase, no delay).

    Args:
        length: samples of the result, to the sample; by default `samples * target_rate / source_rate`, rounded.
    """
    samples = waveform.shape[-1]
    if length is None:
        length = max(1, round(samples * target_rate / source_rate))
    resampled = waveform
    if source_rate != target_rate:
        resampled = soxr.resample(waveform.T, source_rate, target_rate, quality="VHQ").T
    missing = max(0, length - resampled.shape[-1])
    resampled = np.pad(resampled, ((0, 0), (0, missing))) if missing else resampled[:, :length]
    return np.ascontiguousarray(resampled, dtype=np.float32)


def rms_db(waveform: Waveform) -> float:
    """Root mean square over all channels and samples in dBFS; minus infinity for silence."""
    power = float(np.mean(np.square(waveform), dtype=np.float64))
    return 10 * math.log10(power) if power > 0 else -math.inf


def normalise_rms(waveform: Waveform, target_db: float = NORMAL_RMS_DB) -> tuple[Waveform, float]:
    """The waveform at an RMS level of `target_db` dBFS, and the factor that it took (1 for silence)."""
    level_db = rms_db(waveform)
    gain = 10 ** ((target_db - level_db) / 20) if math.isfinite(level_db) else 1.0
    return waveform * np.float32(gain), gain


def loudness_lufs(waveform: Waveform, sample_rate: int) -> float:
    """Integrated loudness (ITU-R BS.1770-4) in LUFS; minus infinity for silence.

    Where its gate has nothing to measure, in signals shorter than a block of 0.4 s or below -70 LUFS throughout, the
    level without weighting and gate stands in for it.
    """
    power = _gated_power(_block_powers(waveform, sample_rate))
    if power is None:  # the powers of the channels add up in BS.1770
        return rms_db(waveform) + 10 * math.log10(len(waveform)) - 0.691
    return 10 * math.log10(power) - 0.691


def _block_powers(waveform: Waveform, sample_rate: int) -> NDArray[np.float64]:
    """K-weighted power of every block of 0.4 s, one each 0.1 s, channels added up; none if the signal is shorter.

    Filtered piece by piece, so that an hour of music needs no more memory than a minute.
    """
    samples = waveform.shape[1]
    if samples < round(0.4 * sample_rate):
        return np.empty(0)
    num_steps = round((samples / sample_rate - 0.4) / 0.1) + 4
    edges = np.minimum(np.arange(num_steps + 1) * sample_rate // 10, samples)
    shelf = pyloudnorm.IIRfilter(4.0, 1 / math.sqrt(2), 1500.0, sample_rate, "high_shelf")
    high_pass = pyloudnorm.IIRfilter(0.0, 0.5, 38.0, sample_rate, "high_pass")
    sections = np.stack([np.concatenate([stage.b, stage.a]) for stage in (shelf, high_pass)])
    state = np.zeros((len(sections), len(waveform), 2))
    energies = []
    for first in range(0, num_steps, 100):
        bounds = edges[first : first + 101]
        piece = waveform[:, bounds[0] : bounds[-1]].astype(np.float64)
        weighted, state = signal.sosfilt(sections, piece, axis=1, zi=state)
        total = np.concatenate([[0.0], np.square(weighted).sum(0).cumsum()])
        energies.append(np.diff(total[bounds - bounds[0]]))
    steps = np.concatenate(energies)
    return (steps[:-3] + steps[1:-2] + steps[2:-1] + steps[3:]) / (0.4 * sample_rate)


def _gated_power(powers: NDArray[np.float64]) -> float | None:
    """Mean power of the blocks above -70 LUFS and not more than 10 LU below their mean; None if there are none."""
    powers = powers[powers >= 10 ** ((-70 + 0.691) / 10)]
    if not powers.size:
        return None
    return float(powers[powers > 0.1 * powers.mean()].mean())


def match_loudness(restored: Waveform, reference: Waveform, sample_rate: int) -> Waveform:
    """`restored` at the loudness of `reference`, both `(channels, samples)`, lowered where it would clip.

    Warns with `LoudnessWarning` where the loudness is not kept: it would clip, or next to nothing is left of the
    recording and would have to be lifted by more than `MAX_LOUDNESS_GAIN_DB`.
    """
    restored_lufs, reference_lufs = loudness_lufs(restored, sample_rate), loudness_lufs(reference, sample_rate)
    if not math.isfinite(restored_lufs) or not math.isfinite(reference_lufs):
        return restored
    gain_db = reference_lufs - restored_lufs
    if gain_db > MAX_LOUDNESS_GAIN_DB:
        warnings.warn(
            f"the restored signal is {gain_db:.1f} dB quieter than the recording; it is raised by"
            f" {MAX_LOUDNESS_GAIN_DB:g} dB only",
            LoudnessWarning,
            stacklevel=2,
        )
        gain_db = MAX_LOUDNESS_GAIN_DB
    return guard_peak(restored * np.float32(10 ** (gain_db / 20)))


def guard_peak(waveform: Waveform) -> Waveform:
    """The waveform, with a `LoudnessWarning` lowered to `PEAK_CEILING_DB` where it would clip."""
    peak_db = 20 * math.log10(max(float(np.abs(waveform).max(initial=0.0)), 1e-12))
    if peak_db <= 0:
        return waveform
    lowered_db = peak_db - PEAK_CEILING_DB
    warnings.warn(
        f"the result is {lowered_db:.1f} dB quieter than it should be, because it would clip",
        LoudnessWarning,
        stacklevel=3,
    )
    return waveform * np.float32(10 ** (-lowered_db / 20))


def tilt(waveform: Waveform, sample_rate: int, tilt_db: float) -> Waveform:
    """Turn the spectrum about 1 kHz with zero phase: `tilt_db / 2` more at 20 kHz, as much less at 50 Hz.

    The gain in dB is a straight line over log-frequency between these two, and level beyond them. Negative values
    make the sound darker.
    """
    num_taps = 2 * (sample_rate // 20) + 1  # 100 ms: resolves the bend at 50 Hz
    frequencies = np.fft.rfftfreq(2 * num_taps, 1 / sample_rate)
    octaves = np.log2(np.maximum(frequencies, 1.0) / 1000) / math.log2(20)
    gain = 10 ** (tilt_db / 2 * np.clip(octaves, -1, 1) / 20)
    response = np.roll(np.fft.irfft(gain), num_taps // 2)[:num_taps]
    taps = (response * np.hanning(num_taps)).astype(np.float32)
    return signal.oaconvolve(waveform, taps[None], mode="same", axes=1).astype(np.float32)


def limiter(
    waveform: Waveform,
    sample_rate: int,
    ceiling_db: float = -1.0,
    lookahead_s: float = 0.005,
    release_db_per_s: float = 60.0,
) -> Waveform:
    """Look-ahead peak limiter, both channels by the same gain; no sample of the result is above the ceiling.

    The reduction needed (in dB) is held for the look-ahead on both sides, released along a straight line, and smoothed
    over the look-ahead: every value that the smoothing averages covers the peak, so the average does, too.
    """
    peaks = np.abs(waveform).max(axis=0)
    ceiling = 10 ** (ceiling_db / 20)
    if peaks.max(initial=0.0) <= ceiling:
        return waveform
    needed_db = 20 * np.log10(np.maximum(peaks, ceiling) / ceiling)
    half = max(1, round(lookahead_s * sample_rate))
    held_db = ndimage.maximum_filter1d(needed_db, 2 * half + 1, mode="nearest")
    released_db = _released(held_db, release_db_per_s / sample_rate)
    window = np.hanning(2 * half + 3)[1:-1]
    reduction_db = ndimage.convolve1d(released_db, window / window.sum(), mode="nearest")
    limited = waveform * (10 ** (-reduction_db / 20)).astype(np.float32)
    return np.clip(limited, -ceiling, ceiling)  # float32 rounding only


def _released(held_db: Waveform, step_db: float) -> Waveform:
    """The smallest curve above `held_db` (samples) that falls by no more than `step_db` a sample."""
    released_db = np.empty_like(held_db)
    last_db = 0.0
    for first in range(0, len(held_db), _BLOCK_FRAMES):
        block = slice(first, first + _BLOCK_FRAMES)
        slope_db = np.arange(1, len(held_db[block]) + 1) * step_db
        # Tilted by the slope, "falls by no more than" becomes "never falls".
        released_db[block] = np.maximum(np.maximum.accumulate(held_db[block] + slope_db), last_db) - slope_db
        last_db = float(released_db[block][-1])
    return released_db
