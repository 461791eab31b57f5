"""Mels that a pipeline restores, as the vocoder's input: the pipeline's own, at the place and level of the target."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stop import StopAfter

from pipeline_aud2studio import Aud2StudioPipeline
from pipeline_aud2studio.analysis import analyzed
from pipeline_aud2studio.chunks import ArraySource, Padded
from pipeline_aud2studio.takes import level_gain, rms
from training.vocoder.config import VocoderConfig
from training.vocoder.examples import RestoredMels, restored_log_mel
from training.vocoder.objective import front_end
from training.vocoder.train import VocoderTrainer

CHUNK = 32 * 1024  # samples of a chunk of the toy pipeline
CPU = torch.device("cpu")


@pytest.fixture
def values(toy_model: Path, material: Path) -> dict[str, Any]:
    return {
        "model": {"upsample_initial_channel": 16, "upsample_rates": [8, 8, 4], "resblock_dilation_sizes": [[1]]},
        "train": {"crop_frames": 16, "batch_size": 3, "max_train_steps": 4, "lr_warmup_steps": 2, "cpu_threads": 1},
        "data": {"restored_from": str(toy_model), "material": str(material)},
        "eval": {"num_clips": 2, "val_every_steps": 3},
    }


@pytest.mark.parametrize("num_steps", [1, 3])
def test_restored_mel_is_what_the_pipelines_vocoder_gets(toy_pipeline: Aud2StudioPipeline, num_steps: int) -> None:
    rng = np.random.default_rng(0)
    takes = [rng.normal(scale=scale, size=(1, CHUNK)).astype(np.float32) for scale in (0.3, 0.02)]
    heard: list[torch.Tensor] = []
    hook = toy_pipeline.vocoder.register_forward_pre_hook(lambda module, inputs: heard.append(inputs[0]))
    latents = torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(5))
    toy_pipeline(takes, 44_100, num_inference_steps=num_steps, reconstruction="vocoder", latents=latents)
    hook.remove()
    image = toy_pipeline.image
    sources = [ArraySource(take * level_gain(rms(take))) for take in takes]
    padded = Padded(sources, 32, image.coarse.hop_length, image.coarse.pad)
    features = next(analyzed(padded, image, [[0, 1]], 32)).features
    mel = restored_log_mel(toy_pipeline, features, num_steps, torch.Generator().manual_seed(5))
    assert len(heard) == 1 and mel.shape == (1, 128, 128)
    torch.testing.assert_close(mel, heard[0], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_wanted_crop_is_at_the_place_of_the_restored_mel(
    values: dict[str, Any], toy_pipeline: Aud2StudioPipeline, tmp_path: Path
) -> None:
    """A UNet of zeros corrects nothing, so the restored mel is the recording's, which resembles what is wanted."""
    toy_pipeline.save_pretrained(tmp_path)
    silent = {name: torch.zeros_like(weight) for name, weight in toy_pipeline.unet.conv_out.state_dict().items()}
    pipeline = Aud2StudioPipeline.from_pretrained(tmp_path)
    pipeline.unet.conv_out.load_state_dict(silent)
    pipeline.save_pretrained(tmp_path)
    values["data"]["restored_from"] = str(tmp_path)
    config = VocoderConfig.model_validate(values)
    transform = front_end(config.mel)
    examples = RestoredMels(config, transform, CPU)
    correlations = []
    for mel, clean in examples.batches(0, 8):
        assert mel.shape == (3, 128, 16) and clean.shape == (3, 16 * 256)
        expected = transform.log_mel(transform.stft(clean))
        for found, wanted in zip(mel, expected, strict=True):
            correlations.append(float(np.corrcoef(found[:, 2:-2].flatten(), wanted[:, 2:-2].flatten())[0, 1]))
    assert np.median(correlations) > 0.7
    assert examples.clips.mel.shape == (2, 128, 128) and examples.clips.clean.shape == (2, CHUNK)


@pytest.mark.slow
def test_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, values: dict[str, Any]) -> None:
    config = VocoderConfig.model_validate(values)
    VocoderTrainer(config, tmp_path / "whole").fit(StopAfter(99))
    VocoderTrainer(config, tmp_path / "parts").fit(StopAfter(1))
    resumed = VocoderTrainer(config, tmp_path / "parts")
    resumed.resume(tmp_path / "parts" / "checkpoint-1")
    resumed.fit(StopAfter(99))
    for name in ("vocoder", "ema", "optimizer"):
        whole = load_file(tmp_path / "whole" / "checkpoint-4" / f"{name}.safetensors")
        parts = load_file(tmp_path / "parts" / "checkpoint-4" / f"{name}.safetensors")
        assert whole.keys() == parts.keys()
        for key, value in whole.items():
            assert torch.equal(value, parts[key]), key


@pytest.mark.slow
def test_training_on_restored_mels_lowers_the_loss(tmp_path: Path, values: dict[str, Any]) -> None:
    values["train"] |= {"lr": 3e-3, "max_train_steps": 60}
    trainer = VocoderTrainer(VocoderConfig.model_validate(values), tmp_path)
    example = next(trainer.examples.batches(0, 1))
    losses = [trainer.train_step(iter([example]))["loss"] for _ in range(20)]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:2])


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("mel", {"n_mels": 32}, "n_mels 128, here 32$"),
        ("train", {"crop_frames": 129}, "128 frames"),
        ("data", {"restored_from": "nowhere"}, "nowhere is not the folder of a pipeline"),
        ("data", {"material": Path("nowhere")}, "nowhere holds no prepared material"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], section: str, change: Any, message: str) -> None:
    values[section] = {**values.get(section, {}), **change}
    config = VocoderConfig.model_validate(values)
    with pytest.raises(ValueError, match=message):
        RestoredMels(config, front_end(config.mel), CPU)


def test_checkpoint_of_a_run_on_clean_mels_is_refused(values: dict[str, Any]) -> None:
    config = VocoderConfig.model_validate(values)
    with pytest.raises(ValueError, match="--init_from"):
        RestoredMels(config, front_end(config.mel), CPU).load_state_dict({})
