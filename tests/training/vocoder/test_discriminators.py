"""Discriminators and adversarial losses, and runs with them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from diffusers import MMAudioVocoder
from safetensors.torch import load_file
from stop import StopAfter

from training.vocoder.config import DiscriminatorConfig, VocoderConfig
from training.vocoder.discriminators import (
    Discriminators,
    Judgement,
    PeriodDiscriminator,
    ResolutionDiscriminator,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
    frozen,
    level_gain,
)
from training.vocoder.train import VocoderTrainer

SMALL = DiscriminatorConfig(
    periods=(2, 3), period_channels=2, resolutions=((256, 64, 256), (512, 128, 512)), resolution_channels=2
)
NAMES = ("vocoder", "ema", "optimizer", "discriminators", "discriminator_optimizer")


def noise(seed: int, samples: int = 2048) -> torch.Tensor:
    return 0.1 * torch.randn(2, samples, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def values(corpus: Path) -> dict[str, Any]:
    return {
        "mel": {"n_mels": 32},
        "model": {"upsample_initial_channel": 16, "upsample_rates": [8, 8, 4], "resblock_dilation_sizes": [[1]]},
        "train": {"crop_frames": 16, "batch_size": 2, "max_train_steps": 4, "lr_warmup_steps": 2, "cpu_threads": 1},
        "loss": {"adversarial": 1.0},
        "discriminator": SMALL.model_dump(),
        "data": {"clean_music_dir": str(corpus)},
        "eval": {"num_clips": 1, "clip_seconds": 0.3, "val_every_steps": 3},
    }


# --- What they see ---------------------------------------------------------------------------------------------------


def test_a_period_is_a_column() -> None:
    waveform = torch.arange(20.0)[None]
    picture = PeriodDiscriminator(7, 1).picture(waveform)
    assert picture.shape == (1, 1, 3, 7)
    assert picture[0, 0, :, 2].tolist() == [2.0, 9.0, 16.0]
    assert picture[0, 0, 2, 6] == 18.0  # the end is reflected


def test_columns_of_a_period_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    member = PeriodDiscriminator(5, 2)
    waveform = noise(0, 1000)
    other = waveform.clone()
    other[:, 3::5] += 1.0
    changed = (member(waveform).scores - member(other).scores).abs().amax((0, 1, 2))
    assert changed[3] > 1e-5 and changed[[0, 1, 2, 4]].max() == 0


def test_a_resolution_sees_the_magnitudes_of_scipys_stft() -> None:
    waveform = noise(1)
    picture = ResolutionDiscriminator(512, 64, 200, 1).picture(waveform)
    # torch centres a short window within the transform's length.
    window = np.pad(scipy.signal.get_window("hann", 200), (512 - 200) // 2)
    padded = np.pad(waveform.numpy(), ((0, 0), (256, 256)), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, 512, axis=-1)[:, ::64]
    expected = np.abs(np.fft.rfft(frames * window, axis=-1))
    np.testing.assert_allclose(picture[:, 0].numpy(), expected, atol=1e-4)


def test_full_size_period_discriminator_has_hifi_gans_parameters() -> None:
    def convolution(inputs: int, outputs: int, taps: int) -> int:
        return inputs * outputs * taps + 2 * outputs  # bias, and the norms of the weights

    widths = [1, 32, 128, 512, 1024, 1024]
    expected = sum(convolution(*pair, 5) for pair in zip(widths[:-1], widths[1:], strict=True))
    expected += convolution(1024, 1, 3)
    with torch.device("meta"):
        member = PeriodDiscriminator(2, 32)
    assert sum(parameter.numel() for parameter in member.parameters()) == expected


def test_quiet_and_loud_crops_are_judged_at_one_level() -> None:
    crops = torch.stack([0.3 * noise(0)[0], 0.003 * noise(0)[0], torch.zeros(2048)])
    judged = level_gain(crops) * crops
    rms = judged.square().mean(-1).sqrt().tolist()
    assert rms == pytest.approx([0.1, 0.1, 0.0], abs=1e-6)


# --- Losses ----------------------------------------------------------------------------------------------------------


def test_losses_are_the_formulas() -> None:
    rng = np.random.default_rng(0)
    shapes = [(2, 1, 7, 3), (2, 1, 5, 2)]
    clean, vocoded = ([rng.normal(size=shape) for shape in shapes] for _ in range(2))
    hidden = [[rng.normal(size=(2, 4, 6, number)) for number in (2, 3)] for _ in range(4)]

    def judgements(scores: list[np.ndarray], features: list[list[np.ndarray]]) -> list[Judgement]:
        return [
            Judgement(torch.from_numpy(score), [torch.from_numpy(layer) for layer in layers])
            for score, layers in zip(scores, features, strict=True)
        ]

    real, fake = judgements(clean, hidden[:2]), judgements(vocoded, hidden[2:])
    expected = sum(np.mean((1 - r) ** 2) + np.mean(f**2) for r, f in zip(clean, vocoded, strict=True))
    assert float(discriminator_loss(real, fake)) == pytest.approx(expected)
    assert float(adversarial_loss(fake)) == pytest.approx(sum(np.mean((1 - f) ** 2) for f in vocoded))
    expected = sum(np.mean(np.abs(hidden[d][k] - hidden[d + 2][k])) for d in range(2) for k in range(2))
    assert float(feature_matching_loss(real, fake)) == pytest.approx(expected)


def test_features_of_equal_waveforms_match() -> None:
    discriminators = Discriminators(SMALL)
    waveform = noise(0)
    with torch.inference_mode():
        judged, again, other = (discriminators(w) for w in (waveform, waveform.clone(), noise(1)))
    assert float(feature_matching_loss(judged, again)) == 0
    assert float(feature_matching_loss(judged, other)) > 0.01


def test_generators_losses_reach_the_waveform_and_not_the_discriminators(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    trainer = VocoderTrainer(VocoderConfig.model_validate(values), tmp_path)
    assert trainer.discriminators is not None
    for name in ("adversarial", "feature_matching"):
        vocoded = noise(0).requires_grad_()
        trainer.adversarial_losses(noise(1), vocoded)[name].backward()
        assert vocoded.grad is not None and float(vocoded.grad.abs().max()) > 0
        assert all(parameter.grad is None for parameter in trainer.discriminators.parameters())
    assert all(parameter.requires_grad for parameter in trainer.discriminators.parameters())


def test_discriminators_step_does_not_reach_the_generator(tmp_path: Path, values: dict[str, Any]) -> None:
    """With no weight on any of its losses the generator stays as it is; the discriminators learn."""
    values["loss"] |= {"mel": 0, "mr_stft": 0, "adversarial": 1e-30, "feature_matching": 0}
    trainer = VocoderTrainer(VocoderConfig.model_validate(values), tmp_path)
    assert trainer.discriminators is not None
    gradients: list[float] = []
    for parameter in trainer.vocoder.parameters():
        parameter.register_hook(lambda gradient: gradients.append(float(gradient.abs().max())))
    before = [parameter.detach().clone() for parameter in trainer.discriminators.parameters()]
    trainer.train_step(trainer.examples.batches(0, 1))
    assert gradients and max(gradients) < 1e-20
    after = [parameter.detach() for parameter in trainer.discriminators.parameters()]
    changed = [float((a - b).abs().max()) for a, b in zip(before, after, strict=True)]
    assert min(changed) > 0


def test_frozen_parameters_learn_again_afterwards() -> None:
    discriminators = Discriminators(SMALL)
    with pytest.raises(RuntimeError, match="inside"), frozen(discriminators):
        assert not any(parameter.requires_grad for parameter in discriminators.parameters())
        raise RuntimeError("inside")
    assert all(parameter.requires_grad for parameter in discriminators.parameters())


@pytest.mark.slow
def test_discriminators_learn_to_tell_noise_from_a_tone() -> None:
    torch.manual_seed(0)
    discriminators = Discriminators(SMALL.model_copy(update={"periods": (2,), "resolutions": ((256, 64, 256),)}))
    tone = 0.1 * torch.sin(2 * math.pi * 440 / 44100 * torch.arange(512)).expand(2, -1)
    optimizer = torch.optim.AdamW(discriminators.parameters(), lr=2e-2)
    for step in range(80):
        loss = discriminator_loss(discriminators(tone), discriminators(noise(step, 512)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3  # 1.0 is what two of them get that say one half to everything


# --- Runs ------------------------------------------------------------------------------------------------------------


def checkpoint(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    return {
        f"{name}/{key}": value
        for name in NAMES
        for key, value in load_file(folder / f"checkpoint-{step}" / f"{name}.safetensors").items()
    }


@pytest.mark.slow
def test_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, values: dict[str, Any]) -> None:
    values["train"]["optimizer"] = "muon"  # without discriminators it is AdamW that goes on
    config = VocoderConfig.model_validate(values)
    VocoderTrainer(config, tmp_path / "whole").fit(StopAfter())
    VocoderTrainer(config, tmp_path / "parts").fit(StopAfter(2))
    resumed = VocoderTrainer(config, tmp_path / "parts")
    resumed.resume(tmp_path / "parts" / "checkpoint-2")
    resumed.fit(StopAfter())
    whole, parts = checkpoint(tmp_path / "whole", 4), checkpoint(tmp_path / "parts", 4)
    assert whole.keys() == parts.keys() and len(whole) > 100
    for key, value in whole.items():
        assert torch.equal(value, parts[key]), key


@pytest.mark.slow
def test_run_starts_from_an_export_and_refuses_another_phases_checkpoint(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    spectral = VocoderConfig.model_validate({**values, "loss": {}, "seed": 1})
    VocoderTrainer(spectral, tmp_path / "spectral").fit(StopAfter(1))
    exported = tmp_path / "exported"
    first = VocoderTrainer(spectral, tmp_path)
    first.vocoder.save_pretrained(exported)

    trainer = VocoderTrainer(VocoderConfig.model_validate(values), tmp_path / "adversarial")
    trainer.init_from(exported)
    wanted = MMAudioVocoder.from_pretrained(exported).state_dict()
    for model in (trainer.vocoder, trainer.ema.module):
        assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="discriminators"):
        trainer.resume(tmp_path / "spectral" / "checkpoint-1")
    trainer.fit(StopAfter(1))
    with pytest.raises(ValueError, match="--init_from"):
        first.resume(tmp_path / "adversarial" / "checkpoint-1")
    values["model"]["upsample_initial_channel"] = 32
    with pytest.raises(ValueError, match="do not fit"):
        VocoderTrainer(VocoderConfig.model_validate(values), tmp_path).init_from(exported)


@pytest.mark.slow
def test_validation_is_shown_and_played(tmp_path: Path, values: dict[str, Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = VocoderTrainer(VocoderConfig.model_validate(values), tmp_path, "tensorboard")
    trainer.fit(StopAfter(1))
    trainer = VocoderTrainer(VocoderConfig.model_validate(values), tmp_path, "tensorboard")
    trainer.fit(StopAfter())
    events = EventAccumulator(str(tmp_path / "aud2studio"))
    events.Reload()
    tags = events.Tags()
    assert tags["images"] == ["validation/0"]
    assert set(tags["audio"]) == {"validation/0/vocoded", "validation/0/clean"}
    assert "validation/log_mel_l1" in tags["scalars"]
