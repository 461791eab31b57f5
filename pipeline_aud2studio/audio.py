"""Sampling rates, levels and loudness of waveforms, and the two finishing touches (tilt, limiter).

Waveforms are float32 numpy arrays of shape (channels, samples), full scale is 1.0.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
import pyloudnorm
import soxr
from numpy.typing import NDArray
from scipy import ndimage, signal

Waveform: TypeAlias = NDArray[Any]  # float32 is returned; float64 is taken, too

# The level at which the networks see every recording, in training and in use.
NORMAL_RMS_DB = -23.0
# Of mere applause next to nothing is left; lifting that to the applause's loudness would lift only dirt.
MAX_LOUDNESS_GAIN_DB = 20.0
PEAK_CEILING_DB = -0.1
TRUE_PEAK_CEILING_DB = -1.0  # dBTP, as streaming services want it
GATE_LUFS, PROGRAMME_LUFS = -70.0, -23.0  # BS.1770's absolute gate, and the level that broadcasters have (EBU R 128)
_OVERSAMPLING, _TRUE_PEAK_HALF = 4, 24  # BS.1770's factor, and samples on either side that its filter sees
SILENCE_RMS_DB = -120.0  # below it there is nothing to restore
_BLOCK_FRAMES = 1 << 18


class AudioNotice(UserWarning):
    """A sentence that the user should know of a recording."""


class LoudnessWarning(AudioNotice):
    """The loudness could not be kept, and why."""


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


def resampled(
    blocks: Iterable[Waveform], source_rate: int, target_rate: int, length: int | None = None
) -> Iterator[Waveform]:
    """Resamples, as `resample` does, a signal that comes in blocks `(channels, samples)`, in blocks.

    Args:
        length: samples of the result, to the sample; by default `samples * target_rate / source_rate`, rounded.
    """
    stream: soxr.ResampleStream | None = None
    received = given = 0
    last: Waveform | None = None
    for block in itertools.chain(blocks, [None]):
        if block is not None:
            received, last = received + block.shape[1], block
        if last is None:
            return
        if source_rate == target_rate:
            piece = last[:, :0] if block is None else block
        else:
            if stream is None:
                stream = soxr.ResampleStream(source_rate, target_rate, len(last), "float32", "VHQ")
            samples = np.ascontiguousarray((last[:, :0] if block is None else block).T, np.float32)
            piece = stream.resample_chunk(samples, last=block is None).T
        wanted = length
        if block is None:
            if wanted is None:
                wanted = max(1, round(received * target_rate / source_rate))
            piece = np.pad(piece, ((0, 0), (0, max(0, wanted - given - piece.shape[1]))))
        if wanted is not None:
            piece = piece[:, : max(0, wanted - given)]
        given += piece.shape[1]
        if piece.shape[1]:
            yield np.ascontiguousarray(piece, np.float32)


def rms_db(waveform: Waveform) -> float:
    """Root mean square over all channels and samples in dBFS; minus infinity for silence."""
    power = float(np.mean(np.square(waveform), dtype=np.float64))
    return 10 * math.log10(power) if power > 0 else -math.inf


def loudness_lufs(waveform: Waveform, sample_rate: int) -> float:
    """Integrated loudness (ITU-R BS.1770-4) in LUFS; minus infinity for silence. See `LoudnessMeter`."""
    meter = LoudnessMeter(len(waveform), sample_rate)
    for first in range(0, waveform.shape[1], _BLOCK_FRAMES):
        meter.push(waveform[:, first : first + _BLOCK_FRAMES])
    return meter.lufs


class LoudnessMeter:
    """Loudness, level and peak of a signal that comes in pieces `(channels, samples)`.

    Attributes:
        peak: the largest magnitude so far, 1.0 is full scale.
    """

    def __init__(self, num_channels: int, sample_rate: int) -> None:
        shelf = pyloudnorm.IIRfilter(4.0, 1 / math.sqrt(2), 1500.0, sample_rate, "high_shelf")
        high_pass = pyloudnorm.IIRfilter(0.0, 0.5, 38.0, sample_rate, "high_pass")
        self._sections = np.stack([np.concatenate([stage.b, stage.a]) for stage in (shelf, high_pass)])
        self._state = np.zeros((len(self._sections), num_channels, 2))
        self._num_channels, self._sample_rate = num_channels, sample_rate
        self._steps: list[float] = []  # K-weighted energy of every step of 0.1 s, channels added up
        self._step = 0.0  # that of the one that is not over yet
        self._samples, self._energy = 0, 0.0
        self.peak = 0.0

    def push(self, waveform: Waveform) -> None:
        """Takes the next piece."""
        if not waveform.shape[1]:
            return
        piece = waveform.astype(np.float64, order="C")
        weighted, self._state = signal.sosfilt(self._sections, piece, axis=1, zi=self._state)
        power = np.einsum("cs,cs->s", weighted, weighted)
        begin, end = self._samples, self._samples + waveform.shape[1]
        bounds = [begin]
        while (edge := (len(self._steps) + len(bounds)) * self._sample_rate // 10) <= end:
            bounds.append(edge)
        for first, last in itertools.pairwise(bounds):
            self._steps.append(self._step + float(power[first - begin : last - begin].sum()))
            self._step = 0.0
        self._step += float(power[bounds[-1] - begin :].sum())
        self._samples = end
        self._energy += float(np.einsum("cs,cs->", piece, piece))  # `vdot` would wake threads for it
        self.peak = max(self.peak, float(waveform.max()), -float(waveform.min()))

    @property
    def rms_db(self) -> float:
        """Root mean square over all channels and samples in dBFS; minus infinity for silence."""
        power = self._energy / max(self._samples * self._num_channels, 1)
        return 10 * math.log10(power) if power > 0 else -math.inf

    @property
    def lufs(self) -> float:
        """Integrated loudness (ITU-R BS.1770-4) in LUFS; minus infinity for silence.

        Where its gate has nothing to measure, in signals shorter than a block of 0.4 s or below -70 LUFS throughout,
        the level without weighting and gate stands in for it.
        """
        return self._lufs(10 ** ((GATE_LUFS + 0.691) / 10))

    @property
    def level_lufs(self) -> float:
        """Loudness in LUFS to match levels by: its absolute gate moves with the signal.

        Twice the signal is 6.02 LU more, however quiet it is. The gate lies as far below the mean as the standard's
        -70 LUFS below programme at -23 LUFS.
        """
        powers = self._block_powers()
        return self._lufs(float(powers.mean()) * 10 ** ((GATE_LUFS - PROGRAMME_LUFS) / 10) if powers.size else 0.0)

    def _lufs(self, floor: float) -> float:
        power = _gated_power(self._block_powers(), floor)
        if not power:  # the powers of the channels add up in BS.1770
            return self.rms_db + 10 * math.log10(self._num_channels) - 0.691
        return 10 * math.log10(power) - 0.691

    def _block_powers(self) -> NDArray[np.float64]:
        """K-weighted power of every block of 0.4 s, one each 0.1 s; none if the signal is shorter."""
        if self._samples < round(0.4 * self._sample_rate):
            return np.empty(0)
        num_steps = round((self._samples / self._sample_rate - 0.4) / 0.1) + 4
        steps = np.array([*self._steps, self._step, 0.0])[:num_steps]
        return (steps[:-3] + steps[1:-2] + steps[2:-1] + steps[3:]) / (0.4 * self._sample_rate)


def _gated_power(powers: NDArray[np.float64], floor: float) -> float | None:
    """Mean power of the blocks above a floor and not more than 10 LU below their mean; None if there are none."""
    powers = powers[(powers >= floor) & (powers > 0)]
    if not powers.size:
        return None
    return float(powers[powers > 0.1 * powers.mean()].mean())


def match_loudness(restored: Waveform, reference: Waveform, sample_rate: int, network_gain: float = 1.0) -> Waveform:
    """Bring `restored` to the loudness of `reference`, both `(channels, samples)`; peaks may go above full scale.

    Args:
        network_gain: factor by which the reference was multiplied before it was restored, see `loudness_gain`.

    Warns with `LoudnessWarning` where the loudness is not kept, see `loudness_gain`.
    """
    levels = []
    for waveform in (restored, reference):
        meter = LoudnessMeter(len(waveform), sample_rate)
        for first in range(0, waveform.shape[1], _BLOCK_FRAMES):
            meter.push(waveform[:, first : first + _BLOCK_FRAMES])
        levels.append(meter.level_lufs)
    gain = loudness_gain(levels[0], levels[1], network_gain)
    return (restored * np.float32(gain)).astype(np.float32, copy=False)


def loudness_gain(restored_lufs: float, reference_lufs: float, network_gain: float = 1.0) -> float:
    """Factor that brings a restored signal to the reference's loudness; 1 where either is silent.

    Warns where next to nothing is left of the recording and would have to be lifted by more than
    `MAX_LOUDNESS_GAIN_DB`.

    Args:
        network_gain: factor by which the reference was multiplied before it was restored. What is left of it is told
            by comparing at that level: a loud master was attenuated for the network, and to undo that is no lift.
    """
    if not math.isfinite(restored_lufs) or not math.isfinite(reference_lufs):
        return 1.0
    gain_db, network_db = reference_lufs - restored_lufs, 20 * math.log10(network_gain)
    if gain_db + network_db > MAX_LOUDNESS_GAIN_DB:
        warnings.warn(
            f"the restored signal is {gain_db + network_db:.1f} dB quieter than the recording; it is raised by"
            f" {MAX_LOUDNESS_GAIN_DB:g} dB only",
            LoudnessWarning,
            stacklevel=3,
        )
        gain_db = MAX_LOUDNESS_GAIN_DB - network_db
    return float(10 ** (gain_db / 20))


def peak_gain(peak: float) -> float:
    """Factor that lowers a signal of this peak to `PEAK_CEILING_DB` if it would clip, with a `LoudnessWarning`."""
    peak_db = 20 * math.log10(max(peak, 1e-12))
    if peak_db <= 0:
        return 1.0
    lowered_db = peak_db - PEAK_CEILING_DB
    warnings.warn(
        f"the result is {lowered_db:.1f} dB quieter than it should be, because it would clip",
        LoudnessWarning,
        stacklevel=3,
    )
    return float(10 ** (-lowered_db / 20))


def tilted(blocks: Iterable[Waveform], sample_rate: int, tilt_db: float) -> Iterator[Waveform]:
    """Turns the spectrum about 1 kHz with zero phase: `tilt_db / 2` more at 20 kHz, as much less at 50 Hz.

    The gain in dB is a straight line over log-frequency between these two, and level beyond them. Negative values
    make the sound darker.

    Args:
        blocks: Of the signal, (channels, samples) each.
    """
    half = sample_rate // 20
    num_taps = 2 * half + 1  # 100 ms: resolves the bend at 50 Hz
    frequencies = np.fft.rfftfreq(2 * num_taps, 1 / sample_rate)
    octaves = np.log2(np.maximum(frequencies, 1.0) / 1000) / math.log2(20)
    gain = 10 ** (tilt_db / 2 * np.clip(octaves, -1, 1) / 20)
    response = np.roll(np.fft.irfft(gain), half)[:num_taps]
    taps = (response * np.hanning(num_taps)).astype(np.float32)

    def convolved(signals: Waveform) -> Waveform:
        return signal.oaconvolve(signals, taps[None], mode="same", axes=1).astype(np.float32)

    return _in_context(blocks, half, convolved, "constant")


def limited(
    blocks: Iterable[Waveform],
    sample_rate: int,
    ceiling_db: float = -1.0,
    lookahead_s: float = 0.005,
    release_db_per_s: float = 60.0,
    reductions: list[float] | None = None,
) -> Iterator[Waveform]:
    """Limits true peaks, looking ahead, all channels by the same gain; no sample of the result is above the ceiling.

    The reduction needed (in dB) is held for the look-ahead on both sides, released along a straight line, and smoothed
    over the look-ahead: every value that the smoothing averages covers the peak, so the average does, too.

    Args:
        blocks: Of the signal, (channels, samples) each.
        reductions: is given by how many dB each block is lowered at most.
    """
    ceiling = 10 ** (ceiling_db / 20)
    half = max(1, round(lookahead_s * sample_rate))
    window = np.hanning(2 * half + 3)[1:-1] / np.hanning(2 * half + 3)[1:-1].sum()
    waiting: list[Waveform] = []  # for their reduction, which looks ahead

    def kept() -> Iterator[Waveform]:
        for block in blocks:
            waiting.append(block)
            yield block

    def levels_db(block: Waveform) -> Waveform:
        levels = true_peaks(block) if np.abs(block).max() > ceiling / 2 else np.abs(block)
        return 20 * np.log10(np.maximum(levels.max(axis=0, keepdims=True), ceiling) / ceiling)

    def held(needed: Waveform) -> Waveform:
        return ndimage.maximum_filter1d(needed, 2 * half + 1, axis=1, mode="nearest")

    def smoothed(released: Waveform) -> Waveform:
        return ndimage.convolve1d(released, window, axis=1, mode="nearest")

    needed_db = _in_context(kept(), _TRUE_PEAK_HALF, levels_db, "edge")
    released_db = _released(_in_context(needed_db, half, held, "edge"), release_db_per_s / sample_rate)
    for reduction_db in _in_context(released_db, half, smoothed, "edge"):
        length = reduction_db.shape[1]
        joined = np.concatenate(waiting, axis=1)
        waiting[:] = [joined[:, length:]]
        if reductions is not None:
            reductions.append(float(reduction_db.max()))
        if not reduction_db.any():
            yield joined[:, :length]
            continue
        reduced = joined[:, :length] * (10 ** (-reduction_db / 20)).astype(np.float32)
        yield np.clip(reduced, -ceiling, ceiling)  # float32 rounding only


def true_peaks(waveform: Waveform) -> Waveform:
    """Peaks (channels, samples) of the continuous signal about every sample, four times oversampled (BS.1770)."""
    fine = signal.resample_poly(waveform, _OVERSAMPLING, 1, axis=1)
    peaks = np.abs(fine).reshape(len(waveform), -1, _OVERSAMPLING).max(axis=2)
    return np.maximum(peaks, np.abs(waveform))


def _released(blocks: Iterable[Waveform], step_db: float) -> Iterator[Waveform]:
    """The smallest curve above the levels (1, samples) that falls by no more than `step_db` a sample."""
    last_db = 0.0
    for held_db in blocks:
        slope_db = np.arange(1, held_db.shape[1] + 1) * step_db
        # Tilted by the slope, "falls by no more than" becomes "never falls".
        released_db = np.maximum(np.maximum.accumulate(held_db + slope_db, axis=1), last_db) - slope_db
        last_db = float(released_db[0, -1])
        yield released_db


def _in_context(
    blocks: Iterable[Waveform], half: int, function: Callable[[Waveform], Waveform], edge: Literal["edge", "constant"]
) -> Iterator[Waveform]:
    """A function of every sample and the `half` before and after it, applied to a signal that comes in blocks.

    Args:
        function: from (channels, samples) to the like; what it gives near the ends is not used.
        edge: what is beyond the ends, as in `numpy.pad`.
    """
    kept: Waveform | None = None
    for block in itertools.chain(blocks, [None]):
        if block is not None and not block.shape[1]:
            continue
        if kept is None:
            if block is None:
                return
            kept = np.pad(block, ((0, 0), (half, 0)), mode=edge)
        else:
            kept = np.pad(kept, ((0, 0), (0, half)), mode=edge) if block is None else np.concatenate([kept, block], 1)
        for first in range(0, kept.shape[1] - 2 * half, _BLOCK_FRAMES):
            piece = function(kept[:, first : first + _BLOCK_FRAMES + 2 * half])
            yield piece[:, half : piece.shape[1] - half]
        kept = kept[:, max(kept.shape[1] - 2 * half, 0) :]
