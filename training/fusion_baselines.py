"""Ways to make one recording of several aligned ones, without a network: what our fusion is compared with.

All take recordings of one shape (channels, samples), float32, the reference first, and give a result of that shape at
the reference's level. Channels are treated alike: the left one of a result is made of the left ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from pipeline_aud2studio.takes import level_gain, rms
from training.baselines import WPE_FFT, WPE_HOP, Waveform, nara_wpe

VERSION = "1"  # goes up with every change of what comes out
SMOOTHING_FRAMES = 21  # over which spectra are averaged: 0.24 s at 44.1 kHz
TINY = 1e-20


def at_one_level(takes: Sequence[Waveform]) -> NDArray[np.float32]:
    """The takes (takes, channels, samples), all with the reference's RMS: devices differ, what they heard is one."""
    gains = [level_gain(rms(take)) / level_gain(rms(takes[0])) for take in takes]
    return np.stack([np.float32(gain) * take for gain, take in zip(gains, takes, strict=True)])


def aligned_mean(takes: Sequence[Waveform], sample_rate: int) -> Waveform:
    """The plain mean: what all takes share stays, independent noise falls by 3 dB when their number doubles."""
    return at_one_level(takes).mean(axis=0)


def coherence_weighted(takes: Sequence[Waveform], sample_rate: int) -> Waveform:
    """The mean of STFTs in which every bin of a take weighs as much as it agrees with the other takes.

    Y = 1/M sum_m W_m X_m, W_m = 1/(M-1) sum_{n != m} |P_mn| / sqrt(P_mm P_nn), with P_mn the running mean of
    X_m conj(X_n) over 21 frames. For two takes it is what J. B. Allen, D. A. Berkley and J. Blauert do in
    "Multimicrophone signal-processing technique to remove room reverberation from speech signals" (JASA 62, 1977): add
    the co-phased microphones and weigh every bin by their normalised cross-correlation. With more of them, a take that
    agrees with nobody, because somebody claps beside it, counts less than the others. STFT 2048/512, Hann window.
    """
    if len(takes) == 1:
        return takes[0]
    window = torch.hann_window(WPE_FFT)
    levelled = torch.from_numpy(at_one_level(takes))
    num_takes, channels, samples = levelled.shape
    spectra = torch.stft(levelled.flatten(0, 1), WPE_FFT, WPE_HOP, window=window, return_complex=True)
    spectra = spectra.unflatten(0, (num_takes, channels))
    weights = torch.from_numpy(agreement(spectra.numpy()))
    fused = (weights * spectra).mean(0)
    return torch.istft(fused, WPE_FFT, WPE_HOP, window=window, length=samples).numpy()


def agreement(spectra: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Mean coherence, 0 to 1, of every take with the others: (takes, channels, bins, frames) to the same shape."""
    num_takes = len(spectra)
    power = np.stack([_smoothed(np.square(np.abs(one))) for one in spectra])
    total = np.zeros_like(power)
    for one in range(num_takes):
        for other in range(one):
            cross = spectra[one] * spectra[other].conj()
            size = np.hypot(_smoothed(cross.real), _smoothed(cross.imag))
            coherence = size / np.sqrt(power[one] * power[other] + TINY)
            total[one] += coherence
            total[other] += coherence
    return np.minimum(total / (num_takes - 1), 1.0).astype(np.float32)


def _smoothed(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return uniform_filter1d(values, SMOOTHING_FRAMES, axis=-1, mode="nearest")


def wpe_together(takes: Sequence[Waveform], sample_rate: int, **settings: Any) -> Waveform:
    """Weighted prediction error with the channels of all takes together: the reference's channels of its result."""
    levelled = at_one_level(takes)
    dry = nara_wpe(levelled.reshape(-1, levelled.shape[-1]), sample_rate, **settings)
    return dry[: levelled.shape[1]]


def baselines(wpe_settings: Mapping[str, Any]) -> dict[str, Callable[[Sequence[Waveform], int], Waveform]]:
    """The ways by name; weighted prediction error with these settings."""
    return {
        "mean": aligned_mean,
        "coherence": coherence_weighted,
        "nara_wpe": lambda takes, sample_rate: wpe_together(takes, sample_rate, **wpe_settings),
    }
