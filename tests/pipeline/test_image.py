import numpy as np
import pytest
import torch

from pipeline_aud2studio.image import BandImage, bounded_gain
from pipeline_aud2studio.spectral import BandTransform


@pytest.fixture(scope="module")
def image() -> BandImage:
    return BandImage(BandTransform(), 4, 2, 4.0, mel_mean=-5.0, mel_std=2.3, correction_std=1.6, band_scale=1.5)


@pytest.fixture(scope="module")
def features(image):
    recordings = torch.zeros(2, 4, 256 * 32)
    recordings[0, :2] = 0.1 * torch.randn(2, 256 * 32, generator=torch.Generator().manual_seed(0))
    recordings[1, :1] = 0.1 * torch.randn(1, 256 * 32, generator=torch.Generator().manual_seed(1))
    present = torch.tensor([[True, True, False, False], [True, False, False, False]])
    return image.features(image.transform.stft(recordings), present)


def test_channels_are_log_mel_then_compressed_real_then_imaginary(image, features):
    waveform = 0.1 * torch.randn(2, 256 * 32, generator=torch.Generator().manual_seed(0))
    stft = image.transform.stft(waveform[1])
    np.testing.assert_allclose(features.channels[0, 1], (image.transform.log_mel(stft) + 5.0) / 2.3, atol=1e-4)
    average = image.transform.band_average(stft).numpy()
    expected = 1.5 * average / np.abs(average) * np.abs(average) ** 0.3
    np.testing.assert_allclose(features.channels[0, 4 + 1], expected.real, atol=1e-3)
    np.testing.assert_allclose(features.channels[0, 8 + 1], expected.imag, atol=1e-3)


def test_missing_recordings_are_zero(features):
    channels = features.channels.unflatten(1, (3, 4))
    assert channels[0, :, 2:].abs().max() == 0
    assert channels[1, :, 1:].abs().max() == 0


def test_recordings_that_no_item_has_need_not_be_given(image, features):
    recordings = 0.1 * torch.randn(2, 256 * 32, generator=torch.Generator().manual_seed(0))
    fewer = image.features(image.transform.stft(recordings[None]), torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(fewer.channels, features.channels[:1])
    output = torch.randn(1, 36, 64, 16, generator=torch.Generator().manual_seed(6))
    assert image.read(output, fewer)[1].shape == (1, 2, 128, 32)


def test_rows_see_the_recordings_of_their_slots(image):
    stft = image.transform.stft(0.1 * torch.randn(2, 3, 256 * 32, generator=torch.Generator().manual_seed(7)))
    slots = [[0, 1, 2], [1, 0, 2]]
    placed = image.placed([image.planes(chunk) for chunk in stft], slots)
    rows = torch.stack([chunk[slot] for chunk in stft for slot in slots])  # (4, 3, bins, frames)
    expected = image.features(rows, torch.ones(4, 3, dtype=torch.bool))
    for found, wanted in zip(placed, expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_correction_and_corrected_undo_each_other(image, features):
    log_mel = torch.randn(2, 1, 128, 32, generator=torch.Generator().manual_seed(2))
    correction = image.correction(log_mel, features)
    torch.testing.assert_close(image.corrected(correction, features), log_mel, atol=1e-5, rtol=1e-5)
    assert image.correction(image.corrected(torch.zeros_like(correction), features), features).abs().max() < 1e-5


def test_patches_go_in_and_come_out_in_place(image, features):
    """Output pixel (c * 4 + 2 * row + column) of a patch is band `2 y + row`, frame `2 x + column` of channel c."""
    noisy = torch.randn(2, 1, 128, 32, generator=torch.Generator().manual_seed(3))
    patched = image.assemble(noisy, features)
    assert patched.shape == (2, 13 * 4, 64, 16)
    full = torch.cat([noisy, features.channels], dim=1)
    for channel, row, column in [(0, 0, 1), (5, 1, 0), (12, 1, 1)]:
        expected = full[:, channel, row::2, column::2]
        torch.testing.assert_close(patched[:, channel * 4 + 2 * row + column], expected)
    assert torch.equal(image.assemble(noisy, features, torch.bfloat16), patched.bfloat16())
    prediction, gains = image.read(torch.arange(2 * 36 * 64 * 16.0).reshape(2, 36, 64, 16), features)
    assert prediction.shape == (2, 1, 128, 32) and gains.shape == (2, 4, 128, 32)
    assert prediction[0, 0, 3, 5] == (2 * 1 + 1) * 64 * 16 + 1 * 16 + 2


def test_an_untrained_head_lets_recording_0_pass(image, features):
    _, gains = image.read(torch.zeros(2, 36, 64, 16), features)
    torch.testing.assert_close(gains[:, 0], torch.ones(2, 128, 32, dtype=torch.complex64))
    assert gains[:, 1:].abs().max() == 0


def test_missing_recordings_get_no_gain(image, features):
    output = torch.randn(2, 36, 64, 16, generator=torch.Generator().manual_seed(4))
    _, gains = image.read(output, features)
    assert gains[0, 1].abs().min() > 0
    assert gains[0, 2:].abs().max() == 0 and gains[1, 1:].abs().max() == 0


def test_gain_follows_its_formula_and_bound():
    head = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(5)).double() * 100
    z = head[0].numpy() + 1j * head[1].numpy()
    z[:, 0] += 1 / np.sqrt(4.0**2 - 1)
    gain = bounded_gain(head[0], head[1], 4.0).numpy()
    np.testing.assert_allclose(gain, 4.0 * z / np.sqrt(1 + np.abs(z) ** 2), rtol=1e-9)
    assert np.abs(gain).max() < 4.0


def test_max_gain_has_to_allow_an_untouched_recording():
    with pytest.raises(ValueError, match="max_gain"):
        BandImage(BandTransform(), 4, 2, 1.0, 0.0, 1.0, 1.0, 1.0)
