"""How far a restoration is from the clean original: objective distances.

Waveforms are tensors (..., samples); a metric gives one value for each of the leading dimensions, computed in float64.
"""

from __future__ import annotations

import numpy as np
import torch
from auraloss.freq import MultiResolutionSTFTLoss

from pipeline_aud2studio.audio import NORMAL_RMS_DB, loudness_lufs

TINY = 1e-20
LSD_FFT, LSD_HOP = 2048, 512  # 46 ms and 12 ms at 44.1 kHz
LSD_RANGE_DB = 60.0


def si_sdr(estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Scale-invariant signal-to-distortion ratio in dB; larger is better, unbounded.

    Le Roux et al., "SDR - half-baked or well done?" (ICASSP 2019), equation 5. The mean is not removed: an offset is a
    distortion. A sample of delay is one as well.

    Args:
        estimate, target: (..., samples).

    Raises:
        ValueError: if the shapes differ or the target is silent.
    """
    estimate, target = checked(estimate, target)
    scale = (estimate * target).sum(-1, keepdim=True) / target.square().sum(-1, keepdim=True)
    projection = scale * target
    return _ratio_db(projection, estimate - projection)


def sdr(estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Signal-to-distortion ratio in dB, of what level the estimate has; larger is better, unbounded.

    The energy of the target over the energy of the difference: the "SNR" of Le Roux et al. (2019), and the SDR of the
    music demixing challenges since 2021, without the filters of BSS Eval.
    """
    estimate, target = checked(estimate, target)
    return _ratio_db(target, estimate - target)


def multi_resolution_stft(estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Multi-resolution STFT distance, no unit, 0 is equal; the phase does not count.

    Yamamoto et al., "Parallel WaveGAN" (ICASSP 2020), computed by auraloss' `MultiResolutionSTFTLoss`: spectral
    convergence plus the mean absolute difference of natural log-magnitudes (of at least 1e-4), averaged over three
    resolutions. The target is first brought to -23 dBFS, where that floor belongs, and the estimate to the target's
    level (`level_matched`): restorations keep the level of the recording, not that of the clean original.
    """
    estimate, target = checked(estimate, target)
    normal = 10 ** (NORMAL_RMS_DB / 20) / target.square().mean(-1, keepdim=True).sqrt()
    matched = level_matched(estimate, target) * normal
    distance = MultiResolutionSTFTLoss()  # at Yamamoto's resolutions
    pairs = zip(
        matched.reshape(-1, 1, 1, target.shape[-1]), (target * normal).reshape(-1, 1, 1, target.shape[-1]), strict=True
    )
    # One signal at a time, since auraloss averages over a batch.
    return torch.stack([distance(one.float(), other.float()) for one, other in pairs]).reshape(target.shape[:-1])


def log_spectral_distance(estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Log-spectral distance in dB, 0 is equal; the phase does not count, nor does the level.

    Gray and Markel, "Distance measures for speech processing" (1976): the root mean square over frequency of the
    difference of two spectra in dB, averaged over frames. STFT 2048/512 with a Hann window; the estimate is brought to
    the target's level (`level_matched`); both are clamped 60 dB below the target's strongest bin, so that what
    nobody hears does not decide.
    """
    estimate, target = checked(estimate, target)
    estimated, wanted = _magnitudes(level_matched(estimate, target)), _magnitudes(target)
    floor = wanted.amax((-2, -1), keepdim=True) * 10 ** (-LSD_RANGE_DB / 20)
    difference_db = 20 * torch.log10(torch.maximum(estimated, floor) / torch.maximum(wanted, floor))
    return difference_db.square().mean(-2).sqrt().mean(-1)


def level_matched(estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The estimate, times the gain that brings its magnitude spectrogram closest to the target's (least squares)."""
    estimated, wanted = _magnitudes(estimate), _magnitudes(target)
    gain = (estimated * wanted).sum((-2, -1)) / estimated.square().sum((-2, -1)).clamp_min(TINY)
    return estimate * gain[..., None]


def level_change_lu(restored: torch.Tensor, recording: torch.Tensor, sample_rate: int) -> float:
    """How much louder the restoration is than the recording, both (channels, samples), in LU (ITU-R BS.1770-4).

    Measured by pyloudnorm.
    """
    before = loudness_lufs(recording.numpy(), sample_rate)
    return loudness_lufs(restored.numpy(), sample_rate) - before


def checked(estimate: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in float64; ValueError if the shapes differ or a channel of the target is silent."""
    if estimate.shape != target.shape:
        raise ValueError(f"estimate {tuple(estimate.shape)} and target {tuple(target.shape)} differ in shape")
    if bool((target == 0).all(-1).any()):
        raise ValueError("the target is silent: nothing can be compared with it")
    return estimate.double(), target.double()


def _ratio_db(signal: torch.Tensor, distortion: torch.Tensor) -> torch.Tensor:
    return 10 * torch.log10((signal.square().sum(-1) + TINY) / (distortion.square().sum(-1) + TINY))


def _magnitudes(waveform: torch.Tensor) -> torch.Tensor:
    """(..., samples) to (..., bins, frames)."""
    window = torch.hann_window(LSD_FFT, dtype=waveform.dtype)
    flat = waveform.reshape(-1, waveform.shape[-1])
    magnitudes = torch.stft(flat, LSD_FFT, LSD_HOP, window=window, return_complex=True).abs()
    return magnitudes.reshape(*waveform.shape[:-1], *magnitudes.shape[-2:])


THIRD_OCTAVES_HZ = 1000 * 2 ** (np.arange(-14, 13) / 3)  # 39 Hz to 16 kHz
GAP_DB, GAP_REACH_S, GAP_WINDOW, GAP_HOP = 25.0, 1.0, 4096, 2048


def third_octave_powers(waveform: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Power (..., third octaves, frames) of waveforms (..., samples) in frames of 93 ms, every 46 ms at 44.1 kHz."""
    window = torch.hann_window(GAP_WINDOW, dtype=waveform.dtype)
    flat = waveform.reshape(-1, waveform.shape[-1])
    power = torch.stft(flat, GAP_WINDOW, GAP_HOP, window=window, return_complex=True).abs().square()
    frequencies = np.arange(GAP_WINDOW // 2 + 1) * sample_rate / GAP_WINDOW
    inside = np.abs(np.log2(np.maximum(frequencies, 1e-3)[None] / THIRD_OCTAVES_HZ[:, None])) <= 1 / 6
    inside[np.arange(len(inside)), np.abs(frequencies[None] - THIRD_OCTAVES_HZ[:, None]).argmin(1)] = True
    bands = torch.from_numpy(inside.astype(np.float64)).to(waveform) @ power
    return bands.reshape(*waveform.shape[:-1], *bands.shape[-2:])


def balance_error(estimate: torch.Tensor, target: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Root mean square in dB of the difference of two long-term spectra in third octaves, their mean difference apart.

    Bands in which the target has less than -60 dB of its strongest do not count.
    """
    estimate, target = checked(estimate, target)
    found, wanted = (third_octave_powers(each, sample_rate).mean(-1) for each in (estimate, target))
    heard = wanted > wanted.amax(-1, keepdim=True) * 1e-6
    difference_db = 10 * torch.log10((found + TINY) / (wanted + TINY))
    count = heard.sum(-1, keepdim=True)
    difference_db = difference_db - (difference_db * heard).sum(-1, keepdim=True) / count
    return ((difference_db.square() * heard).sum(-1) / count[..., 0]).sqrt()


def gap_excess(estimate: torch.Tensor, target: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Mean level in dB above the target in the gaps between its notes; 0 is as quiet as the target.

    A gap is where a third octave of the target is 25 dB below its own maximum within a second, but not silent. The
    estimate is brought to the target's level first (:func:`level_matched`). What is below the target counts as equal.
    """
    estimate, target = checked(estimate, target)
    found, wanted = (third_octave_powers(each, sample_rate) for each in (level_matched(estimate, target), target))
    reach = round(GAP_REACH_S * sample_rate / GAP_HOP)
    flat = wanted.reshape(-1, 1, wanted.shape[-1])
    loudest = torch.nn.functional.max_pool1d(flat, 2 * reach + 1, 1, reach).reshape(wanted.shape)
    floor = wanted.amax((-2, -1), keepdim=True) * 1e-8
    gaps = (wanted < loudest * 10 ** (-GAP_DB / 10)) & (loudest > floor * 10 ** (GAP_DB / 10))
    excess_db = 10 * torch.log10((found + floor) / (wanted + floor)).clamp_min(0)
    return (excess_db * gaps).sum((-2, -1)) / gaps.sum((-2, -1)).clamp_min(1)
