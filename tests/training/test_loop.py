import math

import pytest
import torch
from torch import nn

from training.config import TrainConfig
from training.loop import averaged, ema_decay, learning_rate, step_seed


def test_learning_rate_warms_up_and_stays():
    train = TrainConfig(lr=1e-3, lr_warmup_steps=4)
    assert [learning_rate(step, train) for step in range(6)] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])
    assert learning_rate(0, TrainConfig(lr=1e-3, lr_warmup_steps=0)) == 1e-3


def test_cosine_over_all_steps_after_the_warm_up():
    train = TrainConfig(lr=2.0, lr_warmup_steps=10, lr_schedule="cosine", max_train_steps=110)
    for step in range(10, 110):
        assert learning_rate(step, train) == pytest.approx(1 + math.cos(math.pi * (step - 10) / 100))
    assert learning_rate(200, train) == pytest.approx(0, abs=1e-12)


def test_cosine_over_the_last_steps_only():
    train = TrainConfig(lr=1.0, lr_warmup_steps=5, lr_schedule="cosine", lr_decay_steps=20, max_train_steps=100)
    assert [learning_rate(step, train) for step in (4, 50, 80)] == [1.0, 1.0, 1.0]
    assert learning_rate(90, train) == pytest.approx(0.5)
    assert learning_rate(99, train) == pytest.approx(0.5 * (1 + math.cos(math.pi * 19 / 20)))


def test_average_against_a_loop_over_its_formula():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Conv2d(1, 2, 3)).to(memory_format=torch.channels_last)
    average = averaged(model, decay=0.6)
    expected = None
    for updates in range(12):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update_parameters(model)
        weights = [parameter.detach().double().clone() for parameter in model.parameters()]
        if expected is None:
            expected = weights
            continue
        decay = min(0.6, (1 + updates) / (10 + updates))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, weights, strict=True)]
    for parameter, wanted in zip(average.module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.double(), wanted, rtol=1e-5, atol=1e-6)
    assert ema_decay(10**6, 0.999) == 0.999


def test_seeds_of_steps_processes_and_parts_differ():
    seeds = {step_seed(7, step, rank, part) for step in range(20) for rank in range(3) for part in range(4)}
    assert len(seeds) == 240
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(7, 3, 1, 2) == step_seed(7, 3, 1, 2)
    assert step_seed(8, 3, 1, 2) not in seeds
