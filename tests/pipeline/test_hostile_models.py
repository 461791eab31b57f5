"""Model folders that are damaged or hostile: one sentence that names the model, status 2 or 1, and nothing written."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from pipeline_aud2studio import infer
from tests.support.hostile import RATE, music

UNET = "unet/diffusion_pytorch_model.safetensors"
ENCODER = "condition_encoder/model.safetensors"


class _Bomb:
    """Unpickling it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.trace,)


def _changed(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _with_config(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _forget(weights: dict[str, torch.Tensor]) -> None:
    del weights[sorted(weights)[3]]


def _reshape(weights: dict[str, torch.Tensor]) -> None:
    name = sorted(weights)[3]
    weights[name] = torch.zeros(7)


def _spoil(weights: dict[str, torch.Tensor]) -> None:
    for tensor in weights.values():
        tensor.fill_(float("nan"))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no index": lambda folder: (folder / "model_index.json").unlink(),
    "index is no JSON": lambda folder: (folder / "model_index.json").write_text("{"),
    "index is a list": lambda folder: (folder / "model_index.json").write_text("[]"),
    "index names no class": lambda folder: _with_config(folder / "model_index.json", unet=["diffusers", "Nothing"]),
    "index names code": lambda folder: _with_config(folder / "model_index.json", unet=["os", "system"]),
    "no unet": lambda folder: shutil.rmtree(folder / "unet"),
    "no unet weights": lambda folder: (folder / UNET).unlink(),
    "no encoder weights": lambda folder: (folder / ENCODER).unlink(),
    "unet truncated": lambda folder: _truncated(folder / UNET),
    "encoder truncated": lambda folder: _truncated(folder / ENCODER),
    "unet is empty": lambda folder: (folder / UNET).write_bytes(b""),
    "unet is noise": lambda folder: (folder / UNET).write_bytes(bytes(range(256)) * 9),
    "unet's header lies": lambda folder: (folder / UNET).write_bytes(b"\xff" * 8 + (folder / UNET).read_bytes()[8:]),
    "unet lacks a tensor": lambda folder: _changed(folder / UNET, _forget),
    "encoder lacks a tensor": lambda folder: _changed(folder / ENCODER, _forget),
    "unet has another shape": lambda folder: _changed(folder / UNET, _reshape),
    "encoder has another shape": lambda folder: _changed(folder / ENCODER, _reshape),
    "unet is not a number": lambda folder: _changed(folder / UNET, _spoil),
    "encoder is not a number": lambda folder: _changed(folder / ENCODER, _spoil),
    "unet's config is no JSON": lambda folder: (folder / "unet/config.json").write_text("not JSON"),
    "unet of other channels": lambda folder: _with_config(folder / "unet/config.json", in_channels=4),
    "scheduler without a config": lambda folder: shutil.rmtree(folder / "scheduler"),
}


def _run(model: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    source, output = folder / "in.wav", folder / "out.wav"
    soundfile.write(source, music().T, RATE)
    capfd.readouterr()
    status = infer.main(["--inputs", str(source), "--save", str(output), "--model", str(model)])
    assert sorted(path.name for path in folder.iterdir() if path != model) == ["in.wav"]
    return status, capfd.readouterr().err


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_is_refused(
    damage: str, toy_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(toy_model, model)
    DAMAGE[damage](model)
    status, errors = _run(model, tmp_path, capfd)
    assert status in (1, 2), errors
    lines = [line for line in errors.splitlines() if line.startswith("aud2studio: ")]
    assert lines and lines[-1].startswith("aud2studio: error: ") and "Traceback" not in errors
    assert len(lines[-1]) < 700


@pytest.mark.parametrize("weights", [UNET, ENCODER])
def test_pickles_are_not_opened(
    weights: str, toy_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, trace = tmp_path / "model", tmp_path / "trace"
    shutil.copytree(toy_model, model)
    file = model / weights
    name = "pytorch_model.bin" if weights == ENCODER else "diffusion_pytorch_model.bin"
    file.with_name(name).write_bytes(pickle.dumps(_Bomb(trace)))
    file.unlink()
    status, errors = _run(model, tmp_path, capfd)
    assert status == 2 and not trace.exists()

    file.with_name(name).unlink()
    torch.save(load_file(toy_model / weights), file.with_name(name))  # harmless, and refused all the same
    status, errors = _run(model, tmp_path, capfd)
    assert status == 2 and "cannot be loaded" in errors
