from types import SimpleNamespace

import numpy as np
import pytest
import torch
from auraloss.freq import MultiResolutionSTFTLoss
from diffusers import DDPMScheduler
from pipeline_aud2studio.image import BandImage
from torch import nn
from transformers import ASTConfig, ASTModel

from pipeline_aud2studio.conditioning import condition_tokens
from pipeline_aud2studio.spectral import BandTransform
from training.objective import MR_STFT_WINDOWS, MagnitudeLoss, RestorationObjective, min_snr_weights

FRAMES = 32
WEIGHTS = {"diffusion": 1.0, "compressed_stft": 2.0, "mr_stft": 0.5, "si_sdr": 0.1}


def schedule(prediction_type: str = "v_prediction") -> DDPMScheduler:
    return DDPMScheduler(
        prediction_type=prediction_type, rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False
    )


class RecordingUNet(nn.Module):
    """Answers with a constant and remembers what it was asked."""

    dtype, config = torch.float32, SimpleNamespace(class_embed_type=None)

    def forward(self, image, timesteps, encoder_hidden_states, encoder_attention_mask):
        self.image, self.timesteps, self.mask = image, timesteps, encoder_attention_mask
        return type("Output", (), {"sample": torch.zeros(len(image), 9 * 4, *image.shape[2:], requires_grad=True)})


@pytest.fixture(scope="module")
def encoder() -> ASTModel:
    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_length=FRAMES,
        num_mel_bins=128, frequency_stride=16, time_stride=16,
    )  # fmt: skip
    return ASTModel(config).eval()


@pytest.fixture
def objective(encoder) -> RestorationObjective:
    image = BandImage(BandTransform(), 4, 2, 4.0, -5.0, 2.3, 1.6, 1.5)
    return RestorationObjective(RecordingUNet(), encoder, schedule(), image, 0.5, WEIGHTS)


def batch(size: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    recordings = torch.zeros(size, 4, FRAMES * 256)
    clean = 0.07 * torch.randn(size, FRAMES * 256, generator=generator)
    recordings[:, 0] = clean + 0.02 * torch.randn(size, FRAMES * 256, generator=generator)
    recordings[0, 1] = recordings[0, 0]
    return {"recordings": recordings, "clean": clean, "num_slots": torch.tensor([2] + [1] * (size - 1))}


def test_losses_of_an_untrained_model_are_those_of_the_input(objective):
    data = batch()
    losses = objective(data, torch.Generator().manual_seed(0))
    predictive = objective.unet.timesteps == 999
    recording, clean = data["recordings"][predictive, 0], data["clean"][predictive]
    rho = nn.functional.cosine_similarity(recording, clean, dim=-1)
    signal = ((rho + (rho.square() + 0.16).sqrt()) / (1 + 1.16**0.5)).square()
    expected = -10 * torch.log10(signal / (1 - signal + 1e-3)).mean()
    assert float(losses["si_sdr"]) == pytest.approx(float(expected), abs=1e-2)
    weighted = sum(WEIGHTS[name] * float(losses[name]) for name in WEIGHTS)
    assert float(losses["loss"]) == pytest.approx(weighted, rel=1e-5)


def test_the_predictive_part_sees_nothing_of_the_truth(objective):
    """At the last timestep channel 0 is the noise itself; the others are noisy versions of the clean correction."""
    data = batch()
    objective(data, torch.Generator().manual_seed(0))
    predictive = objective.unet.timesteps == 999
    assert 0 < predictive.sum() < 4
    noisy = nn.functional.pixel_shuffle(objective.unet.image, 2)[:, 0]
    noise = torch.randn(4, 1, 128, FRAMES, generator=torch.Generator().manual_seed(0))[:, 0]
    torch.testing.assert_close(noisy[predictive], noise[predictive], atol=1e-5, rtol=1e-5)
    stft = objective.image.transform.stft
    log_mel = objective.image.transform.log_mel
    target = (log_mel(stft(data["clean"])) - log_mel(stft(data["recordings"][:, 0]))) / 1.6
    alpha = objective.scheduler.alphas_cumprod[objective.unet.timesteps][:, None, None]
    expected = alpha.sqrt() * target + (1 - alpha).sqrt() * noise
    torch.testing.assert_close(noisy, expected, atol=1e-3, rtol=1e-3)


def test_the_fraction_of_predictive_pairs(objective):
    generator, data = torch.Generator().manual_seed(0), batch(2)
    timesteps = []
    for _ in range(100):
        objective(data, generator)
        timesteps.append(objective.unet.timesteps)
    predictive = torch.stack(timesteps) == 999
    assert predictive.any(1).all()  # without one there would be no loss on the waveform
    assert float(predictive[:, 1].float().mean()) == pytest.approx(0.5, abs=0.15)


def test_diffusion_loss_against_its_formula(objective):
    data = batch()
    losses = objective(data, torch.Generator().manual_seed(0))
    noise = torch.randn(4, 1, 128, FRAMES, generator=torch.Generator().manual_seed(0))
    stft, log_mel = objective.image.transform.stft, objective.image.transform.log_mel
    target = (log_mel(stft(data["clean"])) - log_mel(stft(data["recordings"][:, 0])))[:, None] / 1.6
    alpha = objective.scheduler.alphas_cumprod[objective.unet.timesteps][:, None, None, None]
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * target  # the UNet's answer is zero
    assert float(losses["diffusion"]) == pytest.approx(float(velocity.square().mean()), rel=1e-3)


def test_condition_tokens_are_masked_where_no_recording_is(objective):
    objective(batch(), torch.Generator().manual_seed(0))
    per_recording = 1 + 128 // 16
    assert objective.unet.mask.shape == (4, 2 * per_recording)
    assert objective.unet.mask.sum(1).tolist() == [2 * per_recording] + [per_recording] * 3


def test_condition_tokens_average_patches_over_time(encoder):
    image = BandImage(BandTransform(), 4, 2, 4.0, -5.0, 2.3, 1.6, 1.5)
    data = batch(1)
    present = torch.tensor([[True, True, False, False]])
    features = image.features(image.transform.stft(data["recordings"]), present)
    tokens, _ = condition_tokens(encoder, features)
    hidden = encoder(features.log_mel[0, :1].transpose(1, 2)).last_hidden_state[0].detach().numpy()
    rows = hidden[2:].reshape(8, 2, 16)  # 128 bands and 32 frames in patches of 16
    np.testing.assert_allclose(tokens[0, 0].detach(), hidden[0], atol=1e-5)
    np.testing.assert_allclose(tokens[0, 1:9].detach(), rows.mean(1), atol=1e-5)
    assert tokens[0, 18:].abs().max() == 0


def test_a_chunk_of_another_length_is_refused(encoder):
    image = BandImage(BandTransform(), 4, 2, 4.0, -5.0, 2.3, 1.6, 1.5)
    features = image.features(torch.zeros(1, 4, 513, 48, dtype=torch.complex64), torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="chunks of 32 frames, got 48"):
        condition_tokens(encoder, features)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_min_snr_weights_against_their_formula(prediction_type):
    scheduler = schedule(prediction_type)
    timesteps = torch.tensor([0, 100, 500, 900, 999])
    alphas = scheduler.alphas_cumprod[timesteps].double().numpy()
    snr = alphas / (1 - alphas)
    clipped = np.minimum(snr, 5.0)
    expected = np.maximum(clipped, 1) if prediction_type == "sample" else (clipped + 1) / (snr + 1)
    weights = min_snr_weights(scheduler, timesteps, 5.0)
    np.testing.assert_allclose(weights, expected, rtol=1e-4)
    assert float(weights[-1]) == pytest.approx(1.0)  # the predictive pass learns its mel


def test_magnitude_losses_are_those_of_auraloss() -> None:
    estimate, target = torch.randn(2, 3, 1, 8192, generator=torch.Generator().manual_seed(0))
    expected = MultiResolutionSTFTLoss([512, 2048], [128, 512], [512, 2048])(estimate, target)
    losses = [MagnitudeLoss(window)(estimate, target) for window in MR_STFT_WINDOWS]
    assert float(sum(losses)) / 2 == pytest.approx(float(expected), rel=1e-6)
