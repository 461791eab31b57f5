import librosa
import numpy as np
import pytest
import scipy.signal
import torch

from pipeline_aud2studio.spectral import BandTransform


@pytest.fixture(scope="module")
def transform() -> BandTransform:
    return BandTransform()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_samples", [1, 100, 255, 256, 384, 385, 1000, 1023, 44100, 44101])
def test_inverse_gives_the_waveform_back(transform, num_samples):
    waveform = noise(2, 3, num_samples)
    stft = transform.stft(waveform)
    assert stft.shape == (2, 3, 513, transform.num_frames(num_samples))
    torch.testing.assert_close(transform.istft(stft, num_samples), waveform, atol=1e-5, rtol=0)


def test_mel_is_librosas_in_nvidias_settings(transform):
    waveform = 0.3 * noise(256 * 200)
    padded = np.pad(waveform.numpy(), 384, mode="reflect")
    spectrum = librosa.stft(padded, n_fft=1024, hop_length=256, window="hann", center=False)
    bank = librosa.filters.mel(sr=44100, n_fft=1024, n_mels=128, fmin=0, fmax=None)
    expected = np.log(np.clip(bank @ np.sqrt(np.abs(spectrum) ** 2 + 1e-9), 1e-5, None))
    np.testing.assert_allclose(transform.log_mel(transform.stft(waveform)).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(("sample_rate", "n_mels", "fmin", "fmax"), [(48000, 128, 20, 20000), (24000, 100, 0, 12000)])
def test_filterbank_of_other_presets(sample_rate, n_mels, fmin, fmax):
    transform = BandTransform(sample_rate, 1024, 256, n_mels, fmin, fmax)
    bank = librosa.filters.mel(sr=sample_rate, n_fft=1024, n_mels=n_mels, fmin=fmin, fmax=fmax)
    np.testing.assert_allclose(transform.filterbank.numpy(), bank, atol=1e-7)


def test_the_average_of_a_band_is_weighted_by_its_triangle(transform):
    torch.testing.assert_close(transform.average(torch.full((513, 2), 0.25)), torch.full((128, 2), 0.25))
    edges = librosa.mel_frequencies(130, fmin=0, fmax=22050)
    mean_hz = transform.average(torch.linspace(0, 22050, 513)[:, None])[:, 0]
    # A wide triangle has its centre of gravity in the mean of its corners.
    corners = (edges[:-2] + edges[1:-1] + edges[2:]) / 3
    np.testing.assert_allclose(mean_hz[100:], corners[100:], rtol=2e-3)


def test_equal_gains_stay_equal_in_every_bin(transform):
    gain = torch.full((128, 3), 0.5 - 0.25j)
    spread = transform.spread(gain)
    torch.testing.assert_close(spread, torch.full((513, 3), 0.5 - 0.25j), atol=1e-6, rtol=0)


def test_bins_without_a_band_take_the_nearest_bands_gain():
    transform = BandTransform(48000, 1024, 256, 64, 200.0, 10000.0)
    gain = torch.arange(64.0)[:, None]
    spread = transform.spread(gain)[:, 0]
    assert spread[0] == 0 and spread[2] == 0  # below 200 Hz
    assert spread[-1] == 63 and spread[300] == 63  # above 10 kHz


def test_spreading_interpolates_between_band_centres(transform):
    """A gain that is linear in mel comes out linear in mel, as numpy's interpolation has it."""
    edges = librosa.mel_frequencies(130, fmin=0, fmax=22050)
    gain = np.sin(np.arange(128) / 20)
    spread = transform.spread(torch.from_numpy(gain).float()[:, None])[:, 0].numpy()
    bins = np.arange(513) * 44100 / 1024
    inside = (bins > edges[1]) & (bins < edges[-2])
    np.testing.assert_allclose(spread[inside], np.interp(bins, edges[1:-1], gain)[inside], atol=1e-3)


def test_a_known_filter_is_recovered_from_complex_band_gains(transform):
    """The best gain per band, in the least-squares sense, undoes a delay and an attenuation of the recording."""
    clean = torch.from_numpy(scipy.signal.lfilter([1], [1, -0.9], noise(44100).numpy())).float()
    recording = 0.5 * torch.nn.functional.pad(clean, (3, 0))[: len(clean)]
    target, stft = transform.stft(clean), transform.stft(recording)
    bands = torch.from_numpy(librosa.filters.mel(sr=44100, n_fft=1024, n_mels=128, norm=None)).to(stft.dtype)
    gain = (bands @ (target * stft.conj())) / (bands @ (stft * stft.conj()))
    restored = transform.istft(transform.spread(gain) * stft, len(clean))
    error = (restored - clean)[1024:-1024].square().sum() / clean[1024:-1024].square().sum()
    assert 10 * torch.log10(error) < -20


@pytest.mark.parametrize("arguments", [(44100, 1000, 256), (44100, 1024, 1024), (44100, 1024, 256, 128, 0, 30000)])
def test_numbers_that_do_not_fit_are_refused(arguments):
    with pytest.raises(ValueError, match=r"n_fft|sampling rate"):
        BandTransform(*arguments)
