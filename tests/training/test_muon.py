import copy

import pytest
import torch
from torch import nn

from training.build import build_optimizer
from training.config import TrainConfig
from training.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (16, 16)])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ orthogonalized(1e-3 * matrix) @ right.T  # the scale does not matter
    found = inside.diagonal()
    torch.testing.assert_close(inside, torch.diag(found), rtol=0, atol=1e-4)
    assert values.max() / values.min() > 3
    assert 0.6 < found.min() and found.max() < 1.3


def test_equals_torchs_muon_on_matrices_and_its_adamw_elsewhere():
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 4))
    theirs = copy.deepcopy(ours)
    weights, biases = (lambda m: [m[0].weight, m[1].weight]), (lambda m: [m[0].bias, m[1].bias])
    muon = Muon(weights(ours), biases(ours), lr=0.02, momentum=0.9, betas=(0.8, 0.9), weight_decay=0.1)
    reference = [
        torch.optim.Muon(weights(theirs), lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(biases(theirs), lr=0.02, betas=(0.8, 0.9), weight_decay=0.1),
    ]
    for step in range(5):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(step))
        for model, optimizers in ((ours, [muon]), (theirs, reference)):
            model(x).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    for mine, other in zip(biases(ours), biases(theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=2e-4)
    # torch computes the iteration in bfloat16, we where that is fast.
    for mine, other in zip(weights(ours), weights(theirs), strict=True):
        assert (mine - other).norm() < 0.03 * mine.norm()


def test_a_convolution_is_the_matrix_of_its_filters():
    torch.manual_seed(0)
    convolution, matrix = nn.Conv2d(3, 8, 3, bias=False), nn.Linear(27, 8, bias=False)
    matrix.weight.data.copy_(convolution.weight.detach().flatten(1))
    x = torch.randn(2, 3, 3, 3)
    for module, shaped in ((convolution, x), (matrix, x.flatten(1))):
        optimizer = Muon(module.parameters(), [nn.Parameter(torch.zeros(1))], lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            module(shaped).flatten(1).pow(4).sum().backward()
            optimizer.step()
    torch.testing.assert_close(convolution.weight.flatten(1), matrix.weight, rtol=1e-4, atol=1e-5)


def test_the_ends_of_the_network_and_its_vectors_are_adamws():
    model = nn.ModuleDict({"conv_in": nn.Conv2d(2, 4, 3), "middle": nn.Conv2d(4, 4, 3), "norm": nn.GroupNorm(2, 4)})
    optimizer = build_optimizer(TrainConfig(optimizer="muon", lr=0.1, adam_beta2=0.95, weight_decay=0.3), model)
    (muon, adamw) = optimizer.param_groups
    assert [id(p) for p in muon["params"]] == [id(model["middle"].weight)]
    assert len(adamw["params"]) == 5
    assert (muon["lr"], muon["weight_decay"], adamw["lr"], adamw["betas"][1]) == (0.1, 0.3, 0.1, 0.95)
