"""The training objective: one UNet call that learns to denoise mels, and to gate and to filter a recording.

A part of every batch, the predictive part, is at the last timestep, where zero terminal SNR makes channel 0 pure
noise: only there can gate and gain not peek at the clean mel, so only there are they supervised. The rest of the batch
is at random timesteps and learns the diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn
from torch.nn import functional as F
from transformers import ASTForAudioClassification

from pipeline_aud2studio.conditioning import condition_arguments, tokens_and_labels
from pipeline_aud2studio.features import Answer, BandImage, Features

from .losses import band_energy_loss, compressed_stft_loss, si_sdr_loss


class RestorationObjective(nn.Module):
    """Computes the losses of a batch of examples.

    Args:
        unet, condition_encoder: What is trained.
        scheduler: Training schedule, with zero terminal SNR.
        image: The UNet's image.
        predictive_fraction: Probability of an example to be at the last timestep.
        weights: Factors of the losses `diffusion`, `compressed_stft`, `band_energy`, `si_sdr`, `labels`.
        snr_gamma: Gamma of the min-SNR weights (Hang et al., 2023), or `None` for weights of 1.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        condition_encoder: ASTForAudioClassification,
        scheduler: DDPMScheduler,
        image: BandImage,
        predictive_fraction: float,
        weights: Mapping[str, float],
        snr_gamma: float | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.condition_encoder = unet, condition_encoder
        self.scheduler, self.image = scheduler, image
        self.predictive_fraction, self.weights, self.snr_gamma = predictive_fraction, dict(weights), snr_gamma

    def forward(self, batch: Mapping[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Computes the losses by name; `loss` is their weighted sum.

        Args:
            batch: What :func:`training.data.examples.collate` gives.
            generator: Source of noise and timesteps, on the CPU.
        """
        # Mixed precision is for the two networks: spectra, phases and losses want single precision.
        device_type = batch["target"].device.type
        mixed = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):
            return self._losses(batch, generator, torch.autocast(device_type, mixed[1], enabled=mixed[0]))

    def _losses(
        self, batch: Mapping[str, torch.Tensor], generator: torch.Generator, precision: torch.autocast
    ) -> dict[str, torch.Tensor]:
        features = Features(*(batch[name] for name in Features._fields))
        size, device = len(batch["target"]), batch["target"].device
        correction = self.image.correction(batch["target_log_mel"], features)

        noise = torch.randn(correction.shape, generator=generator).to(device)
        timesteps = torch.randint(self.scheduler.config.num_train_timesteps, (size,), generator=generator)
        # Drawn per example, so that the fraction holds for batches of two as well; one at least, for there to be a
        # loss.
        predictive = torch.rand(size, generator=generator) < self.predictive_fraction
        predictive[0] |= not predictive.any()
        timesteps[predictive] = self.scheduler.config.num_train_timesteps - 1
        timesteps = timesteps.to(device)
        noisy = self.scheduler.add_noise(correction, noise, timesteps)
        image = self.image.assemble(noisy, features).contiguous(memory_format=torch.channels_last)
        with precision:
            tokens, mask, labels = tokens_and_labels(self.condition_encoder, features)
            arguments = condition_arguments(self.unet, tokens, mask, features.present)
            output = self.unet(image, timesteps, **arguments).sample
        answer = self.image.read(output, features)

        losses = {
            "diffusion": self._diffusion_loss(answer.prediction, correction, noise, timesteps),
            **self._waveform_losses(answer, batch, predictive.to(device)),
            "labels": label_loss(labels.float(), batch["labels"], features.present),
        }
        losses["loss"] = sum((self.weights[name] * loss for name, loss in losses.items()), torch.zeros(()))
        return losses

    def _diffusion_loss(
        self, prediction: torch.Tensor, target: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        wanted = {
            "sample": lambda: target,
            "v_prediction": lambda: self.scheduler.get_velocity(target, noise, timesteps),
        }[self.scheduler.config.prediction_type]()
        error = (prediction - wanted).square().mean((1, 2, 3))
        if self.snr_gamma is not None:
            error = error * min_snr_weights(self.scheduler, timesteps, self.snr_gamma)
        return error.mean()

    def _waveform_losses(
        self, answer: Answer, batch: Mapping[str, Any], chosen: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Losses of the faithful read-out of the chosen examples."""
        target, coarse = batch["target"][chosen], self.image.coarse
        stft, late = batch["stft"][chosen], batch["late"][chosen]
        faithful_stft = self.image.apply(stft, late, answer.gate[chosen], answer.gain[chosen])
        # The frames before and after a chunk are missing in its first and last samples.
        inside = slice(coarse.pad, target.shape[-1] - coarse.pad)
        faithful, recording = (coarse.istft(each, target.shape[-1])[:, inside] for each in (faithful_stft, stft))
        target = target[:, inside]
        energy = coarse.average(faithful_stft.real.square() + faithful_stft.imag.square())
        return {
            "compressed_stft": compressed_stft_loss(faithful, target),
            "band_energy": band_energy_loss(energy, batch["target_power"][chosen]),
            # Less that of the recording, which has no gradient: zero says that nothing was gained.
            "si_sdr": si_sdr_loss(faithful, target) - si_sdr_loss(recording, target),
        }


def label_loss(found: torch.Tensor, wanted: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Mean of smooth L1 distances and, for the last label, of binary cross-entropies.

    Args:
        found: Of the recordings that exist, one row after the other (existing, labels).
        wanted: Of every row's own recording (rows, labels), NaN where there is none.
        present: Which recordings exist (rows, slots).
    """
    own = found[present.cumsum(1)[present] == 1]  # the first of every row
    distance = torch.cat(
        [
            F.smooth_l1_loss(own[:, :-1], wanted[:, :-1].nan_to_num(), reduction="none"),
            F.binary_cross_entropy_with_logits(own[:, -1:], wanted[:, -1:].nan_to_num(), reduction="none"),
        ],
        dim=1,
    )
    known = ~wanted.isnan()
    return (distance * known).sum() / known.sum().clamp_min(1)


def min_snr_weights(scheduler: DDPMScheduler, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
    """Weights of the squared error of the scheduler's prediction type (Hang et al., 2023, equations 5 to 7).

    They weigh the error of the clean sample by `min(SNR, gamma)`. At a terminal SNR of zero that is no weight at all,
    and the predictive pass would learn no mel; so one is added to the SNR of `v_prediction`, and the weight of
    `sample` is at least one.
    """
    alphas = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = alphas / (1 - alphas)
    clipped = snr.clamp(max=gamma)
    return {"sample": clipped.clamp_min(1.0), "v_prediction": (clipped + 1) / (snr + 1)}[
        scheduler.config.prediction_type
    ]
