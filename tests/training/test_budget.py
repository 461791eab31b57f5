"""Costs against those of nets that fit on a napkin, and what `base` promises."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from training.budget import LiveBytes, budget, main, measure, saved_bytes
from training.config import load_config

CONFIGS = Path("training/configs")


def test_operations_of_a_convolution_and_a_product() -> None:
    """2 * out * in * kernel * positions, and 2 * n * m * k."""
    with torch.device("meta"):
        net = nn.Conv2d(3, 5, 3, padding=1)
        image, left, right = torch.empty(2, 3, 8, 10), torch.empty(7, 11), torch.empty(11, 13)
    assert measure(lambda: net(image)).flops == 2 * 5 * 3 * 9 * 80 * 2
    assert measure(lambda: left @ right).flops == 2 * 7 * 11 * 13


def test_peak_of_what_lives_at_once() -> None:
    """Three tensors of 4000 bytes in a row: two of them live together, and views cost nothing."""
    start = torch.empty(1000, device="meta")

    def chain() -> torch.Tensor:
        first = start + 1
        second = first * 2
        del first
        return second.view(10, 100).t() + 1

    with LiveBytes() as live:
        out = chain()
    assert live.peak == 8000
    assert out.shape == (100, 10) and live.now == 4000
    del out
    assert live.now == 0


def test_what_autograd_keeps() -> None:
    """A square keeps its input, a product both factors, a sum nothing; the same tensor counts once."""
    values = torch.empty(1000, device="meta", requires_grad=True)
    other = torch.empty(1000, device="meta", requires_grad=True)
    assert saved_bytes(lambda: (values + other).sum()) == 0
    assert saved_bytes(lambda: values.square().sum()) == 4000
    assert saved_bytes(lambda: (values * other).sum()) == 8000
    assert saved_bytes(lambda: (values * values).sum()) == 4000


def test_base_fits_its_card(capsys: pytest.CaptureFixture[str]) -> None:
    """10 s at 50 steps within 2.5 s and 5 GB in fp16 with a margin of 1.5, a training step within 16 GB."""
    assert main(["--config", str(CONFIGS / "base.yaml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unet_call_flops"] <= 0.3e12
    assert 1.5 * found["predicted_seconds"]["vocoder"] <= 2.5
    assert 1.5 * found["inference_bytes"] <= 5e9
    assert found["training_step"]["fits"]
    total = 50 * found["unet_call_flops"] + found["condition_encoder_flops"] + found["vocoder_flops"]
    assert found["predicted_seconds"]["vocoder"] == pytest.approx(total / 12e12)


def test_a_wider_net_costs_its_square() -> None:
    narrow = budget(load_config(CONFIGS / "tiny.yaml", ["model.block_out_channels=[64,64,128]"]))
    wide = budget(load_config(CONFIGS / "tiny.yaml", ["model.block_out_channels=[256,256,512]"]))
    assert 10 < wide["unet_call_flops"] / narrow["unet_call_flops"] < 16


def test_a_bad_config_gets_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("experiment: x\nmodle: {}\n")
    assert main(["--config", str(tmp_path / "bad.yaml")]) == 1
    assert "modle" in capsys.readouterr().err
