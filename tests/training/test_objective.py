"""The losses of a batch: held against formulas, on a UNet whose answer is known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn
from transformers import ASTConfig, ASTForAudioClassification

from pipeline_aud2studio.conditioning import LABEL_MEANS, LABEL_SCALES, LABELS, condition_tokens
from pipeline_aud2studio.features import PATCH, BandImage, Features, image_channels
from pipeline_aud2studio.spectral import BandTransform
from training.data.examples import collate, scaled_labels, scene_examples
from training.data.scenes import Scene
from training.losses import compressed_stft_loss
from training.objective import RestorationObjective, label_loss, min_snr_weights

FRAMES = 32
WEIGHTS = {"diffusion": 1.0, "compressed_stft": 2.0, "band_energy": 0.5, "si_sdr": 0.1, "labels": 0.3}
LABEL_VALUES = {"rt60_s": 1.2, "drr_db": -3.0, "snr_db": math.nan, "bandwidth_hz": 15000.0, "voice": 1.0}


def schedule(prediction_type: str = "v_prediction") -> DDPMScheduler:
    return DDPMScheduler(
        prediction_type=prediction_type, rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False
    )


class RecordingUNet(nn.Module):
    """Answers with a constant that takes nothing away, and remembers what it was asked."""

    dtype, config = torch.float32, SimpleNamespace(class_embed_type=None)

    def forward(self, image, timesteps, encoder_hidden_states, encoder_attention_mask):
        self.image, self.timesteps, self.mask = image, timesteps, encoder_attention_mask
        output = torch.full((len(image), image_channels(4)[1], *image.shape[2:]), -40.0)
        output[:, : PATCH**2] = 0.0
        return type("Output", (), {"sample": output.requires_grad_()})


@pytest.fixture(scope="module")
def encoder() -> ASTForAudioClassification:
    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_length=FRAMES,
        num_mel_bins=128, frequency_stride=16, time_stride=16, num_labels=len(LABELS),
    )  # fmt: skip
    return ASTForAudioClassification(config).eval()


@pytest.fixture(scope="module")
def image() -> BandImage:
    return BandImage(BandTransform(), 4, -5.0, 2.3, 1.6)


@pytest.fixture
def objective(encoder, image) -> RestorationObjective:
    return RestorationObjective(RecordingUNet(), encoder, schedule(), image, 0.5, WEIGHTS)


@pytest.fixture(scope="module")
def batch(image) -> dict[str, torch.Tensor]:
    """A scene of one recording in mono, and one of two, three examples each."""
    rng, found = np.random.default_rng(1), []
    for channels in ([1], [1, 1]):
        target = (0.07 * rng.standard_normal((1, 3 * FRAMES * 1024 + 3000))).astype(np.float32)
        recordings = [
            np.repeat(target, count, 0) + 0.02 * rng.standard_normal((count, target.shape[1])).astype(np.float32)
            for count in channels
        ]
        found += scene_examples(Scene(recordings, target, target, LABEL_VALUES, {}), image, FRAMES, rng)
    assert len(found) == 6
    return collate(found)


def test_an_example_is_what_the_pipeline_sees(image) -> None:
    """Cut from the scene's middle: the spectra are those of the whole, the target lies at the recording's place."""
    rng = np.random.default_rng(3)
    target = (0.1 * rng.standard_normal((1, 3 * FRAMES * 1024))).astype(np.float32)
    example = scene_examples(Scene([2 * target], target, target, LABEL_VALUES, {}), image, FRAMES, rng)[1]
    stft = image.coarse.stft(example["target"][None])[0]
    inner = slice(4, -4)  # the edges of a chunk lack what is beside it
    ratio = example["stft"][:, inner] / stft[:, inner]
    torch.testing.assert_close(ratio.real.median(), torch.tensor(2.0), atol=1e-3, rtol=1e-3)
    power = image.coarse.average(stft.abs().square())[:, inner]
    torch.testing.assert_close(example["target_power"][:, inner], power, rtol=1e-3, atol=1e-4)
    assert example["log_mel"].shape == (1, 128, 4 * FRAMES)


def test_losses_of_a_model_that_takes_nothing_away_are_those_of_the_input(objective, batch):
    losses = objective(batch, torch.Generator().manual_seed(0))
    predictive = objective.unet.timesteps == 999
    coarse = objective.image.coarse
    recording = coarse.istft(batch["stft"][predictive], batch["target"].shape[-1])[:, coarse.pad : -coarse.pad]
    target = batch["target"][predictive][:, coarse.pad : -coarse.pad]
    assert float(losses["si_sdr"]) == pytest.approx(0.0, abs=1e-2)
    assert float(losses["compressed_stft"]) == pytest.approx(float(compressed_stft_loss(recording, target)), rel=1e-3)
    weighted = sum(WEIGHTS[name] * float(losses[name].detach()) for name in WEIGHTS)
    assert float(losses["loss"].detach()) == pytest.approx(weighted, rel=1e-5)


def test_the_predictive_part_sees_nothing_of_the_truth(objective, batch):
    """At the last timestep channel 0 is the noise itself; the others are noisy versions of the clean correction."""
    objective(batch, torch.Generator().manual_seed(0))
    predictive = objective.unet.timesteps == 999
    assert 0 < predictive.sum() < 6
    noisy = nn.functional.pixel_shuffle(objective.unet.image[:, : PATCH**2].contiguous(), PATCH)[:, 0]
    noise = torch.randn(6, 1, 128, 4 * FRAMES, generator=torch.Generator().manual_seed(0))[:, 0]
    torch.testing.assert_close(noisy[predictive], noise[predictive], atol=1e-5, rtol=1e-5)
    target = (batch["target_log_mel"][:, 0] - (batch["log_mel"][:, 0] * 2.3 - 5.0)) / 1.6
    alpha = objective.scheduler.alphas_cumprod[objective.unet.timesteps][:, None, None]
    expected = alpha.sqrt() * target + (1 - alpha).sqrt() * noise
    torch.testing.assert_close(noisy, expected, atol=1e-3, rtol=1e-3)


def test_the_fraction_of_predictive_examples(objective, batch):
    generator, timesteps = torch.Generator().manual_seed(0), []
    two = {name: part[:2] for name, part in batch.items()}
    for _ in range(60):
        objective(two, generator)
        timesteps.append(objective.unet.timesteps)
    predictive = torch.stack(timesteps) == 999
    assert predictive.any(1).all()  # without one there would be no loss on the waveform
    assert float(predictive[:, 1].float().mean()) == pytest.approx(0.5, abs=0.2)


def test_diffusion_loss_against_its_formula(objective, batch):
    losses = objective(batch, torch.Generator().manual_seed(0))
    noise = torch.randn(6, 1, 128, 4 * FRAMES, generator=torch.Generator().manual_seed(0))
    target = (batch["target_log_mel"] - (batch["log_mel"][:, :1] * 2.3 - 5.0)) / 1.6
    alpha = objective.scheduler.alphas_cumprod[objective.unet.timesteps][:, None, None, None]
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * target  # the UNet's answer is zero
    assert float(losses["diffusion"].detach()) == pytest.approx(float(velocity.square().mean()), rel=1e-3)


def test_labels_are_scaled_and_unknown_ones_do_not_count() -> None:
    wanted = scaled_labels(LABEL_VALUES)
    values = [math.log(1.2), -3.0, math.nan, math.log(15000), 1.0]
    expected = (np.array(values) - np.array(LABEL_MEANS)) / np.array(LABEL_SCALES)
    np.testing.assert_allclose(wanted, expected, rtol=1e-5)
    # Of two rows with two and one recordings the classifier says something of three; the rows' own are 0 and 2.
    present = torch.tensor([[True, True], [True, False]])
    found = torch.zeros(3, 5)
    found[1] = 100.0
    loss = label_loss(found, torch.stack([wanted, wanted]), present)
    known = [expected[0], expected[1], expected[3]]
    smooth = [0.5 * v**2 if abs(v) < 1 else abs(v) - 0.5 for v in known]
    assert float(loss) == pytest.approx((sum(smooth) + math.log(2)) / 4, rel=1e-5)


def test_condition_tokens_are_masked_where_no_recording_is(objective, batch):
    objective(batch, torch.Generator().manual_seed(0))
    per_recording = 1 + 128 // 16
    assert objective.unet.mask.shape == (6, 2 * per_recording)
    assert objective.unet.mask.sum(1).tolist() == [per_recording] * 3 + [2 * per_recording] * 3


def test_condition_tokens_average_patches_over_time(encoder, batch):
    features = Features(*(batch[name][:1] for name in Features._fields))
    tokens, _ = condition_tokens(encoder, features)
    spectrogram = features.log_mel[0, :1].unflatten(-1, (FRAMES, 4)).mean(-1).transpose(1, 2)
    hidden = encoder.audio_spectrogram_transformer(spectrogram).last_hidden_state[0].detach().numpy()
    rows = hidden[2:].reshape(8, 2, 16)  # 128 bands and 32 frames in patches of 16
    np.testing.assert_allclose(tokens[0, 0].detach(), hidden[0], atol=1e-5)
    np.testing.assert_allclose(tokens[0, 1:9].detach(), rows.mean(1), atol=1e-5)
    assert tokens[0, 9:].abs().max() == 0


def test_a_chunk_of_another_length_is_refused(encoder, batch):
    features = Features(*(batch[name] for name in Features._fields)).cut(0, 16)
    with pytest.raises(ValueError, match="chunks of 32 frames, got 16"):
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
