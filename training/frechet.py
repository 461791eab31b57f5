"""Fréchet audio distance: how far a set of clips is from a reference set of studio music, in a space of embeddings.

Kilgour et al., "Fréchet Audio Distance: a reference-free metric for evaluating music enhancement algorithms"
(Interspeech 2019). A value means something only beside its embedding, its reference set and its number of clips; these
belong to every value here, and so do the floor (the clean test set against the reference) and the ceiling (the input).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers.audio_utils import mel_filter_bank

from pipeline_aud2studio.audio import Waveform, loudness_lufs, resample
from training import musicnn

Vectors = NDArray[np.float32]  # (windows, dimensions)
LOUDNESS_LUFS = -14.0  # about that of the released music which the networks were trained on
REFERENCES = Path(__file__).parent / "benchmark"
MEL_RATE, MEL_FFT, MEL_HOP, MEL_BANDS = 44_100, 2048, 1024, 64
MEL_RANGE_HZ, MEL_FLOOR_DB = (30.0, 20_000.0), -80.0
RESAMPLES = 200


@dataclass(frozen=True)
class Embedding:
    """A way to turn sound into vectors.

    Attributes:
        embed: mono (samples,) at `sample_rate` and -14 LUFS -> (windows, dimensions).
        version: text that changes when the vectors do.
    """

    name: str
    title: str
    sample_rate: int
    version: str
    embed: Callable[[NDArray[np.float32]], Vectors]


@dataclass(frozen=True)
class Gaussian:
    """Mean (dimensions,) and covariance (dimensions, dimensions) of embedded windows, and what they are of."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    clips: int
    windows: int
    title: str = ""


def log_mel_windows(waveform: NDArray[np.float32]) -> Vectors:
    """Mean level in dB of 64 mel bands from 30 Hz to 20 kHz in every second: the full-band view, without a network."""
    window = torch.hann_window(MEL_FFT)
    spectrum = torch.stft(torch.from_numpy(waveform), MEL_FFT, MEL_HOP, window=window, return_complex=True)
    bank = mel_filter_bank(MEL_FFT // 2 + 1, MEL_BANDS, *MEL_RANGE_HZ, MEL_RATE, "slaney", mel_scale="slaney")
    power = torch.from_numpy(bank.T.astype(np.float32)) @ spectrum.abs().square()
    levels_db = (10 * torch.log10(power + 1e-20)).clamp_min(MEL_FLOOR_DB)
    per_second = MEL_RATE // MEL_HOP
    seconds = max(1, levels_db.shape[-1] // per_second)
    whole = levels_db[:, : seconds * per_second]
    return whole.reshape(MEL_BANDS, seconds, -1).mean(-1).T.contiguous().numpy()


def _by_package(name: str, sample_rate: int, waveform: NDArray[np.float32]) -> Vectors:
    """Embeddings of the package `frechet-audio-distance`, which downloads the network when it is first used."""
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise ValueError(
            f"the embedding {name} needs a network to download its weights, and HF_HUB_OFFLINE=1 forbids it"
        )
    try:
        from frechet_audio_distance import FrechetAudioDistance
    except ImportError as error:
        raise ValueError(
            f"the embedding {name} needs the package frechet-audio-distance, which is not installed here ({error}):"
            " use musicnn or log_mel, which work offline"
        ) from error
    if name not in _downloaded:
        settings = {"submodel_name": "music_audioset"} if name == "clap" else {}
        try:
            _downloaded[name] = FrechetAudioDistance(model_name=name, sample_rate=sample_rate, **settings)
        except OSError as error:  # of urllib
            raise ValueError(f"the weights of the embedding {name} cannot be downloaded: {error}") from error
    return np.atleast_2d(_downloaded[name].get_embeddings([waveform], sample_rate)).astype(np.float32)


_downloaded: dict[str, Any] = {}

EMBEDDINGS = {
    embedding.name: embedding
    for embedding in (
        Embedding("musicnn", "MSD_musicnn, 200 dimensions, 16 kHz, windows of 3 s", 16_000, "1", musicnn.embed),
        Embedding("log_mel", "log-mel, 64 bands to 20 kHz, windows of 1 s", MEL_RATE, "1", log_mel_windows),
        Embedding("vggish", "VGGish, 128 dimensions, 16 kHz", 16_000, "1", lambda w: _by_package("vggish", 16_000, w)),
        Embedding("clap", "LAION-CLAP music_audioset, 48 kHz", 48_000, "1", lambda w: _by_package("clap", 48_000, w)),
    )
}
OFFLINE = ("musicnn", "log_mel")


def embed(waveform: Waveform, sample_rate: int, name: str) -> Vectors:
    """Embeddings of a clip (channels, samples), loudness-normalised and mixed down -> (windows, dimensions).

    Raises:
        ValueError: for an unknown embedding, one that needs a network and has none, or a clip that is silent or short.
    """
    if name not in EMBEDDINGS:
        raise ValueError(f"unknown embedding {name!r}: choose from {', '.join(EMBEDDINGS)}")
    embedding = EMBEDDINGS[name]
    loudness = loudness_lufs(waveform, sample_rate)
    if not np.isfinite(loudness):
        raise ValueError("a silent clip has no embedding")
    louder = waveform * np.float32(10 ** ((LOUDNESS_LUFS - loudness) / 20))
    mono = resample(louder.mean(axis=0, keepdims=True), sample_rate, embedding.sample_rate)[0]
    return embedding.embed(mono)


def gaussian(clips: Sequence[Vectors], title: str = "") -> Gaussian:
    """Of all windows of all clips."""
    windows = np.concatenate(clips).astype(np.float64)
    if len(windows) < 2:
        raise ValueError("a Fréchet distance needs at least two windows of sound")
    return Gaussian(windows.mean(axis=0), np.cov(windows, rowvar=False), len(clips), len(windows), title)


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """Squared Fréchet distance of two Gaussians, in squared units of the embedding; 0 is equal.

    Dowson and Landau (1982): |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). The trace of the root is the sum of the
    roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric: no complex numbers to throw away.
    """
    root = _root(one.covariance)
    return _distance(root, one, other)


def _distance(root: NDArray[np.float64], one: Gaussian, other: Gaussian) -> float:
    inner = np.linalg.eigvalsh(root @ other.covariance @ root)
    between = np.square(one.mean - other.mean).sum() + np.trace(one.covariance) + np.trace(other.covariance)
    return float(between - 2 * np.sqrt(np.maximum(inner, 0.0)).sum())


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def compare_sets(
    reference: Gaussian, sets: Mapping[str, Sequence[Vectors]], floor: str, ceiling: str, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Distance of every set of clips to the reference, with a 95 % interval, and how much of the gap it closes.

    The interval is that of a bootstrap over clips, the same drawn clips for every set. Drawing some clips twice makes
    distances larger; the interval is moved back by their mean excess, so that it stands around the value.

    Args:
        sets: embedded clips, the same ones in the same order, by the name of the system.
        floor, ceiling: the names of the clean clips and of the recordings.

    Returns:
        By system: `value`, `low`, `high`, `clips`, `windows`, and where floor and ceiling are there `closed`,
        `closed_low`, `closed_high`, as shares: 1 is the floor, 0 the ceiling, less than 0 worse than the input.
    """
    root = _root(reference.covariance)
    counts = {len(clips) for clips in sets.values()}
    if len(counts) != 1:
        raise ValueError("the sets have different numbers of clips")
    picks = np.random.default_rng(seed).integers(max(counts), size=(RESAMPLES, max(counts)))
    values, drawn = {}, {}
    for name, clips in sets.items():
        values[name] = _distance(root, reference, gaussian(clips))
        drawn[name] = np.array([_distance(root, reference, gaussian([clips[i] for i in pick])) for pick in picks])
    report: dict[str, dict[str, float]] = {}
    for name, clips in sets.items():
        low, high = _interval(values[name], drawn[name])
        windows = sum(len(vectors) for vectors in clips)
        report[name] = {"value": values[name], "low": low, "high": high, "clips": len(clips), "windows": windows}
        if floor in sets and ceiling in sets:
            closed = (values[ceiling] - values[name]) / (values[ceiling] - values[floor])
            shares = (drawn[ceiling] - drawn[name]) / (drawn[ceiling] - drawn[floor])
            low, high = _interval(closed, shares)
            report[name] |= {"closed": closed, "closed_low": low, "closed_high": high}
    return report


def _interval(value: float, drawn: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(drawn, [0.025, 0.975]) - drawn.mean()
    return float(value + low), float(value + high)


def save_reference(path: Path, statistics: Gaussian) -> None:
    """Write all or nothing."""
    tensors = {"mean": statistics.mean.astype(np.float32), "covariance": statistics.covariance.astype(np.float32)}
    notes = {"title": statistics.title, "clips": str(statistics.clips), "windows": str(statistics.windows)}
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, part, notes)
    os.replace(part, path)


def load_reference(name: str, folder: Path = REFERENCES) -> Gaussian:
    """The reference set's statistics in an embedding.

    Raises:
        ValueError: if they have not been computed.
    """
    path = folder / f"reference_{name}.safetensors"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: make it with `python -m training.reference_set --embedding {name}`")
    with safe_open(path, "numpy") as file:
        notes = file.metadata()
        mean, covariance = (file.get_tensor(key).astype(np.float64) for key in ("mean", "covariance"))
    return Gaussian(mean, covariance, int(notes["clips"]), int(notes["windows"]), notes["title"])
