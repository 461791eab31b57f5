import json
import os
import shutil

import pytest
import torch
from torch import nn

from training.checkpoints import (
    History,
    atomic_folder,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    prune_checkpoints,
    save_checkpoint,
)


def trained(steps, seed):
    """A small model after a few AdamW steps; its gradients are a function of the step."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 1, 3)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    for step in range(steps):
        advance(model, optimizer, step)
    return model, optimizer


def advance(model, optimizer, step):
    image = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(step))
    model(image).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_restored_optimizer_goes_on_to_the_bit(tmp_path):
    reference, optimizer = trained(3, seed=0)
    tensors = {"model": dict(reference.state_dict()), "optimizer": optimizer_tensors(optimizer, params(reference))}
    path = save_checkpoint(tmp_path, 3, tensors, {"seconds": 1.5})
    advance(reference, optimizer, 3)

    other, other_optimizer = trained(0, seed=1)
    loaded, state = load_checkpoint(path)
    other.load_state_dict(loaded["model"])
    load_optimizer_tensors(other_optimizer, params(other), loaded["optimizer"])
    advance(other, other_optimizer, 3)
    assert state == {"step": 3, "seconds": 1.5}
    for one, two in zip(reference.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    moment = other_optimizer.state[other[0].weight]["exp_avg"]
    assert moment.is_contiguous(memory_format=torch.channels_last)


def params(model):
    return dict(model.named_parameters())


def test_an_optimizer_of_another_model_is_refused():
    model, optimizer = trained(1, seed=0)
    tensors = optimizer_tensors(optimizer, params(model))
    other = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Conv2d(5, 1, 3))
    with pytest.raises(ValueError, match="0.weight:exp_avg"):
        load_optimizer_tensors(torch.optim.AdamW(other.parameters()), params(other), tensors)


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path):
    model, optimizer = trained(1, seed=0)
    tensors = {"model": model.state_dict(), "optimizer": optimizer_tensors(optimizer, params(model))}
    path = save_checkpoint(tmp_path, 1, tensors, {})
    assert sorted(file.name for file in path.iterdir()) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    for file in path.iterdir():
        assert file.read_bytes()[:2] not in (b"\x80\x02", b"PK")


def test_a_write_that_fails_leaves_the_old_checkpoints_and_no_new_one(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {"model": {"w": torch.zeros(3)}}, {})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, 2, {"model": {"w": torch.ones(3)}}, {})
    monkeypatch.undo()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-1"]
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-1"
    save_checkpoint(tmp_path, 2, {"model": {"w": torch.ones(3)}}, {})
    assert torch.equal(load_checkpoint(tmp_path / "checkpoint-2")[0]["model"]["w"], torch.ones(3))


def test_pruning_keeps_the_newest_and_removes_leftovers(tmp_path):
    for step in (5, 100, 20):
        save_checkpoint(tmp_path, step, {"model": {"w": torch.zeros(1)}}, {})
    (tmp_path / "checkpoint-200.tmp").mkdir()
    (tmp_path / "checkpoint-words").mkdir()
    prune_checkpoints(tmp_path, None)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-20", "checkpoint-100"]
    prune_checkpoints(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-20", "checkpoint-100"]
    assert not (tmp_path / "checkpoint-200.tmp").exists()


def test_finding_checkpoints(tmp_path):
    assert find_checkpoint(tmp_path, "latest") is None
    path = save_checkpoint(tmp_path, 7, {"model": {"w": torch.zeros(1)}}, {})
    assert find_checkpoint(tmp_path, "latest") == find_checkpoint(tmp_path, "checkpoint-7") == path
    assert find_checkpoint(tmp_path / "elsewhere", str(path)) == path
    with pytest.raises(ValueError, match="checkpoint-8.*checkpoint-7"):
        find_checkpoint(tmp_path, "checkpoint-8")


@pytest.mark.parametrize("name", ["state.json", "model.safetensors"])
def test_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path, name):
    path = save_checkpoint(tmp_path, 7, {"model": {"w": torch.zeros(100)}}, {})
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="checkpoint-7"):
        load_checkpoint(path)


def test_a_folder_replaces_its_predecessor_when_it_is_complete(tmp_path):
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "pipeline") as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / "file").write_text(text)
    assert (tmp_path / "pipeline" / "inner" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]


def test_history_survives_restarts_and_a_kill_in_the_middle_of_a_row(tmp_path):
    path = tmp_path / "history.jsonl"
    history = History(path, 0)
    for step in (10, 20, 30):
        history.append({"step": step, "loss": 1 / step})
    with open(path, "a") as file:
        file.write('{"step": 40, "lo')
    history = History(path, 20)
    history.append({"step": 30, "loss": 0.5})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 30]
    assert [row["loss"] for row in history.rows()] == [0.1, 0.05, 0.5]


def test_a_deletion_that_is_cut_off_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"model": {"w": torch.zeros(3)}}, {})

    def cut_off(folder, ignore_errors=False):
        for file in folder.glob("*.json") if folder.is_dir() else ():
            file.unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut_off)
        with pytest.raises(KeyboardInterrupt):
            prune_checkpoints(tmp_path, 1)
    assert list_checkpoints(tmp_path) == [tmp_path / "checkpoint-2"]
    load_checkpoint(tmp_path / "checkpoint-2")
    prune_checkpoints(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
