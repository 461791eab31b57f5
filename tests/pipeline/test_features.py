"""The image: what goes in where, and what an answer does to the sound."""

import math

import numpy as np
import pytest
import torch

from pipeline_aud2studio.features import (
    DECAYS_S,
    PATCH,
    BandImage,
    energies_of_the_past,
    image_channels,
    running_floor,
)
from pipeline_aud2studio.spectral import BandTransform

FRAMES = 40


@pytest.fixture(scope="module")
def image() -> BandImage:
    return BandImage(BandTransform(), 4, mel_mean=-5.0, mel_std=2.3, correction_std=1.6)


def features_of(image: BandImage, channels: int = 2, late: float = 0.0):
    waveform = 0.1 * torch.randn(channels, FRAMES * 1024, generator=torch.Generator().manual_seed(0))
    stft = image.coarse.stft(waveform)
    slots = [[channel, *(other for other in range(channels) if other != channel)] for channel in range(channels)]
    predicted = late * stft
    log_mel = image.fine.log_mel(image.fine.stft(waveform))
    return stft, predicted, image.features(stft, predicted, log_mel, slots)


def test_the_image_has_the_channels_that_the_unet_expects(image: BandImage) -> None:
    _, _, features = features_of(image)
    noisy = torch.zeros(2, 1, 128, 4 * FRAMES)
    assembled = image.assemble(noisy, features)
    assert assembled.shape == (2, image_channels(4)[0], 32, FRAMES)
    assert assembled[:, : PATCH**2].abs().max() == 0
    mel = torch.nn.functional.pixel_shuffle(assembled[:, PATCH**2 : 2 * PATCH**2], PATCH)[:, 0]
    torch.testing.assert_close(mel, features.log_mel[:, 0])
    for recordings in (1, 2, 5):
        other = BandImage(BandTransform(), recordings, -5.0, 2.3, 1.6)
        assert features_of(other, 1)[2].planes.shape[1] + PATCH**2 == image_channels(recordings)[0]


@pytest.mark.parametrize(
    ("channels", "gate", "left"), [(2, -50.0, 1.0), (2, 50.0, 0.36), (1, -50.0, 1.0), (1, 50.0, 0.5184)]
)
def test_the_gate_takes_late_sound_away(image: BandImage, channels: int, gate: float, left: float) -> None:
    """Late sound that is 0.4 of the recording: with the gate open 0.6 of the amplitude remain, 0.72 of one channel."""
    stft, late, features = features_of(image, channels, late=0.4)
    output = torch.full((channels, image_channels(4)[1], 32, FRAMES), -50.0)
    output[:, PATCH**2 : PATCH**2 + 8] = gate
    answer = image.read(output, features)
    found = image.apply(stft, late, answer.gate, answer.gain)
    power = found.abs().square().mean() / stft.abs().square().mean()
    assert float(power) == pytest.approx(left, rel=1e-4)


def test_the_gain_is_wieners_with_the_power_after_the_gate(image: BandImage) -> None:
    stft, late, features = features_of(image, late=0.4)
    output = torch.full((2, image_channels(4)[1], 32, FRAMES), -50.0)
    output[:, PATCH**2 : PATCH**2 + 8] = 50.0
    output[:, -8:] = 5.0 + math.log(0.5)  # the last term: half of the floor's power
    answer = image.read(output, features)
    left = 0.36 * features.powers[:, 0]
    interference = 0.5 * features.references[:, -1]
    torch.testing.assert_close(answer.gain, left / (left + interference), atol=1e-4, rtol=1e-3)


def test_energies_of_the_past_decay_at_their_reverberation_times(image: BandImage) -> None:
    power = torch.zeros(1, 1, 200)
    power[..., 10] = 1.0
    late = energies_of_the_past(power, image.coarse)[0, :, 0]
    assert late[:, :13].abs().max() == 0  # 70 ms later at the earliest
    for decay_s, energy in zip(DECAYS_S, late, strict=True):
        frames = round(decay_s * 44100 / 1024 / 6)  # a sixth of the time: 10 dB
        assert float(energy[13 + frames] / energy[13]) == pytest.approx(0.1, rel=0.1)
        assert float(energy.sum()) < 1.01
    steady = energies_of_the_past(torch.ones(1, 1, 2000), image.coarse)[..., -1]
    assert torch.allclose(steady, torch.ones_like(steady), atol=1e-3)


def test_the_floor_is_the_minimum_around(image: BandImage) -> None:
    rng = np.random.default_rng(0)
    power = rng.random((1, 2, 300)).astype(np.float32)
    found = running_floor(torch.from_numpy(power), image.coarse)[0, 0].numpy()
    smoothed = np.stack(
        [np.convolve(row, np.ones(5), "same") / np.convolve(np.ones(300), np.ones(5), "same") for row in power[0]]
    )
    wanted = np.stack([[row[max(t - 43, 0) : t + 44].min() for t in range(300)] for row in smoothed])
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_coherence_tells_common_sound_from_each_ones_own(image: BandImage) -> None:
    generator = torch.Generator().manual_seed(1)
    common, own, other = (torch.randn(1, 100 * 1024, generator=generator) for _ in range(3))
    delayed = torch.roll(common, 20)
    same = image._coherence(*image.coarse.stft(torch.cat([common, delayed])))
    different = image._coherence(*image.coarse.stft(torch.cat([own, other])))
    assert float(same[40:].median()) > 0.8 > 0.3 > float(different[40:].median())
