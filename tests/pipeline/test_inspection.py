"""`inspect`: figures are the classifier's, words follow the figures, and bad input is one sentence."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_aud2studio import files, infer
from pipeline_aud2studio.conditioning import LABEL_MEANS, LABEL_SCALES
from pipeline_aud2studio.inspection import describe, inspect

RATE = 44100


def test_figures_are_what_the_classifier_says(toy_pipeline) -> None:
    """A classifier that always answers the same: its answer, unscaled."""
    logits = torch.tensor([0.7, -0.4, 0.5, 0.1, 2.0])
    last = toy_pipeline.condition_encoder.classifier.dense
    saved = {name: part.clone() for name, part in last.state_dict().items()}
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(logits)
    try:
        facts = inspect(toy_pipeline, 0.1 * np.random.default_rng(0).standard_normal((2, 50_000)).astype(np.float32))
    finally:
        last.load_state_dict(saved)
    values = [float(v * s + m) for v, s, m in zip(logits, LABEL_SCALES, LABEL_MEANS, strict=True)]
    assert facts["rt60_s"] == pytest.approx(math.exp(values[0]), rel=1e-4)
    assert (facts["drr_db"], facts["snr_db"]) == pytest.approx(values[1:3], rel=1e-4)
    assert facts["bandwidth_hz"] == pytest.approx(math.exp(values[3]), rel=1e-4)
    assert facts["voice"] == pytest.approx(1 / (1 + math.exp(-2)), rel=1e-4)


def test_words_follow_the_figures() -> None:
    facts = {"rt60_s": 2.5, "drr_db": -9.0, "snr_db": 3.0, "bandwidth_hz": 9000.0, "voice": 0.9}
    lines = list(describe(facts))
    for line, words in zip(lines, ["an arena", "far from", "a loud audience", "dull", "a voice"], strict=True):
        assert words in line
    assert "2.5 s" in lines[0] and "9000 Hz" in lines[3]


def test_the_command(toy_model: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "in.wav"
    files.write(path, 0.1 * np.random.default_rng(1).standard_normal((1, RATE)).astype(np.float32), RATE)
    assert infer.main(["inspect", str(path), "--model", str(toy_model), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(facts) == ["rt60_s", "drr_db", "snr_db", "bandwidth_hz", "voice"]
    files.write(path, np.zeros((1, RATE), np.float32), RATE)
    assert infer.main(["inspect", str(path), "--model", str(toy_model)]) == 2
    assert "is silent: there is nothing to inspect" in capsys.readouterr().err
    assert infer.main(["inspect", str(tmp_path / "none.wav"), "--model", str(toy_model)]) == 2
    assert "Traceback" not in capsys.readouterr().err
