"""One STFT for everything: log-mel, band averages, band gains and the way back to a waveform.

The front end is that of NVIDIA's BigVGAN (`bigvgan_v2_44khz_128band_256x`): frame `t` is centred at sample
`t * hop_length + hop_length / 2`. `torch.istft(center=False)` refuses frames that hang over the edges like that, so
the inverse is an explicit overlap-add.

Letters in the shapes: `...` any leading dimensions, `samples`, `frames`, `bins` = n_fft / 2 + 1, `bands` = n_mels.
"""

from __future__ import annotations

import math

import torch
from transformers.audio_utils import mel_filter_bank

MEL_FLOOR = 1e-5  # BigVGAN's clamp before the logarithm
POWER_FLOOR = 1e-9  # BigVGAN's epsilon inside the square root


class BandTransform:
    """STFT, mel filterbank, averages and gains of the bands, on one frame grid.

    Args:
        sample_rate: Sampling rate of the waveforms in Hz.
        n_fft: Length of the Hann window and of the FFT in samples, a multiple of `hop_length`.
        hop_length: Distance of two frames in samples.
        n_mels: Number of bands.
        fmin: Lower edge of the lowest band in Hz.
        fmax: Upper edge of the highest band in Hz; `None` is half the sampling rate.

    Raises:
        ValueError: If the numbers do not fit each other.
    """

    def __init__(
        self,
        sample_rate: int = 44100,
        n_fft: int = 1024,
        hop_length: int = 256,
        n_mels: int = 128,
        fmin: float = 0.0,
        fmax: float | None = None,
    ) -> None:
        fmax = sample_rate / 2 if fmax is None else fmax
        if n_fft % hop_length or n_fft < 2 * hop_length:
            raise ValueError(
                f"`n_fft` ({n_fft}) has to be a multiple of `hop_length` ({hop_length}), at least twice it."
            )
        if not 0 <= fmin < fmax <= sample_rate / 2:
            raise ValueError(f"Bands from {fmin} to {fmax} Hz do not fit a sampling rate of {sample_rate} Hz.")
        self.sample_rate, self.n_fft, self.hop_length, self.n_mels = sample_rate, n_fft, hop_length, n_mels
        self.fmin, self.fmax = fmin, fmax
        self.pad = (n_fft - hop_length) // 2
        self.window = torch.hann_window(n_fft)

        def bank(norm: str | None) -> torch.Tensor:
            weights = mel_filter_bank(n_fft // 2 + 1, n_mels, fmin, fmax, sample_rate, norm, mel_scale="slaney")
            return torch.from_numpy(weights.T)  # (bands, bins)

        self.filterbank = bank("slaney").float()
        triangles = bank(None)  # with peaks of one
        averaging = triangles / triangles.sum(1, keepdim=True).clamp_min(1e-12)
        self._mel, self._mel_transposed = _Banded(self.filterbank), _Banded(self.filterbank.T)
        self._averaging = _Banded(averaging.float())
        self._spreading = _Banded(_spreading_matrix(triangles).float())  # (bins, bands)

    def _on(self, device: torch.device) -> BandTransform:
        if self.window.device != device:
            banded = ("_mel", "_mel_transposed", "_averaging", "_spreading")
            for name in ("window", "filterbank", *banded):
                setattr(self, name, getattr(self, name).to(device))
        return self

    def num_frames(self, num_samples: int) -> int:
        """Frames that cover `num_samples`; at least two, because the reflected edge needs samples to reflect."""
        return max(math.ceil(num_samples / self.hop_length), math.ceil((self.pad + 1) / self.hop_length))

    def stft(self, waveform: torch.Tensor) -> torch.Tensor:
        """Complex spectrum of `waveform` (..., samples), zero-padded to whole hops: (..., bins, frames)."""
        self._on(waveform.device)
        missing = self.num_frames(waveform.shape[-1]) * self.hop_length - waveform.shape[-1]
        flat = waveform.reshape(-1, waveform.shape[-1])
        flat = torch.nn.functional.pad(flat, (0, missing))
        flat = torch.nn.functional.pad(flat, (self.pad, self.pad), mode="reflect")
        stft = self.stft_of_padded(flat)
        return stft.reshape(*waveform.shape[:-1], *stft.shape[-2:])

    def stft_of_padded(self, padded: torch.Tensor) -> torch.Tensor:
        """Spectrum (batch, bins, frames) of samples (batch, pad + frames * hop + pad), edges included."""
        self._on(padded.device)
        stft = torch.stft(padded, self.n_fft, self.hop_length, window=self.window, center=False, return_complex=True)
        return stft.contiguous()  # torch gives a transpose, which everything that follows would read slowly

    def overlap_add(self, stft: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Windowed frames added up, not yet divided by the window's energy.

        Returns:
            The sum (..., pad + frames * hop + pad) and the sum of squared windows on the same samples (one dimension).
            Both add up over neighbouring blocks of frames, which is how a stream is put together.
        """
        self._on(stft.device)
        frames = torch.fft.irfft(stft.transpose(-1, -2).contiguous(), n=self.n_fft)  # (..., frames, n_fft)
        frames = frames * self.window
        energy = self.window.square().expand(stft.shape[-1], -1)
        return self._add_frames(frames), self._add_frames(energy)

    def _add_frames(self, frames: torch.Tensor) -> torch.Tensor:
        overlap = self.n_fft // self.hop_length
        num_frames = frames.shape[-2]
        total = frames.new_zeros(*frames.shape[:-2], num_frames + overlap - 1, self.hop_length)
        for part, hops in enumerate(frames.unflatten(-1, (overlap, self.hop_length)).unbind(-2)):
            total[..., part : part + num_frames, :] += hops
        return total.flatten(-2)

    def istft(self, stft: torch.Tensor, length: int) -> torch.Tensor:
        """Waveform (..., length) of a spectrum (..., bins, frames) from :meth:`stft`."""
        total, energy = self.overlap_add(stft)
        return (total / energy.clamp_min(1e-8))[..., self.pad : self.pad + length]

    def log_mel(self, stft: torch.Tensor) -> torch.Tensor:
        """Natural logarithm of the mel spectrum (..., bands, frames) that BigVGAN is conditioned on."""
        self._on(stft.device)
        power = stft.real.square().addcmul_(stft.imag, stft.imag).add_(POWER_FLOOR)
        return (self._mel @ power.sqrt_()).clamp_min(MEL_FLOOR).log()

    def magnitude_from_mel(self, mel: torch.Tensor, num_iterations: int = 100) -> torch.Tensor:
        """Non-negative magnitudes (..., bins, frames) with the mel spectrum `mel` (..., bands, frames), no logarithm.

        Multiplicative updates for the least squares problem (Lee and Seung, "Algorithms for non-negative matrix
        factorization", 2001): they stay non-negative, and keep equal the bins that no band tells apart.
        """
        self._on(mel.device)
        wanted = self._mel_transposed @ mel
        magnitude = wanted / (self._mel_transposed @ torch.ones_like(mel) + 1e-12)
        for _ in range(num_iterations):
            magnitude = magnitude * wanted / (self._mel_transposed @ (self._mel @ magnitude) + 1e-12)
        return magnitude

    def average(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of every band, weighted by its triangle: real (..., bins, frames) to (..., bands, frames)."""
        return self._on(values.device)._averaging @ values

    def spread(self, gain: torch.Tensor) -> torch.Tensor:
        """Gains of the bands (..., bands, frames), real or complex, interpolated to the bins: (..., bins, frames)."""
        return self._on(gain.device)._spreading @ gain


class _Banded:
    """A real matrix (rows, columns) whose entries lie near a diagonal, as sixteen blocks of rows without the zeros."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self._blocks = []
        for rows in matrix.tensor_split(16):
            used = torch.nonzero(rows.any(0)).flatten().tolist() or [0]
            columns = slice(used[0], used[-1] + 1)
            self._blocks.append((columns, rows[:, columns].contiguous()))

    def to(self, device: torch.device) -> _Banded:
        self._blocks = [(columns, rows.to(device)) for columns, rows in self._blocks]
        return self

    def __matmul__(self, values: torch.Tensor) -> torch.Tensor:
        """Product (..., rows, frames) with real or complex values (..., columns, frames)."""
        if values.is_complex():  # real and imaginary parts as frames of their own: (..., columns, 2 * frames)
            product = self @ torch.view_as_real(values.contiguous()).flatten(-2)
            return torch.view_as_complex(product.unflatten(-1, (-1, 2)))
        with torch.autocast(values.device.type, enabled=False):  # it is for networks
            return torch.cat([rows @ values[..., columns, :] for columns, rows in self._blocks], dim=-2)


def _spreading_matrix(triangles: torch.Tensor) -> torch.Tensor:
    """Rows that sum to one: what each bin takes of each band. A bin that no band covers takes the nearest band's."""
    weights = triangles.T.clone()  # (bins, bands)
    covered = weights.sum(1) > 1e-9
    peaks = triangles.argmax(1)  # the bin at which each band is strongest
    for bin_index in torch.nonzero(~covered).flatten().tolist():
        weights[bin_index, (peaks - bin_index).abs().argmin()] = 1.0
    return weights / weights.sum(1, keepdim=True)
