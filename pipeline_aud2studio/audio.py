"""What is done to waveforms: sampling rates, levels and loudness, and the two finishing touches (tilt, limiter).

Waveforms are float32 numpy arrays of shape (channels, samples), full scale is 1.0.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, TypeAlias

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
SILENCE_RMS_DB = -120.0  # below it there is nothing to restore
_BLOCK_FRAMES = 1 << 18


class LoudnessWarning(UserWarning):
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
