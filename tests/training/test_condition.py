"""The condition encoder by itself: it learns, goes on where it was stopped, and training begins with it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from pipeline_aud2studio.conditioning import LABELS
from training import condition, train
from training.build import build_condition_encoder
from training.config import TrainingConfig, load_config

TOY = {
    "audio": {"clip_seconds": 0.8},
    "mel": {"n_mels": 32},
    "model": {
        "block_out_channels": [8, 16],
        "attention_resolutions": [],
        "norm_num_groups": 4,
        "conditioning_dim": 16,
        "conditioning_layers": 1,
        "overlap_frames": 8,
    },
    "train": {"cpu_threads": 1},
}


@pytest.fixture
def toy(material, tmp_path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({**TOY, "data": {"material": str(material)}}))
    return path


def scenes(config: TrainingConfig, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, the level of whose lowest and highest bands says the first label; the others are not known."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.full((count, len(LABELS)), math.nan)
    labels[:, 0] = torch.randn(count, generator=generator)
    spectrograms = torch.randn(count, config.chunk_frames, config.mel.n_mels, generator=generator)
    spectrograms[..., :16] += labels[:, :1, None]
    spectrograms[..., 16:] -= labels[:, :1, None]
    return spectrograms.half(), labels


def test_it_learns_what_the_spectrogram_says(toy):
    config = load_config(toy)
    spectrograms, labels = scenes(config, 768)
    torch.manual_seed(0)
    encoder = build_condition_encoder(config)
    condition.learn(encoder, spectrograms[:640], labels[:640], config)
    table = condition.tabulate(encoder, spectrograms[640:], labels[640:])
    found = encoder(spectrograms[640:].float()).logits[:, 0].detach().numpy()
    wanted = labels[640:, 0].numpy()
    row = table.loc["log_rt60_s"]
    assert row["correlation"] == pytest.approx(np.corrcoef(found, wanted)[0, 1], abs=1e-6)
    assert row["error"] == pytest.approx(np.abs(found - wanted).mean(), abs=1e-6)
    assert row["of a constant"] == pytest.approx(np.abs(wanted - np.median(wanted)).mean(), abs=1e-6)
    assert row["correlation"] > 0.75
    assert row["error"] < 0.65 * row["of a constant"]


def test_it_goes_on_where_it_stopped_and_training_begins_with_it(toy, tmp_path, capsys, monkeypatch):
    out = tmp_path / "condition"
    monkeypatch.setattr(condition, "EPOCHS", 1)
    command = ["--config", str(toy), "--scenes", "150", "--out", str(out)]
    assert condition.main(command) == 0
    printed = capsys.readouterr().out
    assert all(label in printed for label in LABELS)
    first, second, third = sorted((out / "scenes").iterdir())
    kept, stamp = load_file(second), first.stat().st_mtime_ns
    second.unlink()
    weights = load_file(out / "condition_encoder" / "model.safetensors")
    assert condition.main(command) == 0
    assert first.stat().st_mtime_ns == stamp
    torch.testing.assert_close(load_file(second), kept, atol=0, rtol=0, equal_nan=True)
    torch.testing.assert_close(load_file(out / "condition_encoder" / "model.safetensors"), weights, atol=0, rtol=0)
    threads = torch.get_num_threads()
    begin = ["--config", str(toy), "--init_from", str(out), "--output_dir", str(tmp_path / "run")]
    assert train.main([*begin, "--report_to", "none", "--max_train_steps", "1", "--learning_rate", "1e-9"]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)
    trained = load_file(tmp_path / "run" / "pipeline" / "condition_encoder" / "model.safetensors")
    torch.testing.assert_close(trained, weights, atol=1e-6, rtol=0)


def test_too_few_scenes_are_refused(toy, tmp_path, capsys):
    assert condition.main(["--config", str(toy), "--scenes", "10", "--out", str(tmp_path)]) == 2
    assert "--scenes 10: at least 128 are needed" in capsys.readouterr().err
