"""Late sound, predicted from the past: weighted prediction error over all channels of all recordings.

Nakatani et al., "Speech dereverberation based on variance-normalized delayed linear prediction" (2010), and for
several channels Yoshioka and Nakatani, "Generalization of multi-channel linear prediction methods for blind MIMO
impulse response shortening" (2012); one iteration, weighted by the power of the recording that is to be restored. What
makes it work for music is its scale: a window of 93 ms, a delay of 70 ms, filters of 0.3 to 0.6 s, blocks of 24 s.

Letters in the shapes: `channels` of all recordings, the reference's first; `targets`, those of the reference.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

DELAY = 3  # frames between a sound and the first that it may predict: its direct sound and early reflections stay
SMOOTHED_FRAMES = 3  # of the weights: what is learned from one quiet frame alone is mostly its noise
RIDGE = 1e-10  # of the mean diagonal; above 1e-8 it would forbid the long filters that prediction needs
POWER_FLOOR = 1e-10  # of the strongest frame's power, nara_wpe's
BLOCK_FRAMES, OVERLAP_FRAMES = 1024, 128  # with hops of 1024 samples at 44.1 kHz: blocks of 23.8 s, 3 s of cross-fade
BINS_TOGETHER = 16  # whose expanded past stays in a cache


def taps_for(num_channels: int, num_frames: int = BLOCK_FRAMES) -> int:
    """Frames that predict: 24 for one channel, fewer for many or in a short block, which has to have ten frames for
    every unknown: filters that fit all that they learned from would take everything away.
    """
    wanted = {1: 24, 2: 20, 3: 14, 4: 12}.get(num_channels, max(2, 48 // num_channels))
    return max(1, min(wanted, num_frames // (10 * num_channels)))


def power_of(targets: torch.Tensor) -> torch.Tensor:
    """Mean power (bins, frames) of the targets (targets, bins, frames) over neighbouring frames."""
    power = (targets.real.square() + targets.imag.square()).mean(0, keepdim=True)
    return F.avg_pool1d(power, SMOOTHED_FRAMES, 1, SMOOTHED_FRAMES // 2, count_include_pad=False)[0]


def predict_late(
    stft: torch.Tensor,
    num_targets: int,
    taps: int | None = None,
    delay: int = DELAY,
    power: torch.Tensor | None = None,
    history: int = 0,
) -> torch.Tensor:
    """Predicts the late sound of the first channels from the past of all of them.

    Args:
        stft: Spectra (channels, bins, frames), complex64 or complex128, of one block.
        num_targets: Channels whose late sound is wanted.
        taps: Frames of the past that every channel predicts with; by default :func:`taps_for` the channels.
        delay: Frames between the newest of these and what they predict.
        power: Estimated power (bins, frames) of the early sound, the inverse weight of the squared error; by default
            :func:`power_of` the targets themselves. No filter learns from where it is infinite.
        history: The first frames, which only predict: they belong to the block before.

    Returns:
        The late sound (targets, bins, frames - history); subtract it to dereverberate.

    Raises:
        ValueError: If a number does not fit the spectra.
    """
    channels, bins, frames = stft.shape
    taps = taps_for(channels, frames - history) if taps is None else taps
    if not 1 <= num_targets <= channels or taps < 1 or delay < 1 or not 0 <= history < frames:
        raise ValueError(
            f"{num_targets} targets of {channels} channels, {taps} taps, a delay of {delay} and a history of "
            f"{history} of {frames} frames do not fit each other."
        )
    if power is None:
        power = power_of(stft[:num_targets, :, history:])
    strongest = torch.where(power.isinf(), 0, power).amax()
    floor = (POWER_FLOOR * strongest).clamp_min(torch.finfo(power.dtype).tiny)
    # Nothing is learned from these, but they are predicted, by a division through the root of their weight.
    weight = 1 / power.clamp(floor, 1e8 * strongest + floor)
    late = [
        _predicted(
            stft[:, first : first + BINS_TOGETHER], weight[first : first + BINS_TOGETHER], num_targets, taps, delay
        )
        for first in range(0, bins, BINS_TOGETHER)
    ]
    return torch.cat(late).transpose(0, 1)


def _predicted(stft: torch.Tensor, weight: torch.Tensor, num_targets: int, taps: int, delay: int) -> torch.Tensor:
    """The late sound (bins, targets, frames) of some bins (channels, bins, history + frames)."""
    frames, channels = weight.shape[-1], len(stft)
    first = stft.shape[-1] - frames - (taps + delay - 1)  # the oldest frame that predicts; before the block: silence
    padded = F.pad(torch.view_as_real(stft), (0, 0, max(-first, 0), 0))[:, :, max(first, 0) :]
    root = weight.sqrt()[:, None]  # (bins, 1, frames)
    # Real and imaginary parts as rows of their own: real products need no conjugated copies.
    rows = padded.permute(1, 3, 0, 2).unfold(-1, frames, 1)[..., :taps, :]  # (bins, 2, channels, taps, frames)
    past = rows.reshape(len(weight), 2 * channels * taps, frames).mul_(root)
    wanted = torch.view_as_real(stft[:num_targets, :, -frames:]).permute(1, 3, 0, 2).flatten(1, 2) * root
    covariance = _complex_products(past @ past.mT)
    correlation = _complex_products(wanted @ past.mT)
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    diagonal += RIDGE * diagonal.real.mean(-1, keepdim=True) + torch.finfo(weight.dtype).tiny
    filters = torch.linalg.solve(covariance, correlation, left=False)  # (bins, targets, channels * taps)
    real, imag = filters.real.to(past.dtype), filters.imag.to(past.dtype)
    filters = torch.cat([torch.cat([real, -imag], 2), torch.cat([imag, real], 2)], 1)
    late = (filters @ past / root).unflatten(1, (2, num_targets))  # (bins, 2, targets, frames)
    return torch.complex(late[:, 0], late[:, 1])


def _complex_products(products: torch.Tensor) -> torch.Tensor:
    """`A B^H` in double precision, of the products of all real and imaginary parts (bins, 2 * rows, 2 * columns).

    Single precision would lose the small eigenvalues in the solution, on which long filters live.
    """
    parts = products.double().unflatten(1, (2, -1)).unflatten(3, (2, -1))  # (bins, 2, rows, 2, columns)
    real = parts[:, 0, :, 0] + parts[:, 1, :, 1]
    return torch.complex(real, parts[:, 1, :, 0] - parts[:, 0, :, 1])
