"""What the shipped checkpoint promises, on the example recording and on signals with a known answer."""

from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import scipy.signal
import soundfile
import torch

from pipeline_aud2studio import Aud2StudioPipeline, shipped_weights

EXAMPLES = Path(__file__).parents[2] / "spaces_app" / "examples"
MAX_BYTES = 40_000_000


@pytest.fixture(scope="module")
def pipeline() -> Aud2StudioPipeline:
    pipeline = Aud2StudioPipeline.from_pretrained(shipped_weights(), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def example() -> tuple[np.ndarray, np.ndarray, int]:
    """The example: degraded, what is wanted (channels, samples), sampling rate."""
    degraded, sampling_rate = soundfile.read(EXAMPLES / "degraded.flac", dtype="float32", always_2d=True)
    clean, _ = soundfile.read(EXAMPLES / "clean.flac", dtype="float32", always_2d=True)
    return degraded.T, clean.T, sampling_rate


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def sdr(estimate: np.ndarray, target: np.ndarray) -> float:
    """Scale-invariant SDR in dB over all channels."""
    projection = np.sum(estimate * target) / np.sum(target**2) * target
    return float(10 * np.log10(np.sum(projection**2) / np.sum((estimate - projection) ** 2)))


def test_checkpoint_is_small_and_only_safetensors():
    files = [path for path in shipped_weights().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}


def test_example_comes_out_better_at_its_own_loudness(pipeline, example):
    degraded, clean, sampling_rate = example
    restored = pipeline(degraded, sampling_rate, generator=seeded()).audios[0]
    assert restored.shape == degraded.shape
    assert sdr(restored, clean) > sdr(degraded, clean) + 0.5
    meter = pyloudnorm.Meter(sampling_rate)
    change = meter.integrated_loudness(restored.T) - meter.integrated_loudness(degraded.T)
    assert abs(change) < 0.5


@pytest.mark.slow
def test_chunk_grid_shows_below_the_stated_bound(pipeline, example):
    """Chunks that begin elsewhere change the result by less than -20 dB; their blocks of prediction are the same."""
    degraded, _, sampling_rate = example
    whole = pipeline(degraded, sampling_rate, generator=seeded()).audios[0]
    pipeline.register_to_config(overlap_frames=150)
    try:
        other = pipeline(degraded, sampling_rate, generator=seeded()).audios[0]
    finally:
        pipeline.register_to_config(overlap_frames=32)
    assert sdr(other, whole) > 20


@pytest.mark.slow
def test_vocoder_read_out_is_the_same_music(pipeline, example):
    """The log-spectrum of the synthesised restoration follows the clean one; a vocoder on a wrong mel would not."""
    degraded, clean, sampling_rate = example
    synthesised = pipeline(degraded, sampling_rate, 4, "vocoder", generator=seeded()).audios[0]

    def log_bands(waveform: np.ndarray) -> np.ndarray:
        _, _, stft = scipy.signal.stft(waveform[0], sampling_rate, nperseg=2048)
        bands = np.array([part.mean(0) for part in np.array_split(np.abs(stft[4:372]), 32)])
        return np.log(bands + 1e-4).flatten()

    assert np.corrcoef(log_bands(synthesised), log_bands(clean))[0, 1] > 0.8
