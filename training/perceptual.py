"""Metrics that model a listener, by packages of others: ViSQOL, Zimtohrli, and PESQ where somebody speaks.

All compare a restoration with the clean original. Waveforms are tensors (channels, samples) on one clock.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import signal

from pipeline_aud2studio.audio import loudness_lufs, resample
from training.evaluation.metrics import checked, level_matched

LISTENER_RATE = 48_000  # of ViSQOL's audio mode and of Zimtohrli
PESQ_RATE = 16_000
LISTENING_LUFS = -20.0  # Zimtohrli takes a full-scale sine for 80 dB SPL
# A talker pauses: shares of 10 ms frames between 200 Hz and 4 kHz, and of the envelope's modulation at 2 to 8 Hz.
SPEECH_WINDOW_S, SPEECH_HOP_S = 3.0, 1.5
SPEECH_BAND_HZ, SYLLABLES_HZ = (200.0, 4000.0), (2.0, 8.0)
LOW_SHARE, PAUSE_SHARE, SYLLABLE_SHARE = 0.25, 0.15, 0.1


def visqol(estimate: torch.Tensor, target: torch.Tensor, sample_rate: int) -> float:
    """ViSQOL in audio mode: MOS-LQO, 1 (bad) to about 4.7 (no difference).

    Chinen et al., "ViSQOL v3: an open source production ready objective speech and audio metric" (QoMEX 2020), by the
    package `visqol-python`, on the downmix at 48 kHz as the original does it. It was fitted to coded music, not to
    rooms and crowds: a ranking, not a mark. ViSQOL brings both signals to one level itself.
    """
    estimate, target = checked(estimate, target)
    reference, degraded = (_mono(waveform, sample_rate, LISTENER_RATE) for waveform in (target, estimate))
    return float(_visqol().measure_from_arrays(reference, degraded, LISTENER_RATE).moslqo)


@functools.cache
def _visqol() -> Any:
    from visqol import VisqolApi

    model = VisqolApi()
    model.create(mode="audio")
    return model


def zimtohrli(estimate: torch.Tensor, target: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Zimtohrli distance of every channel: 0 is no audible difference, about 0.1 a plain one; no unit.

    Alakuijala et al., "Zimtohrli: an efficient psychoacoustic audio similarity metric" (2025), by Google's package
    `zimtohrli`, at 48 kHz. It is made for just noticeable differences; the target is brought to -20 LUFS and the
    estimate to the target's level.
    """
    from zimtohrli import Pyohrli

    estimate, target = checked(estimate, target)
    gain = 10 ** ((LISTENING_LUFS - loudness_lufs(target.numpy(), sample_rate)) / 20)
    matched = level_matched(estimate, target)
    model = Pyohrli()
    pairs = zip(*(resample((gain * w).numpy(), sample_rate, LISTENER_RATE) for w in (matched, target)), strict=True)
    return torch.tensor([model.distance(one, other) for one, other in pairs], dtype=torch.float64)


def pesq_on_speech(estimate: torch.Tensor, target: torch.Tensor, sample_rate: int) -> list[float]:
    """Wide-band PESQ (MOS-LQO, 1.04 to 4.64) of every stretch of the clean target in which somebody speaks.

    ITU-T P.862.2, by the package `pesq`, on the downmix at 16 kHz. Of music it says nothing: the list is empty then.
    """
    from pesq import pesq

    estimate, target = checked(estimate, target)
    reference, degraded = (_mono(waveform, sample_rate, PESQ_RATE) for waveform in (target, estimate))
    stretches = speech_segments(reference)
    return [float(pesq(PESQ_RATE, reference[start:stop], degraded[start:stop], "wb")) for start, stop in stretches]


def speech_segments(waveform: NDArray[np.floating]) -> list[tuple[int, int]]:
    """Where one person talks, as (start, stop) in samples of a clean waveform (samples,) at 16 kHz, 3 s or longer.

    Talk is full of pauses and has syllables, which hardly any music has (Scheirer and Slaney, "Construction and
    evaluation of a robust multifeature speech/music discriminator", ICASSP 1997). Of windows of 3 s it found 93 % of
    recorded speech without background, and called 0.7 % of music without singing speech.
    """
    window, hop = round(SPEECH_WINDOW_S * PESQ_RATE), round(SPEECH_HOP_S * PESQ_RATE)
    found: list[tuple[int, int]] = []
    for start in range(0, len(waveform) - window + 1, hop):
        if not _is_speech(waveform[start : start + window]):
            continue
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], start + window)
        else:
            found.append((start, start + window))
    return found


def _is_speech(window: NDArray[np.floating]) -> bool:
    frequencies, _, spectrum = signal.stft(window, PESQ_RATE, nperseg=512, noverlap=512 - 160)
    low, high = SPEECH_BAND_HZ
    power = np.square(np.abs(spectrum[(frequencies > low) & (frequencies < high)])).sum(axis=0)
    if power.max() < 1e-9:
        return False
    smooth = np.convolve(power, [0.5, 0.5], mode="same")
    envelope = np.sqrt(power) / np.sqrt(power).mean() - 1
    modulation = np.square(np.abs(np.fft.rfft(envelope * np.hanning(len(envelope)))))
    rate_hz = np.fft.rfftfreq(len(envelope), 0.01)
    syllables = (rate_hz >= SYLLABLES_HZ[0]) & (rate_hz <= SYLLABLES_HZ[1])
    return bool(
        np.mean(smooth < 0.1 * smooth.mean()) >= LOW_SHARE
        and np.mean(power < 10**-2.5 * np.percentile(power, 95)) >= PAUSE_SHARE
        and modulation[syllables].sum() >= SYLLABLE_SHARE * modulation[rate_hz > 0.3].sum()
    )


def _mono(waveform: torch.Tensor, sample_rate: int, target_rate: int) -> NDArray[np.float64]:
    mono = resample(waveform.mean(0, keepdim=True).numpy(), sample_rate, target_rate)[0]
    return mono.astype(np.float64)
