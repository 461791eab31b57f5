"""Vocoder training: data, baseline, initialisation, schedule, and a run that is stopped and resumed."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import MMAudioVocoder
from safetensors.torch import load_file
from stop import StopAfter

from pipeline_aud2studio.spectral import BandTransform
from training.build import build_optimizer
from training.config import ConfigError
from training.jsonl import read_rows
from training.vocoder.config import VocoderConfig, VocoderLossConfig, load_vocoder_config
from training.vocoder.examples import CleanMels, MusicCrops, batches
from training.vocoder.objective import (
    ENDS,
    SpectralObjective,
    build_vocoder,
    front_end,
    generator_arguments,
    log_mel_distance,
    without_vocoder,
)
from training.vocoder.train import VocoderTrainer, main

CONFIGS = Path(__file__).parents[3] / "training" / "configs"
SAMPLE_RATE = 44_100


@pytest.fixture
def values(corpus: Path) -> dict[str, Any]:
    """A configuration of a few thousand parameters."""
    return {
        "experiment": "toy",
        "mel": {"n_mels": 32},
        "model": {
            "upsample_initial_channel": 16,
            "upsample_rates": [8, 8, 4],
            "resblock_dilation_sizes": [[1]],
        },
        "train": {"crop_frames": 16, "batch_size": 2, "max_train_steps": 6, "lr_warmup_steps": 2, "cpu_threads": 1},
        "data": {"clean_music_dir": str(corpus)},
        "eval": {"num_clips": 1, "clip_seconds": 0.3, "val_every_steps": 3},
    }


@pytest.fixture
def config(values: dict[str, Any]) -> VocoderConfig:
    return VocoderConfig.model_validate(values)


def crops_of(corpus: Path, seed: int = 0, levels_db: tuple[float, float] = (-23.0, -23.0)) -> MusicCrops:
    rows = [row for row in read_rows(corpus / "inventory.jsonl") if row["split"] == "train"]
    return MusicCrops(rows, corpus, 4096, SAMPLE_RATE, seed, levels_db)


def music(seconds: float = 1.0) -> torch.Tensor:
    """A chord that decays, with a little noise: (samples,)."""
    times = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    chord = sum(torch.sin(2 * math.pi * pitch * times) for pitch in (220.0, 277.2, 329.6, 1318.5))
    noise = torch.randn(times.shape, generator=torch.Generator().manual_seed(0))
    return 0.1 * chord * torch.exp(-2 * times) + 0.001 * noise


# --- Configuration ---------------------------------------------------------------------------------------------------


def test_shipped_configuration_is_bigvgan_on_nvidias_mel() -> None:
    config = load_vocoder_config(CONFIGS / "vocoder_tiny.yaml")
    assert math.prod(config.model.upsample_rates) == config.mel.hop_length == 256
    assert (config.mel.sample_rate, config.mel.n_fft, config.mel.n_mels) == (44100, 1024, 128)
    assert (config.mel.fmin, config.mel.fmax) == (0.0, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": {}}, "modle"),
        ({"train": {"lr": -1}}, "train.lr"),
        ({"model": {"upsample_rates": [4, 4]}}, "mel.hop_length"),
        ({"model": {"upsample_rates": [2] * 8, "upsample_initial_channel": 100}}, "multiple of 256"),
        ({"data": {"min_level_db": -10.0, "max_level_db": -20.0}}, "min_level_db"),
        ({"discriminator": {"periods": [], "resolutions": []}}, "periods or resolutions"),
        ({"discriminator": {"resolutions": [[512, 128, 600]]}}, "hop <= window <= n_fft"),
        ({"train": {"crop_frames": 8}, "loss": {"mel_resolutions": [[4096, 1024, 64]]}}, "crop_frames .8. is shorter"),
    ],
)
def test_bad_configuration_names_the_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(change), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_vocoder_config(path)


def test_second_phase_goes_on_with_the_firsts_model() -> None:
    first = load_vocoder_config(CONFIGS / "vocoder_tiny.yaml")
    second = load_vocoder_config(CONFIGS / "vocoder_tiny_adversarial.yaml")
    assert (first.model, first.mel) == (second.model, second.mel)
    assert first.loss.adversarial == 0 and second.loss.adversarial == 1


def test_overrides_replace_values_of_the_file() -> None:
    path = CONFIGS / "vocoder_tiny.yaml"
    config = load_vocoder_config(path, ["loss.adversarial=0.5", "train.optimizer=adamw"])
    assert (config.loss.adversarial, config.train.optimizer) == (0.5, "adamw")
    with pytest.raises(ConfigError, match="did you mean 'adversarial'"):
        load_vocoder_config(path, ["loss.adversial=1"])


def test_full_size_is_nvidias() -> None:
    config = load_vocoder_config(CONFIGS / "vocoder_44khz_128band_256x.yaml")
    with torch.device("meta"):
        vocoder = MMAudioVocoder(num_mels=config.mel.n_mels, **generator_arguments(config.model))
    # NVIDIA's table has 112 M for it (122 M are the 512x model's).
    assert sum(parameter.numel() for parameter in vocoder.parameters()) == pytest.approx(112e6, rel=0.01)
    assert tuple(vocoder.config.upsample_kernel_sizes) == (8, 8, 4, 4, 4, 4)
    assert config.train.crop_frames * config.mel.hop_length == 65536
    assert config.loss.mel == pytest.approx(15 * 7 / math.log(10), rel=1e-3)


def test_muon_gets_the_inner_convolutions() -> None:
    config = load_vocoder_config(CONFIGS / "vocoder_tiny.yaml")
    vocoder = build_vocoder(config)
    muon, adamw = build_optimizer(config.train, vocoder, ENDS).param_groups
    names = {id(parameter): name for name, parameter in vocoder.named_parameters()}
    inner, outer = ({names[id(parameter)] for parameter in group["params"]} for group in (muon, adamw))
    assert len(inner) + len(outer) == len(names)
    assert {"conv_pre.weight", "conv_post.weight", "conv_pre.bias"} <= outer
    assert all(name.startswith(("ups.", "resblocks.")) and name.endswith(".weight") for name in inner)
    # Five stages of one transposed convolution and three pairs of convolutions.
    assert len(inner) == 5 * (1 + 6)


# --- Data ------------------------------------------------------------------------------------------------------------


def test_crops_are_repeatable_and_differ(corpus: Path) -> None:
    first, again, other = crops_of(corpus), crops_of(corpus), crops_of(corpus, seed=1)
    np.testing.assert_array_equal(first[5], again[5])
    assert np.abs(first[5] - first[6]).max() > 0.01
    assert np.abs(first[5] - other[5]).max() > 0.01


def test_crops_have_the_drawn_level(corpus: Path) -> None:
    crops = crops_of(corpus, levels_db=(-30.0, -20.0))
    levels = [20 * np.log10(np.sqrt(np.mean(crops[index].astype(np.float64) ** 2))) for index in range(20)]
    assert -30.001 < min(levels) < -27 and -23 < max(levels) < -19.999
    loud = crops_of(corpus, levels_db=(0.0, 0.0))
    assert np.abs(loud[0]).max() == pytest.approx(0.98, abs=1e-6)


def test_batches_start_anywhere(corpus: Path) -> None:
    crops = crops_of(corpus)
    whole = list(batches(crops, 0, 4, batch_size=2, num_threads=2))
    rest = list(batches(crops, 2, 4, batch_size=2, num_threads=1))
    assert len(whole) == 4 and whole[0].shape == (2, 4096)
    torch.testing.assert_close(torch.stack(rest), torch.stack(whole[2:]), rtol=0, atol=0)


def test_tracks_too_short_for_a_crop_are_an_error(corpus: Path) -> None:
    rows = read_rows(corpus / "inventory.jsonl")
    with pytest.raises(ValueError, match="longer than"):
        MusicCrops(rows, corpus, 10 * SAMPLE_RATE, SAMPLE_RATE, 0, (-23.0, -23.0))


# --- Baseline and losses ---------------------------------------------------------------------------------------------


def test_griffin_lim_is_close_to_the_mel() -> None:
    transform = BandTransform()
    clean = music()
    log_mel = transform.log_mel(transform.stft(clean))
    rebuilt = without_vocoder(log_mel, transform, clean.shape[-1])
    assert rebuilt.shape == clean.shape
    shuffled = without_vocoder(log_mel, transform, clean.shape[-1], num_iterations=0)
    distance = log_mel_distance(rebuilt, clean, transform)
    assert distance < 0.15  # nats; 1.3 dB
    assert distance < 0.5 * log_mel_distance(shuffled, clean, transform)


def test_losses_vanish_for_the_clean_waveform_and_measure_a_gain() -> None:
    transform = BandTransform()
    clean = music(0.5)[None]
    objective = SpectralObjective(transform, VocoderLossConfig(mel=2.0, mr_stft=0.5))
    same, louder = objective(clean, clean), objective(2 * clean, clean)
    assert float(same["loss"]) == pytest.approx(0.0, abs=1e-5)
    # Twice the waveform: ln 2 in every band, and in auraloss 1 of convergence and ln 2 of log magnitude.
    assert float(louder["mel"]) == pytest.approx(math.log(2), rel=0.02)
    assert float(louder["mr_stft"]) == pytest.approx(1 + math.log(2), rel=0.02)
    assert float(louder["loss"]) == pytest.approx(2 * float(louder["mel"]) + 0.5 * float(louder["mr_stft"]))


def test_fresh_vocoder_keeps_the_variance() -> None:
    config = load_vocoder_config(CONFIGS / "vocoder_tiny.yaml")
    torch.manual_seed(0)
    vocoder = build_vocoder(config)
    mel = config.mel.mean + config.mel.std * torch.randn(2, 128, 16)
    scales = []
    hooks = [
        stage[0].register_forward_hook(lambda module, inputs, output: scales.append(float(output.std())))
        for stage in vocoder.ups
    ]
    with torch.inference_mode():
        waveform = vocoder(mel).sample
    for hook in hooks:
        hook.remove()
    assert len(scales) == len(config.model.upsample_rates) and min(scales) > 0.3 and max(scales) < 5
    assert 0.01 < float(waveform.std()) < 0.5


# --- Runs ------------------------------------------------------------------------------------------------------------


def run(config: VocoderConfig, folder: Path, resume: bool = False, stop_after: int | None = None) -> VocoderTrainer:
    trainer = VocoderTrainer(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if resume:
        trainer.resume(max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])))
    trainer.fit(StopAfter(stop_after))
    return trainer


@pytest.mark.slow
def test_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, config: VocoderConfig) -> None:
    run(config, tmp_path / "whole")
    run(config, tmp_path / "parts", stop_after=2)
    assert [path.name for path in (tmp_path / "parts").glob("checkpoint-*")] == ["checkpoint-2"]
    run(config, tmp_path / "parts", resume=True, stop_after=3)
    run(config, tmp_path / "parts", resume=True)
    for name in ("vocoder", "ema", "optimizer"):
        whole = load_file(tmp_path / "whole" / "checkpoint-6" / f"{name}.safetensors")
        parts = load_file(tmp_path / "parts" / "checkpoint-6" / f"{name}.safetensors")
        assert whole.keys() == parts.keys()
        for key, value in whole.items():
            assert torch.equal(value, parts[key]), key
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "history.jsonl").read_text().splitlines()]
    assert steps == [0, 3, 6]  # Griffin-Lim, two validations, none twice


def test_export_is_the_average_and_loads_as_a_component(tmp_path: Path, config: VocoderConfig) -> None:
    trainer = run(config, tmp_path)
    exported = MMAudioVocoder.from_pretrained(tmp_path / "export")
    expected = [value.detach().clone() for value in trainer.ema.module.parameters()]
    trained = list(trainer.vocoder.parameters())
    assert max(float((a - b.detach()).abs().max()) for a, b in zip(expected, trained, strict=True)) > 0
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    scores = [row["validation/log_mel_l1"] for row in rows if "validation/log_mel_l1" in row]
    mels, clean = trainer.examples.clips
    with torch.inference_mode():
        vocoded = exported(mels).sample[:, 0]
    assert float(log_mel_distance(vocoded, clean, trainer.transform)) == pytest.approx(min(scores), abs=1e-4)
    latest = list(MMAudioVocoder.from_pretrained(tmp_path / "latest").parameters())
    assert all(torch.equal(a, b) for a, b in zip(expected, latest, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_lowers_the_loss(tmp_path: Path, values: dict[str, Any], optimizer: str) -> None:
    values["train"] |= {"max_train_steps": 60, "lr": 3e-3, "lr_warmup_steps": 2, "optimizer": optimizer}
    trainer = VocoderTrainer(VocoderConfig.model_validate(values), tmp_path)
    assert trainer.discriminators is None
    example = next(trainer.examples.batches(0, 1))
    losses = [trainer.train_step(iter([example]))["loss"] for _ in range(20)]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:2])


def test_mel_of_an_example_is_the_front_ends(config: VocoderConfig, corpus: Path) -> None:
    """The crop's real neighbours stand where a whole file's mel would have them."""
    transform = front_end(config.mel)
    waveform = music(0.5)
    whole = transform.log_mel(transform.stft(waveform))
    start, frames = 10, 16
    padded = waveform[start * 256 - transform.pad : (start + frames) * 256 + transform.pad]
    cut = CleanMels(config, transform, torch.device("cpu")).example(padded[None])
    torch.testing.assert_close(cut.mel[0], whole[:, start : start + frames], rtol=0, atol=1e-4)
    torch.testing.assert_close(cut.clean[0], waveform[start * 256 : (start + frames) * 256], rtol=0, atol=0)


def test_command_line_reports_errors_in_one_line(
    tmp_path: Path, values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    options = ["--config", str(path), "--output_dir", str(tmp_path / "run")]
    for wrong, message in (
        (["--clean_music_dir", str(tmp_path / "nothing")], "inventory.jsonl does not exist"),
        (["--resume_from_checkpoint", "checkpoint-7"], "no checkpoint checkpoint-7"),
        (["--init_from", str(tmp_path)], "no exported vocoder"),
        (["--set", "train.lr=fast"], "train.lr"),
    ):
        assert main([*options, *wrong]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error and error.count("\n") == 1


def test_checkpoint_of_another_size_is_refused(tmp_path: Path, config: VocoderConfig, values: dict[str, Any]) -> None:
    run(config, tmp_path, stop_after=1)
    values["model"]["upsample_initial_channel"] = 32
    with pytest.raises(ValueError, match="does not fit"):
        VocoderTrainer(VocoderConfig.model_validate(values), tmp_path).resume(tmp_path / "checkpoint-1")
