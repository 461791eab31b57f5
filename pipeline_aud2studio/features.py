"""What the networks see of the recordings, and what their answer does to the sound.

Two resolutions share one image. Its pixel is a column of one frame of the *coarse* STFT (93 ms, hop 23 ms, 256 bands)
and a row of eight of those bands: the same stretch as four frames and four bands of the vocoder's *fine* mel (23 ms,
hop 6 ms, 128 bands). In go, for the recording to be restored, its mel, the band powers of recording, predicted late
sound and difference, the energy of the past in four decays and a running floor; and for every other recording level
and coherence. Out come the scheduler's prediction for the mel and, not diffused, a gate on the late sound and the
level of what disturbs.

Letters in the shapes: `rows`, what is restored (a channel of the reference); `slots`, the recordings that a row sees,
its own first; `bands` of the coarse transform; `frames` of it; `mel` bands and `mel_frames` of the fine one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import minimum_filter1d
from scipy.signal import lfilter
from torch.nn import functional as F

from .prediction import DELAY
from .spectral import BandTransform

PATCH = 4  # fine frames and mel bands that become one pixel
BANDS_PER_MEL = 2  # coarse bands in a mel band
DECAYS_S = (0.4, 1.0, 2.0, 4.0)  # reverberation times of the energies of the past
FLOOR_S = 2.0  # span of the running floor
SMOOTHED_FRAMES = 5  # of the power whose minimum the floor is
COHERENCE_FRAMES = 9
HISTORY = 256  # frames, 6 s, after which the slowest decay has forgotten (-89 dB)
LOOK_AHEAD = 48  # frames that the floor and the coherence look ahead
POWER_FLOOR = 1e-7  # of a bin of the coarse STFT, -90 dB below a recording's mean at the normal level
GATE_BIAS, INTERFERENCE_BIAS = -2.0, -5.0  # of an answer of zeros: the recording, nearly untouched
# Of the late sound that is predicted from one channel alone, at most this much goes: it is the least certain, and with
# it validation's mono rooms come out 0.6 dB better, the worst 2.9 dB.
ALONE_GATE = 0.7
NUM_TERMS = 2 + len(DECAYS_S)  # of the interference: the recording's own power, the decays, the floor


class Features(NamedTuple):
    """What a network sees of some rows, and the powers that its answer is read with."""

    planes: torch.Tensor  # (rows, channels, mel / 4, frames): the image without its first 16 channels
    log_mel: torch.Tensor  # (rows, slots, mel, mel_frames), normalised
    present: torch.Tensor  # (rows, slots), bool
    powers: torch.Tensor  # (rows, 3, bands, frames): recording, late sound, difference of the two
    references: torch.Tensor  # (rows, decays + 1, bands, frames): energies of the past, floor

    def cut(self, first: int, frames: int) -> Features:
        """The frames [first, first + frames)."""
        last = first + frames
        return Features(
            self.planes[..., first:last],
            self.log_mel[..., PATCH * first : PATCH * last],
            self.present,
            self.powers[..., first:last],
            self.references[..., first:last],
        )


class Answer(NamedTuple):
    """The UNet's answer, read."""

    prediction: torch.Tensor  # (rows, 1, mel, mel_frames): the scheduler's
    gate: torch.Tensor  # (rows, bands, frames), 0 to 1: how much of the predicted late sound goes
    gain: torch.Tensor  # (rows, bands, frames), 0 to 1, on what is left


class BandImage:
    """Builds the UNet's input and reads its output.

    Args:
        fine: The STFT of the vocoder's mel.
        max_recordings: Number of slots that the UNet has channels for.
        mel_mean, mel_std: Constants that bring log-mels to zero mean and unit variance.
        correction_std: The like for the correction: the clean log-mel less that of the recording, in nats.
    """

    def __init__(
        self,
        fine: BandTransform,
        max_recordings: int,
        mel_mean: float,
        mel_std: float,
        correction_std: float,
    ) -> None:
        self.fine, self.max_recordings = fine, max_recordings
        self.coarse = coarse_transform(fine)
        self.mel_mean, self.mel_std, self.correction_std = mel_mean, mel_std, correction_std
        self.in_channels, self.out_channels = image_channels(max_recordings)

    def features(
        self,
        stft: torch.Tensor,
        late: torch.Tensor,
        log_mel: torch.Tensor,
        slots: list[list[int]],
    ) -> Features:
        """Looks at a stretch of recordings; its first frames lack a past, and its last ones what follows.

        Args:
            stft: Coarse spectra (channels, bins, frames) of all recordings at the normal level.
            late: Predicted late sound (rows, bins, frames); row `r` is the channel `slots[r][0]`.
            log_mel: Of all recordings (channels, mel, 4 * frames), in nats.
            slots: The channels that every row sees, its own first, as many for one as for the other.
        """
        power = self._band_power(stft)  # (channels, bands, frames)
        own = [seen[0] for seen in slots]
        powers = torch.stack([power[own], self._band_power(late), self._band_power(stft[own] - late)], dim=1)
        references = torch.cat(
            [energies_of_the_past(power[own], self.coarse), running_floor(power[own], self.coarse)], 1
        )
        normalised = (log_mel - self.mel_mean) / self.mel_std
        log_own = powers[:, :1].clamp_min(POWER_FLOOR).log()
        relative = _log_ratio(torch.cat([powers[:, 1:], references], dim=1), powers[:, :1])
        others = power.new_zeros(len(slots), self.max_recordings - 1, 2, *power.shape[-2:])
        for row, seen in enumerate(slots):
            for slot, other in enumerate(seen[1:]):
                others[row, slot, 0] = _log_ratio(power[other], power[seen[0]])
                others[row, slot, 1] = self._coherence(stft[seen[0]], stft[other])
        planes = torch.cat([(log_own + 4) / 4, relative, others.flatten(1, 2)], dim=1)
        mel = torch.stack([normalised[seen] for seen in slots])  # (rows, slots, mel, mel_frames)
        image = torch.cat([_to_pixels(mel[:, :1], PATCH, PATCH), _to_pixels(planes, BANDS_PER_MEL * PATCH, 1)], dim=1)
        present = torch.ones(mel.shape[:2], dtype=torch.bool, device=stft.device)
        return Features(image, mel, present, powers, references)

    def _band_power(self, stft: torch.Tensor) -> torch.Tensor:
        return self.coarse.average(stft.real.square() + stft.imag.square())

    def _coherence(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Magnitude-squared coherence (bands, frames) of two spectra (bins, frames), over a band and 0.2 s.

        What a loudspeaker plays is coherent in all microphones, a distant audience is not, and what somebody says
        beside one of them is not either.
        """
        cross = one * other.conj()
        parts = torch.stack([cross.real, cross.imag, one.abs().square(), other.abs().square()])
        smoothed = _moving_mean(self.coarse.average(parts), COHERENCE_FRAMES)
        return (smoothed[0].square() + smoothed[1].square()) / (smoothed[2] * smoothed[3] + POWER_FLOOR**2)

    def correction(self, log_mel: torch.Tensor, features: Features) -> torch.Tensor:
        """What is diffused (rows, 1, mel, mel_frames): it turns the recording's log-mel into `log_mel` (nats)."""
        return (log_mel - self._input_log_mel(features)) / self.correction_std

    def corrected(self, correction: torch.Tensor, features: Features) -> torch.Tensor:
        """Log-mel in nats (rows, 1, mel, mel_frames): the inverse of :meth:`correction`."""
        return self._input_log_mel(features) + correction * self.correction_std

    def _input_log_mel(self, features: Features) -> torch.Tensor:
        return features.log_mel[:, :1] * self.mel_std + self.mel_mean

    def assemble(self, noisy: torch.Tensor, features: Features, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The image (rows, channels, mel / 4, frames), of the noisy correction and the features."""
        return torch.cat([_to_pixels(noisy, PATCH, PATCH).to(dtype), features.planes.to(dtype)], dim=1)

    def read(self, output: torch.Tensor, features: Features) -> Answer:
        """Takes the UNet's output (rows, channels, mel / 4, frames) apart.

        The gain is Wiener's, `1 / (1 + N / P)`, with the power `P` of the recording after the gate, and as
        interference `N = P e^z0 + sum_k past_k e^zk + floor e^z5`.
        """
        pixel, bands = PATCH**2, BANDS_PER_MEL * PATCH
        prediction = F.pixel_shuffle(output[:, :pixel].contiguous().float(), PATCH)
        terms = _from_pixels(output[:, pixel:].float(), bands)  # (rows, 1 + NUM_TERMS, bands, frames)
        most = torch.where(features.present.sum(1) == 1, ALONE_GATE, 1.0)[:, None, None]
        gate = most * torch.sigmoid(terms[:, 0] + GATE_BIAS)
        recording, late, difference = features.powers.unbind(1)
        # |Y - gR|^2 in the mean of a band, without its bins.
        left = recording - gate * (recording + late - difference) + gate.square() * late
        exponents = (terms[:, 1:] + INTERFERENCE_BIAS).clamp(max=12.0)
        interference = exponents[:, 0].exp() + (
            (exponents[:, 1:].exp() * features.references).sum(1) / left.clamp_min(POWER_FLOOR)
        )
        return Answer(prediction, gate, 1 / (1 + interference))

    def apply(self, stft: torch.Tensor, late: torch.Tensor, gate: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        """The faithful spectrum `gain * (stft - gate * late)`, all (rows, bins or bands, frames)."""
        return self.coarse.spread(gain) * (stft - self.coarse.spread(gate) * late)


def coarse_transform(fine: BandTransform) -> BandTransform:
    """The STFT with a column of pixels as its hop, and twice as many bands on the same scale."""
    hop_length = PATCH * fine.hop_length
    return BandTransform(
        fine.sample_rate, 4 * hop_length, hop_length, BANDS_PER_MEL * fine.n_mels, fine.fmin, fine.fmax
    )


def image_channels(max_recordings: int) -> tuple[int, int]:
    """Channels of the UNet's input and output."""
    bands = BANDS_PER_MEL * PATCH
    planes = 1 + 2 + len(DECAYS_S) + 1 + 2 * (max_recordings - 1)
    return 2 * PATCH**2 + planes * bands, PATCH**2 + (1 + NUM_TERMS) * bands


def energies_of_the_past(power: torch.Tensor, transform: BandTransform) -> torch.Tensor:
    """Mean energies (rows, decays, bands, frames) of what was at least the prediction's delay ago.

    Exponentially decaying averages of `power` (rows, bands, frames), with the reverberation times of `DECAYS_S`: what
    a room of that decay would still hold, but for a factor (Lebart et al., "A new method based on spectral subtraction
    for speech dereverberation", 2001).
    """
    delayed = F.pad(power, (DELAY, 0))[..., : power.shape[-1]].cpu().numpy()
    averages = []
    for decay_s in DECAYS_S:
        keep = 10 ** (-6 * transform.hop_length / transform.sample_rate / decay_s)
        averages.append(lfilter([1 - keep], [1, -keep], delayed, axis=-1))
    return torch.from_numpy(np.stack(averages, axis=1)).to(power)


def running_floor(power: torch.Tensor, transform: BandTransform) -> torch.Tensor:
    """Minimum (rows, 1, bands, frames) within a second of the smoothed `power` (rows, bands, frames)."""
    smoothed = _moving_mean(power, SMOOTHED_FRAMES)
    size = 2 * round(FLOOR_S / 2 * transform.sample_rate / transform.hop_length) + 1
    floor = minimum_filter1d(smoothed.cpu().numpy(), size, axis=-1, mode="nearest")
    return torch.from_numpy(floor).to(power)[:, None]


def _moving_mean(values: torch.Tensor, size: int) -> torch.Tensor:
    """Mean over `size` frames (odd) around each, of those that are there."""
    flat = values.reshape(-1, 1, values.shape[-1])
    return F.avg_pool1d(flat, size, 1, size // 2, count_include_pad=False).reshape(values.shape)


def _log_ratio(power: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Ratio of two powers in nats, bounded and scaled to about unit range."""
    return (power.clamp_min(POWER_FLOOR) / reference.clamp_min(POWER_FLOOR)).log().clamp(-10, 10) / 3


def _to_pixels(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(rows, channels, bands, frames) to (rows, channels * height * width, bands / height, frames / width)."""
    rows, channels, bands, frames = image.shape
    cells = image.reshape(rows, channels, bands // height, height, frames // width, width)
    return cells.permute(0, 1, 3, 5, 2, 4).reshape(rows, -1, bands // height, frames // width)


def _from_pixels(image: torch.Tensor, height: int) -> torch.Tensor:
    """(rows, channels * height, bands / height, frames) to (rows, channels, bands, frames)."""
    return image.unflatten(1, (-1, height)).transpose(2, 3).flatten(2, 3)
