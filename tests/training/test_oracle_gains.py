"""Oracle gains against numpy's least squares, and what they reach on a mixture whose answer is known."""

import numpy as np
import pytest
import torch

from pipeline_aud2studio.spectral import BandTransform
from training.oracle_gains import MAX_GAIN, improvements, oracle_gain

TRANSFORM = BandTransform(n_mels=32)


def spectra() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    recording, other = torch.randn(2, 513, 20, dtype=torch.complex64, generator=generator)
    return recording, (0.4 - 0.3j) * recording + 0.2 * other


@pytest.mark.parametrize(("num_frames", "start", "stop"), [(1, 7, 8), (6, 6, 12), (None, 0, 20)])
def test_gains_against_least_squares(num_frames: int | None, start: int, stop: int) -> None:
    recording, clean = spectra()
    gains = oracle_gain(recording, clean, TRANSFORM, "complex", num_frames)
    real = oracle_gain(recording, clean, TRANSFORM, "real", num_frames)
    for band in (3, 30):
        impulses = torch.eye(513)[:, :, None]
        weights = TRANSFORM.average(impulses)[:, band, 0].numpy()  # of the band's triangle
        scale = np.sqrt(weights)[:, None]
        x, y = ((scale * part[:, start:stop].numpy()).ravel() for part in (recording, clean))
        expected = np.linalg.lstsq(x[:, None], y, rcond=None)[0][0]
        assert gains[band, start].item() == pytest.approx(expected, abs=1e-4)
        stacked = [np.concatenate([part.real, part.imag]) for part in (x, y)]
        expected_real = np.linalg.lstsq(stacked[0][:, None], stacked[1], rcond=None)[0][0]
        assert real[band, start].item() == pytest.approx(expected_real, abs=1e-4)


def test_gains_are_bounded_and_positive_ones_never_invert() -> None:
    recording, _ = spectra()
    assert (oracle_gain(recording, -recording, TRANSFORM, "positive", 4) == 0).all()
    torch.testing.assert_close(
        oracle_gain(recording, 1j * 9 * recording, TRANSFORM, "complex", 4), torch.full((32, 20), 1j * MAX_GAIN)
    )


def test_inverted_bass_is_put_right_by_real_gains_only() -> None:
    """Equal energy below 2.5 kHz and above 3.5 kHz, so that no band holds both, the bass inverted: no correlation is
    left, and a positive gain can only remove the bass, after which signal and what is missing are equal: 0 dB."""
    generator = torch.Generator().manual_seed(1)
    spectrum = torch.fft.rfft(torch.randn(44100, generator=generator))
    low = torch.zeros_like(spectrum)
    low[:2500] = spectrum[:2500]
    high = torch.zeros_like(spectrum)
    high[3500:6000] = spectrum[3500:6000]
    bass, treble = torch.fft.irfft(low), torch.fft.irfft(high)
    bass *= treble.norm() / bass.norm()
    recording = treble - 0.9 * bass
    before = 10 * np.log10(0.05**2 / (0.905 - 0.05**2))  # projections: (1 - 0.9) / 2 of 2 units, out of 1.81
    found = {(kind, span): gained + before for kind, span, gained in improvements(recording, bass + treble, TRANSFORM)}
    assert found["positive", "clip"] == pytest.approx(0.0, abs=0.5)
    assert found["real", "clip"] > 15 and found["complex", "clip"] > 15
