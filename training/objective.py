"""The training objective: one UNet call that learns to denoise mels and to read complex gains.

A part of every batch, the predictive part, is at the last timestep, where zero terminal SNR makes channel 0 pure
noise: only there can the gains not peek at the clean mel, so only there are they supervised. The rest of the batch is
at random timesteps and learns the diffusion.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import ASTModel

from pipeline_aud2studio.conditioning import unet_condition
from pipeline_aud2studio.image import BandImage

from .losses import compressed_stft_loss, si_sdr_loss

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # auraloss imports librosa lazily and warns of what it does not need
    from auraloss.freq import STFTLoss

# Samples; with hops of a quarter window: auraloss' own, at a ninth, cost a fifth of a training step on a CPU. The
# resolution between these two is that of the compressed loss.
MR_STFT_WINDOWS = (512, 2048)


class MagnitudeLoss(STFTLoss):
    """auraloss' STFT loss without the phases, which it computes and does not use: a twelfth of a training step."""

    def __init__(self, window: int) -> None:
        super().__init__(fft_size=window, hop_size=window // 4, win_length=window)

    def stft(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        stft = torch.stft(x, self.fft_size, self.hop_size, self.win_length, self.window, return_complex=True)
        return (stft.real.square() + stft.imag.square()).clamp_min(self.eps).sqrt(), None


class RestorationObjective(nn.Module):
    """Losses of a batch of pairs.

    Args:
        unet, condition_encoder: What is trained.
        scheduler: Training schedule, with zero terminal SNR.
        image: The UNet's image.
        predictive_fraction: Probability of a pair to be at the last timestep.
        weights: Factors of the losses `diffusion`, `compressed_stft`, `mr_stft`, `si_sdr`.
        snr_gamma: Gamma of the min-SNR weights (Hang et al., 2023), or `None` for weights of 1.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        condition_encoder: ASTModel,
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
        self.mr_stft = nn.ModuleList(MagnitudeLoss(window) for window in MR_STFT_WINDOWS)

    def forward(self, batch: Mapping[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Losses by name; `loss` is their weighted sum.

        Args:
            batch: `recordings` (batch, M, samples), `num_slots` (batch,), `clean` (batch, samples); `samples` is a
                whole chunk of the condition encoder.
            generator: Source of noise and timesteps, on the CPU.
        """
        # Mixed precision is for the two networks: spectra, phases and losses want single precision.
        device_type = batch["clean"].device.type
        mixed = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):
            return self._losses(batch, generator, torch.autocast(device_type, mixed[1], enabled=mixed[0]))

    def _losses(
        self, batch: Mapping[str, torch.Tensor], generator: torch.Generator, precision: torch.autocast
    ) -> dict[str, torch.Tensor]:
        num_slots, clean = batch["num_slots"], batch["clean"]
        recordings = batch["recordings"][:, : int(num_slots.max())]  # (batch, R, samples)
        size, num_recordings = recordings.shape[:2]
        present = torch.arange(num_recordings, device=recordings.device) < num_slots[:, None]
        stft = self.image.transform.stft(recordings)  # (batch, R, bins, frames)
        clean_stft = self.image.transform.stft(clean)  # (batch, bins, frames)
        features = self.image.features(stft, present)
        target = self.image.correction(self.image.transform.log_mel(clean_stft)[:, None], features)

        noise = torch.randn(target.shape, generator=generator).to(target.device)
        timesteps = torch.randint(self.scheduler.config.num_train_timesteps, (size,), generator=generator)
        # Drawn per pair, so that the fraction holds for batches of two as well; one at least, for there to be a loss.
        predictive = torch.rand(size, generator=generator) < self.predictive_fraction
        predictive[0] |= not predictive.any()
        timesteps[predictive] = self.scheduler.config.num_train_timesteps - 1
        timesteps = timesteps.to(target.device)
        noisy = self.scheduler.add_noise(target, noise, timesteps)
        image = self.image.assemble(noisy, features)
        with precision:
            condition = unet_condition(self.unet, self.condition_encoder, features)
            output = self.unet(image, timesteps, **condition).sample
        prediction, gains = self.image.read(output, features)

        predictive = predictive.to(target.device)
        losses = {
            "diffusion": self._diffusion_loss(prediction, target, noise, timesteps),
            **self._waveform_losses(gains[predictive], stft[predictive], clean[predictive], clean_stft[predictive]),
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
        self, gains: torch.Tensor, stft: torch.Tensor, clean: torch.Tensor, clean_stft: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        faithful_stft = (self.image.transform.spread(gains) * stft).sum(1)  # (batch, bins, frames)
        faithful = self.image.transform.istft(faithful_stft, clean.shape[-1])  # (batch, samples)
        return {
            "compressed_stft": compressed_stft_loss(faithful_stft, clean_stft),
            "mr_stft": torch.stack([loss(faithful[:, None], clean[:, None]) for loss in self.mr_stft]).mean(),
            "si_sdr": si_sdr_loss(faithful, clean),
        }


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
