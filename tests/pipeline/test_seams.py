"""Chunks, blocks and spools leave no seam: held against the whole at once, and against how smooth a tone is."""

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipeline_aud2studio import Aud2StudioPipeline, audio, shipped_weights
from pipeline_aud2studio.restore_file import Settings, restore, take_of_file

pytestmark = pytest.mark.slow

RATE = 48000  # not the model's: the resamplers have seams, too
SECONDS = 11.0  # two chunks of the shipped model, 20 of the toy, three blocks on the disk
BOUND = 1e-4  # -80 dBFS


def tone(times: np.ndarray) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * 440.0 * times)


def sweep(times: np.ndarray) -> np.ndarray:
    """From 50 Hz to 1 kHz, an octave each 2.5 s."""
    return 0.3 * np.sin(2 * np.pi * 50.0 * 2.5 / np.log(2) * (np.exp2(times / 2.5) - 1))


def silence(times: np.ndarray) -> np.ndarray:
    """A tone that fades out, and nothing for the rest."""
    return tone(times) * fade(0.9 - times)


def fade(times: np.ndarray) -> np.ndarray:
    """From nothing before 0 s to 1 after 0.1 s."""
    return np.sin(np.pi / 2 * np.clip(times / 0.1, 0, 1)) ** 2


def applause(times: np.ndarray) -> np.ndarray:
    """2000 claps: bursts of noise that ring for 3 ms."""
    rng = np.random.default_rng(0)
    claps = np.zeros(len(times))
    for start in rng.integers(0, len(times) - 1000, 2000):
        claps[start : start + 1000] += (
            rng.uniform(0.02, 0.1) * rng.standard_normal(1000) * np.exp(-np.arange(1000) / 150)
        )
    return claps


SIGNALS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    made.__name__: made for made in (tone, sweep, silence, applause)
}


@cache
def shipped() -> Aud2StudioPipeline:
    return Aud2StudioPipeline.from_pretrained(shipped_weights())


@pytest.fixture(params=["toy", "shipped"])
def pipeline(request: pytest.FixtureRequest, toy_pipeline: Aud2StudioPipeline) -> Aud2StudioPipeline:
    found = toy_pipeline if request.param == "toy" else shipped()
    found.set_progress_bar_config(disable=True)
    return found


def at_once(spectrum: np.ndarray, num_samples: int) -> np.ndarray:
    """Waveform (samples) of the whole spectrum (bins, frames), added up frame by frame in double precision."""
    n_fft, hop = 4096, 1024
    pad, num_frames = (n_fft - hop) // 2, spectrum.shape[-1]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    total, energy = np.zeros((2, num_frames * hop + 2 * pad))
    for index, frame in enumerate(np.fft.irfft(spectrum.T.astype(np.complex128), n_fft) * window):
        total[index * hop : index * hop + n_fft] += frame
        energy[index * hop : index * hop + n_fft] += window**2
    return total[pad : pad + num_samples] / energy[pad : pad + num_samples]


def jumps(waveform: np.ndarray) -> np.ndarray:
    """Height of the step that would explain the sixth difference at every sample, where there is only low music."""
    return np.abs(np.diff(waveform, 6)) / 10  # a step of one has sixth differences up to 10


@pytest.mark.parametrize("name", SIGNALS)
def test_no_seam_above_minus_80_dbfs(
    name: str, pipeline: Aud2StudioPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = np.arange(round(SECONDS * RATE)) / RATE
    # Faded at the ends: a recording that is cut off has an edge of its own there.
    signal = (SIGNALS[name](times) * fade(times) * fade(SECONDS - times)).astype(np.float32)
    soundfile.write(tmp_path / "i.wav", signal, RATE, subtype="FLOAT")
    sources, spectra, blocks = [], [], []
    restored_of, stream_of = pipeline._restored, pipeline.stream

    def observed_parts(*args: object) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        for first, spectrum, log_mel in restored_of(*args):
            spectra.append(spectrum[0].numpy())
            yield first, spectrum, log_mel

    def observed_stream(takes: list, *args: object, **kwargs: object) -> Iterator[np.ndarray]:
        sources.append(takes[0].read(0, takes[0].num_samples)[0])
        for block in stream_of(takes, *args, **kwargs):
            blocks.append(block[0])
            yield block

    monkeypatch.setattr(pipeline, "_restored", observed_parts)
    monkeypatch.setattr(pipeline, "stream", observed_stream)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        take = take_of_file(tmp_path / "i.wav", None, None, downmix=False)
        with restore([take], lambda: pipeline, Settings(is_float=True), tmp_path, pytest.fail) as done:
            restored = np.concatenate([*done.result.blocks(done.gain)], axis=1)[0]
            gain = done.gain

    assert len(blocks) >= 2
    whole = at_once(np.concatenate(spectra, axis=-1), sources[0].shape[-1])
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=BOUND / 10)
    expected = gain * audio.resample(whole[None].astype(np.float32), 44100, RATE, len(signal))[0]
    np.testing.assert_allclose(restored, expected, atol=BOUND / 10)
    if name != "applause":
        inner = restored[2048:-2048]  # the ends are no seams
        assert jumps(inner).max() < BOUND
        seam = round(sum(map(len, blocks[:1])) * RATE / 44100) - 2048
        stepped = inner + 2 * BOUND * (np.arange(len(inner)) >= seam)
        assert jumps(stepped).argmax() == pytest.approx(seam, abs=6)
    if name == "silence":
        assert np.abs(restored[RATE:]).max() < BOUND / 10
