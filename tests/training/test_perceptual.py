"""Listener models: their known end points, what they should notice, and where somebody speaks."""

import functools
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy import signal

from pipeline_aud2studio.audio import resample
from training.perceptual import PESQ_RATE, pesq_on_speech, speech_segments, visqol, zimtohrli

SAMPLE_RATE = 44_100
SPEECH = Path(__file__).parent / "speech.ogg"  # espeak-ng reads two sentences, 16 kHz


@functools.cache
def chords(seconds: float) -> torch.Tensor:
    """Two channels of decaying chords, a new one every half second."""
    rng = np.random.default_rng(0)
    music = np.zeros((2, round((seconds + 1) * SAMPLE_RATE)))
    since = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    for start in np.arange(0.0, seconds, 0.5):
        first = round(start * SAMPLE_RATE)
        for note in rng.integers(40, 76, 3):
            hertz = 440 * 2 ** ((note - 69) / 12)
            for partial in range(1, 8):
                tone = np.sin(2 * np.pi * partial * hertz * since) * np.exp(-4 * since) / partial
                music[:, first : first + SAMPLE_RATE] += rng.uniform(0.3, 1.0, (2, 1)) * tone
    return torch.from_numpy(0.2 * music[:, : round(seconds * SAMPLE_RATE)] / np.abs(music).max())


def with_noise(clean: torch.Tensor, snr_db: float) -> torch.Tensor:
    noise = torch.from_numpy(np.random.default_rng(1).standard_normal(clean.shape))
    return clean + noise * 10 ** (-snr_db / 20) * clean.square().mean().sqrt()


def test_visqol_of_equal_sounds_is_its_maximum_and_noise_lowers_it() -> None:
    pytest.importorskip("visqol")
    clean = chords(1.5)
    # The mark of equal sounds in ViSQOL's own conformance test for audio.
    assert visqol(0.5 * clean, clean, SAMPLE_RATE) == pytest.approx(4.7321, abs=0.01)
    clear, noisy = (visqol(with_noise(clean, snr_db), clean, SAMPLE_RATE) for snr_db in (60.0, 20.0))
    assert 1.0 < noisy < clear - 0.3 < 4.5


def test_zimtohrli_of_equal_sounds_is_zero_and_noise_raises_it() -> None:
    pytest.importorskip("zimtohrli")
    clean = chords(2.0)
    np.testing.assert_allclose(zimtohrli(0.5 * clean, clean, SAMPLE_RATE), 0.0, atol=1e-5)
    clear, noisy = (zimtohrli(with_noise(clean, snr_db), clean, SAMPLE_RATE) for snr_db in (40.0, 5.0))
    assert (1e-5 < clear).all() and (3 * clear < noisy).all()


def speech() -> torch.Tensor:
    waveform, sample_rate = soundfile.read(SPEECH, dtype="float32", always_2d=True)
    return torch.from_numpy(resample(waveform.T, sample_rate, SAMPLE_RATE)).double()


def test_pesq_of_equal_speech_is_its_maximum_and_noise_lowers_it() -> None:
    pytest.importorskip("pesq", reason="gcc has to compile PESQ: pip install .[pesq]")
    clean = speech()
    # P.862.2 maps the raw maximum of 4.5 to 0.999 + 4 / (1 + exp(-1.3669 * 4.5 + 3.8224)).
    highest = 0.999 + 4 / (1 + np.exp(-1.3669 * 4.5 + 3.8224))
    assert pesq_on_speech(clean, clean, SAMPLE_RATE) == pytest.approx([highest], abs=0.01)
    clear, noisy = (pesq_on_speech(with_noise(clean, snr_db), clean, SAMPLE_RATE)[0] for snr_db in (30.0, 5.0))
    assert 1.0 < noisy < clear - 0.5 < 4.2


def test_speech_is_found_where_it_is_and_music_is_none() -> None:
    pytest.importorskip("pesq", reason="gcc has to compile PESQ: pip install .[pesq]")
    music = resample(chords(6.0)[:1].float().numpy(), SAMPLE_RATE, PESQ_RATE)[0]
    talk = resample(speech().float().numpy(), SAMPLE_RATE, PESQ_RATE)[0]
    assert speech_segments(music) == []
    assert speech_segments(np.zeros(10 * PESQ_RATE)) == []
    noise = signal.lfilter([1.0], [1.0, -0.95], np.random.default_rng(0).standard_normal(6 * PESQ_RATE))
    assert speech_segments(noise) == []
    ((start, stop),) = speech_segments(np.concatenate([music, talk, music]))
    assert abs(start - len(music)) <= 2 * PESQ_RATE and abs(stop - len(music) - len(talk)) <= 2 * PESQ_RATE
    assert pesq_on_speech(chords(6.0), chords(6.0), SAMPLE_RATE) == []
