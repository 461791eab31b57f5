"""The UNet's image: what goes in, what comes out, and what the channels mean.

In, per frame and band (`1 + 3M` channels for `M` recordings): the noisy correction of the log-mel, then per recording
its log-mel and the real and imaginary part of its compressed complex band average. Out (`1 + 2M`): the scheduler's
prediction for channel 0, and per recording one complex band gain, which is not diffused.

Recording 0 is the one to be restored. A missing recording is all zeros and gets no gain; where a whole batch has only
`R < M` recordings, the others are never computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from .spectral import BandTransform

COMPRESSION = 0.3  # exponent of the magnitude
_TINY = 1e-12


class Features(NamedTuple):
    """What the recordings of one chunk look like to the UNet and to the condition encoder."""

    channels: torch.Tensor  # (batch, 3M, bands, frames)
    log_mel: torch.Tensor  # (batch, R, bands, frames), normalised; zero where missing
    present: torch.Tensor  # (batch, R), bool


class BandImage:
    """Builds the UNet's input and reads its output.

    Args:
        transform: The STFT and its bands.
        max_recordings: Number of recordings `M` that the UNet has channels for.
        patch_size: Edge of the square of bands and frames that becomes one pixel.
        max_gain: Bound of a gain's magnitude.
        mel_mean, mel_std: Constants that bring log-mels to zero mean and unit variance.
        correction_std: The like for the correction: the clean log-mel less that of recording 0, in nats.
        band_scale: Factor that brings the compressed band averages to unit variance.
    """

    def __init__(
        self,
        transform: BandTransform,
        max_recordings: int,
        patch_size: int,
        max_gain: float,
        mel_mean: float,
        mel_std: float,
        correction_std: float,
        band_scale: float,
    ) -> None:
        if max_gain <= 1:
            raise ValueError(
                f"`max_gain` has to be above 1, so that an untouched recording is possible; got {max_gain}."
            )
        self.transform, self.max_recordings, self.patch_size, self.max_gain = (
            transform,
            max_recordings,
            patch_size,
            max_gain,
        )
        self.mel_mean, self.mel_std, self.correction_std, self.band_scale = (
            mel_mean,
            mel_std,
            correction_std,
            band_scale,
        )

    def features(self, stft: torch.Tensor, present: torch.Tensor, first_frame: int = 0) -> Features:
        """Channels of the recordings.

        Args:
            stft: Spectra (batch, R, bins, frames) at the normal level, `R` at most `M`.
            present: Which recordings exist (batch, R), bool.
            first_frame: Absolute index of the first frame.
        """
        planes, recordings = self.planes(stft, first_frame), stft.shape[1]
        channels = planes.new_zeros(len(planes), 3, self.max_recordings, *planes.shape[-2:])
        channels[:, :, :recordings] = torch.where(present[:, None, :, None, None], planes.transpose(1, 2), 0.0)
        return Features(channels.flatten(1, 2), channels[:, 0, :recordings], present)

    def planes(self, stft: torch.Tensor, first_frame: int = 0) -> torch.Tensor:
        """Log-mel, real and imaginary part of every spectrum (..., bins, frames): (..., 3, bands, frames)."""
        log_mel = (self.transform.log_mel(stft) - self.mel_mean) / self.mel_std
        average = self.transform.band_average(stft, first_frame)
        real, imag = average.real, average.imag
        scale = self.band_scale * (real.square() + imag.square() + _TINY) ** ((COMPRESSION - 1) / 2)
        return torch.stack([log_mel, real * scale, imag * scale], dim=-3)

    def placed(self, planes: Sequence[torch.Tensor], slots: Sequence[Sequence[int]]) -> Features:
        """Channels of chunks in which every row sees recordings of its own, none of them missing.

        Args:
            planes: Of all recordings of a chunk (recordings, 3, bands, frames), for every chunk.
            slots: Which recordings a row sees, for every row of a chunk; the rows of the first chunk come first.
        """
        rows = [(chunk, seen) for chunk in planes for seen in slots]
        channels = planes[0].new_zeros(len(rows), 3, self.max_recordings, *planes[0].shape[-2:])
        for row, (chunk, seen) in zip(channels, rows, strict=True):
            for slot, recording in enumerate(seen):
                row[:, slot] = chunk[recording]
        present = torch.ones(len(rows), len(slots[0]), dtype=torch.bool, device=channels.device)
        return Features(channels.flatten(1, 2), channels[:, 0, : present.shape[1]], present)

    def correction(self, log_mel: torch.Tensor, features: Features) -> torch.Tensor:
        """The diffused quantity (batch, 1, bands, frames) that turns recording 0's log-mel into `log_mel` (nats)."""
        return (log_mel - self._input_log_mel(features)) / self.correction_std

    def corrected(self, correction: torch.Tensor, features: Features) -> torch.Tensor:
        """Log-mel in nats (batch, 1, bands, frames): the inverse of :meth:`correction`."""
        return self._input_log_mel(features) + correction * self.correction_std

    def _input_log_mel(self, features: Features) -> torch.Tensor:
        return features.log_mel[:, :1] * self.mel_std + self.mel_mean

    def assemble(self, noisy: torch.Tensor, features: Features, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Patched image (batch, (1 + 3M) * patch^2, bands / patch, frames / patch)."""
        image, size = torch.cat([noisy, features.channels], dim=1).to(dtype), self.patch_size
        # What `pixel_unshuffle` gives, which takes several times as long on a CPU.
        pixels = [image[..., row::size, column::size] for row in range(size) for column in range(size)]
        return torch.stack(pixels, dim=2).flatten(1, 2)

    def read(self, output: torch.Tensor, features: Features) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes the UNet's output apart.

        Returns:
            The prediction for channel 0 (batch, 1, bands, frames) and the complex gains (batch, R, bands, frames).
        """
        recordings, pixel = features.present.shape[1], self.patch_size**2
        parts = output.split([pixel, self.max_recordings * pixel, self.max_recordings * pixel], dim=1)
        prediction, real, imag = (
            F.pixel_shuffle(part[:, : recordings * pixel].contiguous().float(), self.patch_size) for part in parts
        )
        return prediction, bounded_gain(real, imag, self.max_gain) * features.present[:, :, None, None]


def bounded_gain(real: torch.Tensor, imag: torch.Tensor, max_gain: float) -> torch.Tensor:
    """Complex gains below `max_gain` in magnitude; where the head says zero, recording 0 passes and the others do not.

    `g = max_gain * z / sqrt(1 + |z|^2)` with `z = head + z_0`, `z_0` chosen for `g = 1` at recording 0.

    Args:
        real, imag: The head's output (batch, R, bands, frames).
    """
    identity = torch.zeros_like(real[:1, :, :1, :1])
    identity[:, 0] = 1 / math.sqrt(max_gain**2 - 1)
    real = real + identity
    scale = max_gain * torch.rsqrt(1 + real.square() + imag.square())
    return torch.complex(real * scale, imag * scale)
