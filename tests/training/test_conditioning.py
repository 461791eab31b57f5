"""Cross-attention and FiLM, 128 and 256 bands: all four train, restore, and are found again in what was saved."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline_aud2studio import Aud2StudioPipeline
from pipeline_aud2studio.conditioning import condition_tokens, unet_condition
from pipeline_aud2studio.features import Features
from training.build import (
    build_condition_encoder,
    build_image,
    build_objective,
    build_optimizer,
    build_pipeline,
    build_unet,
)
from training.config import TrainingConfig, parse_config
from training.data.examples import collate, scene_examples
from training.data.scenes import Scene

RATE = 44_100
MEL = {128: {"n_mels": 128}, 256: {"n_mels": 256, "n_fft": 2048}}  # a window of 1024 has no bin for the lowest of 256


def toy(conditioning: str, bands: int) -> TrainingConfig:
    model = {
        "block_out_channels": [8, 16],
        "attention_resolutions": [8],
        "attention_head_dim": 8,
        "norm_num_groups": 4,
        "conditioning": conditioning,
        "conditioning_dim": 16,
        "conditioning_layers": 1,
        "conditioning_heads": 2,
        "overlap_frames": 8,
    }
    return parse_config({"audio": {"clip_seconds": 0.2}, "mel": MEL[bands], "model": model})


def batch(config: TrainingConfig) -> dict[str, torch.Tensor]:
    """Examples of two scenes, one of them with a second recording."""
    rng, found = np.random.default_rng(1), []
    labels = {"rt60_s": 1.0, "drr_db": 0.0, "snr_db": 5.0, "bandwidth_hz": 15000.0, "voice": 0.0}
    for count in (2, 1):
        target = (0.07 * rng.standard_normal((1, config.clip_samples))).astype(np.float32)
        noises = 0.05 * rng.standard_normal((count, *target.shape)).astype(np.float32)
        scene = Scene([target + noise for noise in noises], target, target, labels, {})
        found += scene_examples(scene, build_image(config), config.chunk_frames, rng)
    return collate(found)


@pytest.mark.parametrize("bands", [128, 256])
@pytest.mark.parametrize("conditioning", ["cross_attention", "film"])
def test_trains_restores_and_is_saved(conditioning: str, bands: int, tmp_path: Path) -> None:
    config = toy(conditioning, bands)
    torch.manual_seed(0)
    unet, encoder = build_unet(config), build_condition_encoder(config)
    assert unet.config.resnet_time_scale_shift == ("scale_shift" if conditioning == "film" else "default")
    objective = build_objective(config, unet, encoder)
    optimizer = build_optimizer(config.train, objective)
    losses = []
    for _ in range(3):  # the last layer starts at zero, so the encoder learns from the second step on
        optimizer.zero_grad()
        loss = objective(batch(config), torch.Generator().manual_seed(0))["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[0] > losses[1] > losses[2]
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    assert gradients["audio_spectrogram_transformer.embeddings.patch_embeddings.projection.weight"].abs().max() > 0

    nn.init.normal_(unet.conv_out.weight, std=0.05)
    pipeline = build_pipeline(config, unet.eval(), encoder.eval())
    pipeline.set_progress_bar_config(disable=True)
    audio = 0.1 * np.random.default_rng(3).standard_normal((2, RATE // 2)).astype(np.float32)
    restored = pipeline(audio, RATE, generator=torch.Generator().manual_seed(0)).audios
    assert restored.shape == (1, *audio.shape)

    pipeline.save_pretrained(tmp_path)
    loaded = Aud2StudioPipeline.from_pretrained(tmp_path, vocoder=None)
    loaded.set_progress_bar_config(disable=True)
    again = loaded(audio, RATE, generator=torch.Generator().manual_seed(0)).audios
    np.testing.assert_allclose(again, restored, atol=1e-5)

    with torch.no_grad():
        for parameter in loaded.condition_encoder.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    other = loaded(audio, RATE, generator=torch.Generator().manual_seed(0)).audios
    assert np.abs(other - restored).max() > 1e-4 * np.abs(restored).max(), "the condition has to matter"


def test_film_takes_the_mean_of_the_recordings_that_exist() -> None:
    config = toy("film", 128)
    torch.manual_seed(0)
    unet, encoder = build_unet(config), build_condition_encoder(config).eval()
    data = batch(config)
    features = Features(*(data[name] for name in Features._fields))
    assert features.present.tolist() == [[True, True], [True, False]]
    with torch.no_grad():
        condition = unet_condition(unet, encoder, features)
        tokens, _ = condition_tokens(encoder, features)
    assert condition["encoder_hidden_states"] is None
    per_recording = 1 + 128 // 16
    by_recording = tokens.numpy().reshape(2, 2, per_recording * 16)
    expected = np.stack([by_recording[0].mean(0), by_recording[1, 0]])
    np.testing.assert_allclose(condition["class_labels"], expected, atol=1e-6)
