"""The networks as ONNX files: what ONNX Runtime computes is what torch computes."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from diffusers import UNet2DConditionModel

from pipeline_aud2studio import Aud2StudioPipeline, infer
from pipeline_aud2studio.convert.onnx import OnnxUNet, _write, deviation, export, load_onnx_pipeline, networks

pytestmark = pytest.mark.slow

pytest.importorskip("onnxscript")
RATE = 44100


@pytest.fixture(scope="module")
def exported(toy_pipeline: Aud2StudioPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "float32"
    errors = export(toy_pipeline, folder)
    assert set(errors) == {"unet", "condition_encoder", "vocoder"} and max(errors.values()) < 1e-4
    return folder


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = infer.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "in.wav"
    noise = np.random.default_rng(0).standard_normal((3 * RATE, 2)) * np.linspace(0.02, 0.2, 3 * RATE)[:, None]
    soundfile.write(path, noise, RATE, "FLOAT")
    return path


def snr_db(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(10 * np.log10((wanted**2).sum() / ((found - wanted) ** 2).sum()))


@pytest.mark.parametrize("reconstruction", ["faithful", "vocoder"])
@pytest.mark.parametrize("num_takes", [1, 2])
def test_both_backends_restore_the_same(toy_pipeline, exported, reconstruction, num_takes) -> None:
    rng = np.random.default_rng(1)
    takes = [0.1 * rng.standard_normal((2, 2 * RATE)).astype(np.float32) for _ in range(num_takes)]
    pipeline = load_onnx_pipeline(exported)
    results = []
    for each in (toy_pipeline, pipeline):
        generator = torch.Generator().manual_seed(3)
        results.append(each(takes, RATE, 2, reconstruction, generator=generator).audios)
    assert results[0].shape == (1, 2, 2 * RATE)
    assert snr_db(results[1], results[0]) > 80


def test_a_unet_with_film_is_exported_too(toy_pipeline: Aud2StudioPipeline, tmp_path: Path) -> None:
    torch.manual_seed(5)
    unet = UNet2DConditionModel(
        sample_size=toy_pipeline.unet.config.sample_size,
        in_channels=toy_pipeline.unet.config.in_channels,
        out_channels=toy_pipeline.unet.config.out_channels,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2D",
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=(8, 8),
        resnet_time_scale_shift="scale_shift",
        class_embed_type="projection",
        projection_class_embeddings_input_dim=9 * toy_pipeline.condition_encoder.config.hidden_size,
    )
    others = {name: toy_pipeline.components[name] for name in ("scheduler", "condition_encoder", "vocoder")}
    wanted = Aud2StudioPipeline(unet.eval(), **others, overlap_frames=8)
    network, path = networks(wanted)["unet"], tmp_path / "model.onnx"
    _write(network, path)
    assert deviation(network, path) < 1e-4
    found = Aud2StudioPipeline(OnnxUNet(tmp_path, unet.config), **others, overlap_frames=8)
    audio = 0.1 * np.random.default_rng(2).standard_normal((2, RATE)).astype(np.float32)
    results = []
    for pipeline in (found, wanted):
        pipeline.set_progress_bar_config(disable=True)
        results.append(pipeline(audio, RATE, generator=torch.Generator().manual_seed(3)).audios)
    assert snr_db(*results) > 80


def test_another_network_is_found_out(toy_pipeline: Aud2StudioPipeline, exported: Path) -> None:
    """What the export refuses: a file that computes something else."""
    unet = networks(toy_pipeline)["unet"]
    assert deviation(unet, exported / "unet" / "model.onnx") < 1e-4
    other = copy.deepcopy(unet)
    with torch.no_grad():
        next(other.module.parameters()).mul_(1.5)
    assert deviation(other, exported / "unet" / "model.onnx") > 1e-3


def test_8_bits_are_smaller_and_less_exact(toy_pipeline: Aud2StudioPipeline, exported: Path, tmp_path: Path) -> None:
    export(toy_pipeline, tmp_path / "int8", int8=True)
    name = Path("unet") / "model.onnx"
    error = deviation(networks(toy_pipeline)["unet"], tmp_path / "int8" / name)
    assert 1e-4 < error < 0.2
    assert (tmp_path / "int8" / name).stat().st_size < (exported / name).stat().st_size
    assert (tmp_path / "int8" / "vocoder" / "model.onnx").read_bytes() == (
        exported / "vocoder" / "model.onnx"
    ).read_bytes()


def test_the_command_exports_and_restores(cli, toy_model: Path, recording: Path, tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    status, out, err = cli("export-onnx", "--model", toy_model, "--out", folder)
    assert status == 0, err
    assert out.startswith(f"{folder}: `aud2studio --backend onnx --model {folder}` restores with it")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    outputs = {}
    for backend, model in (("torch", toy_model), ("onnx", folder)):
        outputs[backend] = tmp_path / f"{backend}.wav"
        words = ["--inputs", recording, "--save", outputs[backend], "--backend", backend, "--model", model]
        precision = ["--dtype", "float32"] if backend == "torch" else []
        status, _, err = cli(*words, "--scheduler", "ddim", *precision)
        assert status == 0, err
    found, wanted = (soundfile.read(outputs[name])[0] for name in ("onnx", "torch"))
    assert snr_db(found, wanted) > 80

    status, _, err = cli("export-onnx", "--model", toy_model, "--out", folder)
    assert (status, "exists already: choose another folder" in err) == (2, True)


def test_what_does_not_go_together_is_refused(cli, toy_model, exported, recording, tmp_path) -> None:
    words = ["--inputs", recording, "--save", tmp_path / "o.wav"]
    for extra, message in [
        (["--backend", "onnx"], "wants --model DIR: write it with `aud2studio export-onnx --out DIR`"),
        (["--backend", "onnx", "--model", toy_model], "holds no ONNX files"),
        (["--model", exported], "holds ONNX files: pass --backend onnx"),
        (["--backend", "onnx", "--model", exported, "--dtype", "bfloat16"], "leave out --device, --dtype"),
        (["--backend", "onnx", "--model", exported, "--device", "cuda"], "leave out --device, --dtype"),
    ]:
        status, _, err = cli(*words, *extra)
        assert (status, message in err, "Traceback" in err) == (2, True, False), err
    assert not (tmp_path / "o.wav").exists()


def test_a_damaged_file_is_one_sentence(cli, exported: Path, recording: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(exported, broken)
    file = broken / "unet" / "model.onnx"
    file.write_bytes(file.read_bytes()[:1000])
    words = ["--inputs", recording, "--save", tmp_path / "o.wav", "--backend", "onnx", "--model", broken]
    status, _, err = cli(*words)
    assert (status, f"the model {broken} cannot be loaded" in err, "Traceback" in err) == (2, True, False), err


@pytest.mark.parametrize("library", ["onnxscript", "onnxruntime"])
def test_a_missing_library_is_named(cli, toy_model: Path, tmp_path: Path, monkeypatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    status, _, err = cli("export-onnx", "--model", toy_model, "--out", tmp_path / "onnx")
    assert (status, f"{library} is not installed: pip install 'aud2studio[onnx]'" in err) == (2, True), err
