"""From file to file in a stream: the result is that of the pipeline's call, and memory does not grow."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipeline_aud2studio import audio, files
from pipeline_aud2studio.files import Spool
from pipeline_aud2studio.restore_file import Settings, restore, take_of_file

RATE = 44100


def recording(channels: int, seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    times = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal((channels, len(times)))
    return (0.05 * noise * (1.1 + np.sin(3 * times))).astype(np.float32)


def restored(pipeline, paths: list[Path], folder: Path, settings: Settings) -> np.ndarray:
    takes = [take_of_file(path, None, None, downmix=False) for path in paths]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with restore(takes, lambda: pipeline, settings, folder, pytest.fail) as done:
            return np.concatenate([*done.result.blocks(done.gain)], axis=1)


def called(pipeline, takes: list[np.ndarray], rate: int, **settings) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pipeline(takes, rate, generator=torch.Generator().manual_seed(0), **settings).audios[0]


@pytest.mark.parametrize(("channels", "rate", "dryness"), [(2, 44100, 1.0), (1, 48000, 1.0), (2, 16000, 0.4)])
def test_a_file_is_restored_like_an_array(toy_pipeline, tmp_path, channels, rate, dryness):
    waveform = recording(channels, 7.0, rate)
    soundfile.write(tmp_path / "i.wav", waveform.T, rate, subtype="FLOAT")
    found = restored(toy_pipeline, [tmp_path / "i.wav"], tmp_path, Settings(dryness=dryness))
    expected = called(toy_pipeline, [waveform], rate, dryness=dryness)
    assert found.shape == expected.shape == waveform.shape
    np.testing.assert_allclose(found, expected, atol=1e-3)  # the levels come before or after the resampling


def test_several_takes_of_another_rate(toy_pipeline, tmp_path):
    takes = [recording(2, 4.0, RATE, 1), recording(1, 3.0, RATE, 2)]
    for number, take in enumerate(takes):
        soundfile.write(tmp_path / f"{number}.wav", take.T, RATE, subtype="FLOAT")
    found = restored(toy_pipeline, [tmp_path / "0.wav", tmp_path / "1.wav"], tmp_path, Settings())
    np.testing.assert_allclose(found, called(toy_pipeline, takes, RATE), atol=2e-5)


def test_finishing_follows_the_arrays(toy_pipeline, tmp_path):
    waveform = recording(2, 3.0)
    soundfile.write(tmp_path / "i.wav", waveform.T, RATE, subtype="FLOAT")
    settings = Settings(sample_rate=32000, tilt_db=4.0, is_float=True)
    found = restored(toy_pipeline, [tmp_path / "i.wav"], tmp_path, settings)
    plain = audio.resample(called(toy_pipeline, [waveform], RATE), RATE, 32000)
    expected = np.concatenate([*audio.tilted([plain], 32000, 4.0)], axis=1)
    np.testing.assert_allclose(found, expected, atol=5e-5)


@pytest.mark.parametrize("reconstruction", ["faithful", "prediction"])
@pytest.mark.parametrize("offset", [0.002, -0.1])
def test_an_offset_does_not_grow(toy_pipeline, tmp_path, reconstruction, offset):
    """Relative to the sound, whose loudness may be matched."""
    waveform = recording(2, 7.0) - recording(2, 7.0).mean(axis=1, keepdims=True) + np.float32(offset)
    soundfile.write(tmp_path / "i.wav", waveform.T, RATE, subtype="FLOAT")
    settings = Settings(reconstruction=reconstruction, is_float=True)
    found = restored(toy_pipeline, [tmp_path / "i.wav"], tmp_path, settings)
    for before, after in zip(waveform, found, strict=True):
        assert abs(after.mean()) <= 1.01 * abs(before.mean()) * max(1.0, after.std() / before.std()) + 1e-5


def test_nothing_stays_on_the_disk(toy_pipeline, tmp_path):
    soundfile.write(tmp_path / "i.wav", recording(1, 1.0).T, RATE)
    restored(toy_pipeline, [tmp_path / "i.wav"], tmp_path, Settings(dryness=0.5))
    assert [path.name for path in tmp_path.iterdir()] == ["i.wav"]


def test_a_spool_gives_back_what_it_was_given(tmp_path):
    waveform = recording(2, 9.0)
    spool = Spool(tmp_path, 2, RATE).extend(np.split(waveform, [5, 1000, 300_000], axis=1))
    assert spool.num_samples == waveform.shape[1]
    for start, stop in ((0, 1), (4, 7), (999, 300_100), (0, waveform.shape[1])):
        np.testing.assert_array_equal(spool.read(start, stop), waveform[:, start:stop])
    np.testing.assert_array_equal(np.concatenate([*spool.blocks(0.5)], axis=1), 0.5 * waveform)
    assert spool.meter.lufs == pytest.approx(audio.loudness_lufs(waveform, RATE), abs=1e-9)


def test_a_wav_file_beyond_4_gb_is_rf64(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_WAV_BYTES", 10_000)
    waveform = recording(2, 0.1)
    files.write(tmp_path / "long.wav", waveform, RATE, "PCM_24")
    files.write(tmp_path / "short.wav", waveform[:, :1000], RATE, "PCM_24")
    assert (tmp_path / "long.wav").read_bytes()[:4] == b"RF64"
    assert (tmp_path / "short.wav").read_bytes()[:4] == b"RIFF"
    np.testing.assert_allclose(files.read(tmp_path / "long.wav").waveform, waveform, atol=2**-23)


MEASURE = """
import resource, sys, warnings
from functools import cache
from pathlib import Path
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from pipeline_aud2studio import Aud2StudioPipeline
from pipeline_aud2studio.restore_file import Settings, restore, take_of_file
pipeline = Aud2StudioPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
take = take_of_file(Path(sys.argv[2]), None, None, False)
with restore([take], lambda: pipeline, Settings(), Path(sys.argv[3]), print) as done:
    samples = sum(block.shape[1] for block in done.result.blocks(done.gain))
print(samples, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_is_flat_in_the_length(toy_model, tmp_path):
    """Six times the length, at most 10 % more memory; in processes of their own, whose peaks are theirs."""
    peaks = []
    for minutes in (0.5, 3):
        path = tmp_path / f"{minutes}.wav"
        block = recording(1, 30.0, 16000)
        with soundfile.SoundFile(path, "w", 16000, 1, "PCM_16") as file:
            for _ in range(round(2 * minutes)):
                file.write(block.T)
        command = [sys.executable, "-c", MEASURE, str(toy_model), str(path), str(tmp_path)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        samples, peak_mb = done.stdout.split()[-2:]
        assert int(samples) == round(minutes * 60 * 16000)
        peaks.append(float(peak_mb))
    assert peaks[1] < 1.1 * peaks[0], peaks
