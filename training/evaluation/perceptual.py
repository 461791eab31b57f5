"""Metrics that model a listener: SRMR, PESQ where somebody speaks, and the Fréchet audio distance of sets of clips."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy import fft, signal
from torch import nn
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank

from pipeline_aud2studio.audio import Waveform, loudness_lufs, resample

from .metrics import checked

SAMPLE_RATE = 16_000  # of all three
# A talker pauses: shares of 10 ms frames between 200 Hz and 4 kHz, and of the envelope's modulation at 2 to 8 Hz.
SPEECH_WINDOW_S, SPEECH_HOP_S = 3.0, 1.5
SPEECH_BAND_HZ, SYLLABLES_HZ = (200.0, 4000.0), (2.0, 8.0)
LOW_SHARE, PAUSE_SHARE, SYLLABLE_SHARE = 0.25, 0.15, 0.1
COCHLEAR_FILTERS, LOWEST_HZ = 23, 125.0
MODULATION_HZ = 4.0 * (128.0 / 4.0) ** (np.arange(8) / 7)
MODULATION_Q = 2.0
WINDOW_S, HOP_S = 0.256, 0.064
EAR_Q, LEAST_BANDWIDTH_HZ = 9.26449, 24.7  # Glasberg and Moore (1990)


def pesq_on_speech(estimate: torch.Tensor, target: torch.Tensor, sample_rate: int) -> list[float]:
    """Computes wide-band PESQ (MOS-LQO, 1.04 to 4.64) of every stretch of the clean target in which somebody speaks.

    ITU-T P.862.2, by the package `pesq`, on the downmix at 16 kHz. Of music it says nothing: the list is empty then.
    """
    from pesq import pesq

    estimate, target = checked(estimate, target)
    reference, degraded = (
        resample(waveform.mean(0, keepdim=True).numpy(), sample_rate, SAMPLE_RATE)[0].astype(np.float64)
        for waveform in (target, estimate)
    )
    stretches = speech_segments(reference)
    return [float(pesq(SAMPLE_RATE, reference[start:stop], degraded[start:stop], "wb")) for start, stop in stretches]


def speech_segments(waveform: NDArray[np.floating]) -> list[tuple[int, int]]:
    """Finds where one person talks, as (start, stop) in samples of a clean waveform (samples,) at 16 kHz.

    Talk is full of pauses and has syllables, which hardly any music has (Scheirer and Slaney, "Construction and
    evaluation of a robust multifeature speech/music discriminator", ICASSP 1997). Of windows of 3 s it found 93 % of
    recorded speech without background, and called 0.7 % of music without singing speech.
    """
    window, hop = round(SPEECH_WINDOW_S * SAMPLE_RATE), round(SPEECH_HOP_S * SAMPLE_RATE)
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
    frequencies, _, spectrum = signal.stft(window, SAMPLE_RATE, nperseg=512, noverlap=512 - 160)
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


def srmr(waveform: NDArray[np.float32]) -> float:
    """Computes the speech-to-reverberation modulation energy ratio: no unit, larger is drier, 0 or more.

    How much of a signal's modulation is slow, as in dry speech, and how much fast, as reverberation makes it: Falk,
    Zheng and Chan, "A non-intrusive quality and intelligibility measure of reverberant and dereverberated speech"
    (IEEE TASLP 18, 2010), as the SRMR Toolbox and SRMRpy compute it, without their normalisation for talkers.

    Its flaw here: it was made for speech. What makes music fast, such as drums, tremolo, distortion and beating
    intervals, counts as reverberation; a gate that chops the sound counts as dryness. Only the change between two
    versions of the same clip means something, and not much without another metric that agrees.

    Args:
        waveform: (samples,) at 16 kHz, a window of 0.256 s or more. The level does not count.

    Raises:
        ValueError: if the waveform is shorter or silent.
    """
    window = signal.get_window("hamming", math.ceil(WINDOW_S * SAMPLE_RATE))  # periodic
    if waveform.shape[-1] < len(window):
        raise ValueError(f"SRMR needs {WINDOW_S} s of sound, not {waveform.shape[-1] / SAMPLE_RATE:.3f} s")
    if not np.any(waveform):
        raise ValueError("the waveform is silent: it has no modulation")
    hop = math.ceil(HOP_S * SAMPLE_RATE)
    centres_hz = centre_frequencies()
    energy = np.stack([_modulation_energy(waveform, centre_hz, window, hop) for centre_hz in centres_hz])
    # The bandwidth in which 90 % of the energy lies, counted from below, decides how many fast bands count.
    share = np.cumsum(energy.sum(axis=1)[::-1]) / energy.sum()
    bandwidth_hz = _erb_hz(centres_hz[::-1][int(np.argmax(share > 0.9))])
    half_widths_hz = np.tan(np.pi * MODULATION_HZ / SAMPLE_RATE) / MODULATION_Q * SAMPLE_RATE / (2 * np.pi)
    lower_edges_hz = MODULATION_HZ - half_widths_hz
    used = max(5, int(np.searchsorted(lower_edges_hz, bandwidth_hz, side="right")))
    return float(energy[:, :4].sum() / energy[:, 4:used].sum())


def centre_frequencies() -> NDArray[np.float64]:
    """Lists the gammatone filters' centres in Hz, equally far apart on the ERB scale, the highest first: (23,)."""
    offset = EAR_Q * LEAST_BANDWIDTH_HZ
    steps = np.arange(1, COCHLEAR_FILTERS + 1) / COCHLEAR_FILTERS
    highest = SAMPLE_RATE / 2
    return (highest + offset) * ((LOWEST_HZ + offset) / (highest + offset)) ** steps - offset


def _erb_hz(centre_hz: float) -> float:
    return float(centre_hz / EAR_Q + LEAST_BANDWIDTH_HZ)


def gammatone(waveform: NDArray[np.float32], centre_hz: float) -> NDArray[np.float64]:
    """Filters the waveform (samples,) by a gammatone filter of 4th order and unit gain at its centre.

    Slaney, "An efficient implementation of the Patterson-Holdsworth auditory filter bank" (Apple TR 35, 1993): four
    sections with the same poles, one zero each.
    """
    step = 1 / SAMPLE_RATE
    decay = 1.019 * 2 * np.pi * _erb_hz(centre_hz)
    turn = 2 * np.pi * centre_hz * step
    shrink = np.exp(-decay * step)
    poles = [1.0, -2 * shrink * np.cos(turn), shrink**2]
    zeros = [
        shrink * (np.cos(turn) + sign * np.sqrt(3 + inner * 2**1.5) * np.sin(turn))
        for sign, inner in ((1, 1), (-1, 1), (1, -1), (-1, -1))
    ]
    sections = np.array([[step, -step * zero, 0.0, *poles] for zero in zeros])
    gain = np.abs(signal.sosfreqz(sections, [centre_hz], fs=SAMPLE_RATE)[1][0])
    return signal.sosfilt(sections, waveform.astype(np.float64)) / gain


def _modulation_energy(
    waveform: NDArray[np.float32], centre_hz: float, window: NDArray[np.float64], hop: int
) -> NDArray[np.float64]:
    """Mean energy of a window of the envelope in each modulation band, (8,)."""
    band = gammatone(waveform, centre_hz)
    envelope = np.abs(signal.hilbert(band, fft.next_fast_len(len(band)))[: len(band)])
    angles = np.tan(np.pi * MODULATION_HZ / SAMPLE_RATE)
    energies = []
    for angle in angles:
        width = angle / MODULATION_Q
        numerator = [width, 0.0, -width]
        denominator = [1 + width + angle**2, 2 * angle**2 - 2, 1 - width + angle**2]
        modulation = signal.lfilter(numerator, denominator, envelope)
        frames = np.lib.stride_tricks.sliding_window_view(modulation, len(window))[::hop]
        energies.append(np.square(frames * window).sum(axis=-1).mean())
    return np.array(energies)


# --- Fréchet audio distance ------------------------------------------------------------------------------------------
#
# How far two sets of clips are from each other in the space of MSD_musicnn's embeddings: Kilgour et al., "Fréchet
# Audio Distance: a reference-free metric for evaluating music enhancement algorithms" (Interspeech 2019). A value
# means something only beside its embedding and its number of clips, and beside that of the recordings.

Vectors = NDArray[np.float32]  # (windows, dimensions)
LOUDNESS_LUFS = -14.0  # about that of the released music which the network was trained on
WEIGHTS = Path(__file__).parent / "musicnn" / "musicnn.safetensors"
FFT, HOP, BANDS = 512, 256, 96
PATCH_FRAMES = 187  # 3 s, what it was trained on
EMBEDDING = 200
TEMPORAL_FRAMES = (128, 64, 32)
BATCH = 8
BN_EPSILON = 1e-3  # TensorFlow's default


class Gaussian(NamedTuple):
    """Mean (dimensions,) and covariance (dimensions, dimensions) of embedded windows."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


def embed(waveform: Waveform, sample_rate: int) -> Vectors:
    """Embeds a clip (channels, samples), loudness-normalised and mixed down -> (windows, 200).

    Raises:
        ValueError: For a clip that is silent or shorter than 3 s.
    """
    loudness = loudness_lufs(waveform, sample_rate)
    if not np.isfinite(loudness):
        raise ValueError("a silent clip has no embedding")
    louder = waveform * np.float32(10 ** ((LOUDNESS_LUFS - loudness) / 20))
    return embed_windows(resample(louder.mean(axis=0, keepdims=True), sample_rate, SAMPLE_RATE)[0])


def gaussian(clips: Sequence[Vectors]) -> Gaussian:
    """Fits a Gaussian to all windows of all clips."""
    windows = np.concatenate(clips).astype(np.float64)
    if len(windows) < 2:
        raise ValueError("a Fréchet distance needs at least two windows of sound")
    return Gaussian(windows.mean(axis=0), np.cov(windows, rowvar=False))


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """Computes the squared Fréchet distance of two Gaussians, in squared units of the embedding; 0 is equal.

    Dowson and Landau (1982): |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). The trace of the root is the sum of the
    roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric: no complex numbers to throw away.
    """
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ other.covariance @ root)
    between = np.square(one.mean - other.mean).sum() + np.trace(one.covariance) + np.trace(other.covariance)
    return float(between - 2 * np.sqrt(np.maximum(inner, 0.0)).sum())


# --- MSD_musicnn -----------------------------------------------------------------------------------------------------


class Musicnn(nn.Module):
    """Embeds log-mel patches (batch, frames, 96) -> (batch, 200): the last layer before the tags.

    Pons and Serra, "musicnn: pre-trained convolutional neural networks for music audio tagging" (ISMIR 2019, late
    breaking). The weights (ISC licence) come with the repository. They were made of the variables in the wheel musicnn
    0.1.0 (`MSD_musicnn`): a convolution's kernel (height, width, in, out) with its axes in the order (3, 2, 0, 1), a
    dense one's transposed, and batch normalisation's gamma, beta, moving mean and moving variance as weight, bias,
    running mean and running variance; layers are numbered in the order of the modules below.
    """

    def __init__(self) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm2d(1, BN_EPSILON)
        # Filters over much of the spectrum for timbre, and over much of the time for rhythm.
        self.timbral = nn.ModuleList(_layer(1, 204, (7, height)) for height in (38, 67))
        self.temporal = nn.ModuleList(_layer(1, 51, (length, 1)) for length in TEMPORAL_FRAMES)
        self.middle = nn.ModuleList(_layer(1, 64, (7, width)) for width in (561, 64, 64))
        self.pooled_norm = nn.BatchNorm1d(1506, BN_EPSILON)
        self.dense = nn.Linear(1506, EMBEDDING)
        self.embedding_norm = nn.BatchNorm1d(EMBEDDING, BN_EPSILON)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        normal = self.input_norm(patches[:, None])
        padded = functional.pad(normal, (0, 0, 3, 3))
        features = [layer(padded).amax(-1) for layer in self.timbral]
        for layer, length in zip(self.temporal, TEMPORAL_FRAMES, strict=True):
            same = functional.pad(normal, (0, 0, (length - 1) // 2, length // 2))  # TensorFlow's "same"
            features.append(layer(same).amax(-1))
        flow = torch.cat(features, 1)  # (batch, channels, frames)
        stack = [flow]
        for number, layer in enumerate(self.middle):
            image = functional.pad(stack[-1].transpose(1, 2)[:, None], (0, 0, 3, 3))
            made = layer(image)[..., 0]
            stack.append(made + stack[-1] if number else made)
        image = torch.cat(stack, 1)
        pooled = torch.stack([image.amax(-1), image.mean(-1)], -1).flatten(1)  # in pairs
        return self.embedding_norm(functional.relu(self.dense(self.pooled_norm(pooled))))


def _layer(channels: int, filters: int, kernel: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, filters, kernel), nn.ReLU(), nn.BatchNorm2d(filters, BN_EPSILON))


def log_mel(waveform: NDArray[np.float32]) -> torch.Tensor:
    """Turns (samples,) at 16 kHz into (frames, 96): `log10(1 + 10000 power)`, the power as librosa 0.7 has it."""
    window = torch.hann_window(FFT)
    spectrum = torch.stft(torch.from_numpy(waveform), FFT, HOP, window=window, pad_mode="reflect", return_complex=True)
    power = _filters() @ spectrum.abs().square()
    return torch.log10(1 + 10_000 * power).T


@functools.cache
def _filters() -> torch.Tensor:
    """(96, 257)"""
    bank = mel_filter_bank(FFT // 2 + 1, BANDS, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, "slaney", mel_scale="slaney")
    return torch.from_numpy(bank.T.astype(np.float32))


@functools.cache
def _model() -> Musicnn:
    model = Musicnn()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


@torch.no_grad()
def embed_windows(waveform: NDArray[np.float32], hop_s: float = 1.5) -> NDArray[np.float32]:
    """Embeds windows of 3 s, one every `hop_s` -> (windows, 200).

    Args:
        waveform: (samples,) at 16 kHz, 3 s or more, at a music file's level.

    Raises:
        ValueError: if it is shorter.
    """
    frames = log_mel(waveform)
    if len(frames) < PATCH_FRAMES:
        raise ValueError(f"an embedding needs 3 s of sound, not {len(waveform) / SAMPLE_RATE:.2f} s")
    patches = frames.unfold(0, PATCH_FRAMES, round(hop_s * SAMPLE_RATE / HOP)).transpose(1, 2)
    return torch.cat([_model()(batch) for batch in patches.split(BATCH)]).numpy()
