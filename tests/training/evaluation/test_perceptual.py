"""PESQ at its known end points and where somebody speaks; SRMR against torchmetrics, and its behaviour in a room."""

import functools
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy import signal

from pipeline_aud2studio.audio import resample
from training.evaluation.perceptual import (
    MODULATION_HZ,
    centre_frequencies,
    gammatone,
    pesq_on_speech,
    speech_segments,
    srmr,
)
from training.evaluation.perceptual import SAMPLE_RATE as LOW_RATE

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
    music = resample(chords(6.0)[:1].float().numpy(), SAMPLE_RATE, LOW_RATE)[0]
    talk = resample(speech().float().numpy(), SAMPLE_RATE, LOW_RATE)[0]
    assert speech_segments(music) == []
    assert speech_segments(np.zeros(10 * LOW_RATE)) == []
    noise = signal.lfilter([1.0], [1.0, -0.95], np.random.default_rng(0).standard_normal(6 * LOW_RATE))
    assert speech_segments(noise) == []
    ((start, stop),) = speech_segments(np.concatenate([music, talk, music]))
    assert abs(start - len(music)) <= 2 * LOW_RATE and abs(stop - len(music) - len(talk)) <= 2 * LOW_RATE
    assert pesq_on_speech(chords(6.0), chords(6.0), SAMPLE_RATE) == []


TIME = np.arange(3 * LOW_RATE) / LOW_RATE
# Of torchmetrics 1.9 (`speech_reverberation_modulation_energy_ratio`, max_cf=128), a translation of SRMRpy.
PROBES = {
    "slow": (0.2 * np.sin(2 * np.pi * 440 * TIME) * (1 + np.sin(2 * np.pi * 4 * TIME)), 165.17245572),
    "fast": (0.2 * np.sin(2 * np.pi * 1000 * TIME) * (1 + np.sin(2 * np.pi * 40 * TIME)), 0.08924954955),
    "gated": (
        0.3
        * np.sin(2 * np.pi * (150 * TIME + 400 * np.sin(2 * np.pi * 0.7 * TIME)))
        * (np.sin(2 * np.pi * 3 * TIME) > 0),
        5.207967798671,
    ),
    "noise": (0.05 * np.random.default_rng(0).standard_normal(len(TIME)), 0.249523434907),
}


@pytest.mark.parametrize("name", sorted(PROBES))
def test_srmr_is_that_of_torchmetrics(name: str) -> None:
    waveform, expected = PROBES[name]
    assert srmr(waveform.astype(np.float32)) == pytest.approx(expected, rel=5e-5)


def test_the_level_does_not_count_and_reverberation_lowers_it() -> None:
    rng = np.random.default_rng(1)
    syllables = (0.2 * rng.standard_normal(len(TIME)) * (np.sin(2 * np.pi * 4 * TIME) > 0.3)).astype(np.float32)
    tail = rng.standard_normal(LOW_RATE) * np.exp(-6.9 * np.arange(LOW_RATE) / LOW_RATE)
    wet = signal.oaconvolve(syllables, tail)[: len(TIME)].astype(np.float32)
    assert srmr(3 * syllables) == pytest.approx(srmr(syllables), rel=1e-6)
    assert srmr(wet) < 0.6 * srmr(syllables)


def test_filters_are_where_the_toolbox_has_them() -> None:
    centres_hz = centre_frequencies()
    # `gammatone.filters.centre_freqs(16000, 23, 125)`.
    assert centres_hz[[0, 11, 22]] == pytest.approx([6947.8450763, 1364.69927531, 125.0], rel=1e-9)
    assert np.argmax(np.abs(np.fft.rfft(gammatone(np.eye(1, LOW_RATE)[0], 1000.0)))) == pytest.approx(1000, abs=5)
    np.testing.assert_allclose(MODULATION_HZ[[0, 3, 7]], [4.0, 17.67, 128.0], rtol=1e-3)


def test_too_short_and_silent_sounds_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 0.256 s"):
        srmr(np.ones(100, np.float32))
    with pytest.raises(ValueError, match="silent"):
        srmr(np.zeros(LOW_RATE, np.float32))
