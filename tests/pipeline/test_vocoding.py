import math

import librosa
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from pipeline_aud2studio import Aud2StudioPipeline
from pipeline_aud2studio.spectral import MEL_FLOOR, BandTransform
from pipeline_aud2studio.vocoding import VOCODER_BLOCK, VOCODER_CONTEXT, above_floor, griffin_lim, refine, unit, vocode

RATE = 44100


@pytest.fixture(scope="module")
def transform() -> BandTransform:
    return BandTransform()


def chord(frames: int) -> torch.Tensor:
    """Four decaying tones and a little noise: (1, frames * 256)."""
    times = torch.arange(frames * 256) / RATE
    tones = sum(torch.sin(2 * math.pi * pitch * times) for pitch in (220.0, 277.2, 329.6, 1318.5))
    noise = torch.randn(times.shape, generator=torch.Generator().manual_seed(0))
    return (0.1 * tones * torch.exp(-2 * (times % 0.4)) + 0.001 * noise)[None]


def test_magnitudes_reproduce_the_mel_as_librosas_do(transform: BandTransform) -> None:
    mel = transform.log_mel(transform.stft(chord(18)[0])).exp()
    magnitude = transform.magnitude_from_mel(mel).numpy()
    filters = librosa.filters.mel(sr=RATE, n_fft=1024, n_mels=128)
    reference = librosa.util.nnls(filters, mel.numpy().astype(np.float64))
    error, best = (
        np.linalg.norm(filters @ each - mel.numpy()) / np.linalg.norm(mel) for each in (magnitude, reference)
    )
    assert magnitude.min() >= 0
    assert error < best + 0.02


def test_an_stft_is_a_fixed_point(transform: BandTransform) -> None:
    waveform = chord(40)
    stft = transform.stft(waveform)
    again = griffin_lim(stft.abs(), unit(stft), transform, waveform.shape[-1], num_iterations=4)
    assert_allclose(again, waveform, atol=1e-5)


def test_without_momentum_every_iteration_comes_closer(transform: BandTransform) -> None:
    """Griffin and Lim's theorem (1984): the distance to the magnitudes does not grow. Momentum shrinks it faster."""
    waveform = chord(60)
    wanted = transform.stft(waveform).abs()
    angle = 2 * math.pi * torch.rand(wanted.shape, generator=torch.Generator().manual_seed(1))
    phase = torch.polar(torch.ones_like(angle), angle)

    def distance(iterations: int, momentum: float) -> float:
        # To what the STFT of the waveform with these phases has; the edges, where it is no projection, left out.
        found = griffin_lim(wanted, phase, transform, waveform.shape[-1], iterations, momentum)
        inside = slice(4, -4)
        return float(torch.linalg.norm((transform.stft(found).abs() - wanted)[..., inside]))

    plain = [distance(iterations, 0.0) for iterations in (0, 1, 2, 4, 8, 16, 32)]
    assert all(later < earlier for earlier, later in zip(plain[:-1], plain[1:], strict=True))
    assert distance(32, 0.99) < 0.9 * plain[-1]


def test_the_floor_is_silence() -> None:
    mel = MEL_FLOOR * torch.tensor([1.0, 1.5, 2.0, 100.0])
    assert_allclose(above_floor(mel.log()), MEL_FLOOR * torch.tensor([0.0, 0.75, 2.0, 100.0]), rtol=1e-4, atol=1e-10)


def test_a_refined_waveform_has_the_mel(transform: BandTransform) -> None:
    clean = chord(120)
    log_mel = transform.log_mel(transform.stft(clean))
    rough = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2)) * clean.std()
    refined = refine(rough, log_mel, transform, num_iterations=32)
    before, after = ((transform.log_mel(transform.stft(each)) - log_mel).abs().mean() for each in (rough, refined))
    assert before > 1.5 and after < 0.15  # nats; 1.3 dB


def test_blocks_that_are_refined_apart_fit_together(
    toy_pipeline: Aud2StudioPipeline, transform: BandTransform
) -> None:
    frames = VOCODER_BLOCK + 3 * VOCODER_CONTEXT
    log_mel = transform.log_mel(transform.stft(chord(frames)))

    def refined(waveform: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        return refine(waveform, mel, transform, num_iterations=32)

    with torch.inference_mode():
        in_blocks = vocode(toy_pipeline.vocoder, log_mel, "cpu", refined)
        whole = refined(toy_pipeline.vocoder(log_mel).sample[:, 0], log_mel)
    assert in_blocks.shape == whole.shape
    seam = VOCODER_BLOCK * transform.hop_length
    around = slice(seam - 8 * transform.hop_length, seam + 8 * transform.hop_length)
    error = (in_blocks - whole)[:, around].square().mean() / whole[:, around].square().mean()
    assert 10 * torch.log10(error) < -50  # of random weights; of the shipped ones it is -93 dB


def test_the_pipeline_refines_what_it_vocodes(toy_pipeline: Aud2StudioPipeline, tmp_path) -> None:
    toy_pipeline.save_pretrained(tmp_path)
    refining = Aud2StudioPipeline.from_pretrained(tmp_path, griffin_lim_iterations=8)
    refining.save_pretrained(tmp_path)
    refining = Aud2StudioPipeline.from_pretrained(tmp_path)
    assert refining.config.griffin_lim_iterations == 8
    waveform = chord(100)[0].numpy()
    vocoded, refined = (
        pipeline(waveform, RATE, 1, "vocoder", generator=torch.Generator().manual_seed(0)).audios[0]
        for pipeline in (toy_pipeline, refining)
    )
    faithful = [
        pipeline(waveform, RATE, generator=torch.Generator().manual_seed(0)).audios[0]
        for pipeline in (toy_pipeline, refining)
    ]
    assert refined.shape == vocoded.shape
    assert np.abs(refined - vocoded).max() > 0.01
    np.testing.assert_array_equal(*faithful)
