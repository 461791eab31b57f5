"""Exports on disk and on a Hub of our own on 127.0.0.1."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import TOKEN, environment
from safetensors.torch import load_file, save_file
from scipy import signal

from pipeline_aud2studio import Aud2StudioPipeline
from training.checkpoints import save_checkpoint
from training.config import parse_config
from training.hub import export

REPO = "org/aud2studio"


@pytest.fixture(scope="module")
def checkpoint(toy_model, tmp_path_factory) -> Path:
    """The toy model with a card."""
    folder = tmp_path_factory.mktemp("checkpoint") / "best-1"
    folder.symlink_to(toy_model, target_is_directory=True)
    (toy_model / "README.md").write_text("---\nlicense: apache-2.0\nlibrary_name: diffusers\n---\n\n# toy\n")
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("export") / "repository"
    assert export.main(["--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_the_folder_is_a_complete_repository(exported):
    names = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    weights = {
        f"{part}{half}.safetensors"
        for part in ("unet/diffusion_pytorch_model", "vocoder/diffusion_pytorch_model", "condition_encoder/model")
        for half in ("", ".fp16")
    }
    code = {path.name for path in export.remote_code_files()}
    assert {"model_index.json", "README.md", "LICENSE", "scheduler/scheduler_config.json", *weights, *code} <= names
    for name in weights:
        wanted = torch.float16 if "fp16" in name else torch.float32
        assert {tensor.dtype for tensor in load_file(exported / name).values()} == {wanted}, name
    index = json.loads((exported / "model_index.json").read_text())
    assert index["_class_name"] == "Aud2StudioPipeline"
    for path in exported.rglob("*.json"):
        assert "/" not in json.loads(path.read_text()).get("_name_or_path", ""), path


@pytest.mark.slow
def test_verification_sees_weights_that_differ(exported, tmp_path, monkeypatch):
    """The fp16 variant of another model, and remote code that imports what is not there, or this package."""
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", exported, broken], check=True)
    monkeypatch.setattr(
        export, "remote_read_outs", lambda folder: export.read_outs(Aud2StudioPipeline.from_pretrained(folder))
    )
    path = broken / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    save_file({name: -tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(export.VerificationError, match="fp16 variant differs"):
        export.verify(broken)
    monkeypatch.undo()
    monkeypatch.setattr(export, "REMOTE", "raise ImportError('aud2studio_of_tomorrow')")
    with pytest.raises(export.VerificationError, match="without the package: ImportError: aud2studio_of_tom"):
        export.remote_read_outs(broken)
    monkeypatch.undo()
    monkeypatch.setattr(export, "REMOTE", export.REMOTE.replace("import numpy", "import pipeline_aud2studio, numpy"))
    with pytest.raises(export.VerificationError, match="import of pipeline_aud2studio halted"):
        export.remote_read_outs(broken)


def test_iterated_phases_are_compared_by_their_spectrum():
    rng = np.random.default_rng(0)
    spectrum = np.abs(np.fft.rfft(rng.standard_normal((2, 2 * 44100)))) / np.sqrt(1 + np.arange(44101))
    one, other = (np.fft.irfft(spectrum * np.exp(2j * np.pi * rng.random(spectrum.shape))) for _ in range(2))
    assert np.abs(one - other).max() > np.abs(one).max() / 2
    assert export.band_difference_db(one, other) < export.ITERATED_DB
    assert export.band_difference_db(1.2 * one, one) == pytest.approx(20 * np.log10(1.2))
    dull = signal.lfilter([0.5, 0.5], [1.0], one)
    assert export.band_difference_db(dull, one) > 10


def test_remote_code_is_what_pipeline_imports_and_nothing_hidden(tmp_path):
    names = {path.name for path in export.remote_code_files()}
    assert {"pipeline.py", "audio.py", "features.py", "prediction.py", "spectral.py"} <= names
    assert not {"files.py", "infer.py", "__init__.py"} & names
    (tmp_path / "pipeline.py").write_text("from .one import a\n")
    (tmp_path / "one.py").write_text("from . import two\n")
    (tmp_path / "two.py").write_text("")
    with pytest.raises(ValueError, match="pipeline.py has to import two itself"):
        export.remote_code_files(tmp_path)


def test_a_training_checkpoint_exports_its_averaged_weights(tmp_path, toy_pipeline):
    config = parse_config(
        {
            "audio": {"clip_seconds": 0.75},
            "model": {
                "block_out_channels": [8, 16],
                "norm_num_groups": 4,
                "attention_head_dim": 8,
                "attention_resolutions": [4],
                "conditioning_dim": 16,
                "conditioning_heads": 2,
                "overlap_frames": 8,
            },
        }
    )
    unet, encoder = export.build_unet(config), export.build_condition_encoder(config)
    models = {"unet": unet, "condition_encoder": encoder}
    current = {
        f"{name}.{key}": value.detach() for name, model in models.items() for key, value in model.named_parameters()
    }
    averaged = {key: value + 0.25 for key, value in current.items()}
    folder = save_checkpoint(
        tmp_path, 7, {"model": current, "ema": averaged}, {"config": config.model_dump(mode="json")}
    )
    with pytest.raises(ValueError, match="has no vocoder"):
        export.load_pipeline(folder)
    toy_pipeline.vocoder.save_pretrained(tmp_path / "vocoder")
    pipeline = export.load_pipeline(folder, tmp_path / "vocoder")
    for name, parameter in pipeline.unet.named_parameters():
        torch.testing.assert_close(parameter, averaged[f"unet.{name}"])
    del averaged["unet.conv_in.weight"]
    broken = save_checkpoint(
        tmp_path, 8, {"ema": averaged, "model": current}, {"config": config.model_dump(mode="json")}
    )
    with pytest.raises(ValueError, match="conv_in.weight is missing"):
        export.load_pipeline(broken, tmp_path / "vocoder")


@pytest.mark.parametrize("case", ["missing", "run", "no card", "out is used"])
def test_bad_input_gets_one_sentence_and_loses_nothing(case, checkpoint, tmp_path, capsys, toy_pipeline):
    out, source = tmp_path / "out", checkpoint
    if case == "missing":
        source, sentence = tmp_path / "nowhere", "nowhere is not a folder"
    elif case == "run":
        source, sentence = checkpoint.parent, "did you mean"
    elif case == "no card":
        source, sentence = tmp_path / "bare", "has no README.md"
        toy_pipeline.save_pretrained(source)
    else:
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")
        sentence = "not an earlier export"
    assert export.main(["--checkpoint", str(source), "--out", str(out)]) == 1
    captured = capsys.readouterr().err
    assert sentence in captured and captured.count("\n") == 1
    assert not out.exists() or (out / "thesis.txt").read_text() == "years of work"


def test_float16_that_overflows_is_refused(toy_pipeline, tmp_path):
    import copy

    parts = {name: copy.deepcopy(part) for name, part in toy_pipeline.components.items()}
    pipeline = Aud2StudioPipeline(**parts)
    parts["unet"].conv_in.weight.data[0] = 1e5
    with pytest.raises(ValueError, match="conv_in.weight is beyond the range of float16"):
        export.halved(pipeline)


@pytest.mark.slow
def test_push_and_every_way_of_loading_it_back(hub, exported, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    commit = export.push_folder(exported, REPO, private=True, tag="v1")
    repository = hub.repositories["models", REPO]
    assert repository.private and repository.tags == {"v1": commit}
    tree = {path: content for path, content in repository.commits[commit].items() if path != ".gitattributes"}
    assert tree == {p.relative_to(exported).as_posix(): p.read_bytes() for p in exported.rglob("*") if p.is_file()}
    assert hub.counted("PUT", "/lfs/") == 6  # the weights went through LFS
    assert TOKEN not in caplog.text
    writes = [who for method, path, who in hub.requests if method in ("POST", "PUT") and "/lfs/" not in path[:5]]
    assert set(writes) == {f"Bearer {TOKEN}"}

    expected = export.read_outs(Aud2StudioPipeline.from_pretrained(exported))
    found = with_package(environment(hub, tmp_path / "home"), tmp_path / "out.npz", "by import", "concrete")
    found["remote"] = export.remote_read_outs(REPO, environment(hub, tmp_path / "other"))
    # Offline the package loads what the first load left in the cache.
    asked = len(hub.requests)
    offline = {**environment(hub, tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    found["offline"] = with_package(offline, tmp_path / "out.npz", "by import")["by import"]
    assert len(hub.requests) == asked
    for way, result in found.items():
        np.testing.assert_allclose(result, expected, atol=export.TOLERANCE, err_msg=way)


WITH_PACKAGE = """
import sys, numpy as np
import pipeline_aud2studio
from diffusers import DiffusionPipeline
from training.hub.export import read_outs
repo, out, *ways = sys.argv[1:]
kinds = {"by import": DiffusionPipeline, "concrete": pipeline_aud2studio.Aud2StudioPipeline}
pipelines = {way: kinds[way].from_pretrained(repo) for way in ways}
assert all(type(pipeline) is pipeline_aud2studio.Aud2StudioPipeline for pipeline in pipelines.values())
np.savez(out, **{way: read_outs(pipeline) for way, pipeline in pipelines.items()})
"""


def with_package(variables: dict[str, str], out: Path, *ways: str) -> dict[str, np.ndarray]:
    """Read-outs of the repository in another process, which knows the Hub by its environment only."""
    command = [sys.executable, "-c", WITH_PACKAGE, REPO, str(out), *ways]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(np.load(out))


@pytest.mark.slow
def test_a_push_that_broke_off_goes_on(hub, exported):
    hub.uploads_until_failure = 2
    with pytest.raises(ValueError, match="the same command goes on"):
        export.push_folder(exported, REPO, private=False, tag="v1")
    repository = hub.repositories["models", REPO]
    assert len(hub.objects) == 2 and repository.tags == {}
    assert list(repository.commits[repository.head]) == [".gitattributes"]  # nobody sees half of it
    hub.uploads_until_failure, before = None, hub.counted("PUT", "/lfs/")
    commit = export.push_folder(exported, REPO, private=False, tag="v1")
    assert hub.counted("PUT", "/lfs/") - before == 4  # the other four of six
    assert repository.tags == {"v1": commit} and len(repository.commits) == 2


@pytest.mark.slow
def test_another_state_replaces_files_and_never_a_tag(hub, exported, tmp_path):
    first = export.push_folder(exported, REPO, private=False, tag="v1")
    second = tmp_path / "second"
    subprocess.run(["cp", "-r", exported, second], check=True)
    (second / "takes.py").rename(second / "renamed.py")
    with pytest.raises(ValueError, match="has a tag v1 already: nothing was uploaded"):
        export.push_folder(second, REPO, private=False, tag="v1")
    repository = hub.repositories["models", REPO]
    assert repository.head == first
    export.push_folder(second, REPO, private=False, tag="v2")
    assert (
        "takes.py" not in repository.commits[repository.head] and "renamed.py" in repository.commits[repository.head]
    )
    assert repository.tags["v1"] == first


@pytest.mark.slow
def test_without_a_token_and_without_a_hub(hub, exported, monkeypatch, tmp_path):
    (tmp_path / "home" / "token").write_text("hf_wrong")
    with pytest.raises(ValueError, match="could not be pushed.*401"):
        export.push_folder(exported, REPO, private=False, tag="v1")
    (tmp_path / "home" / "token").unlink()
    with pytest.raises(ValueError, match="no token"):
        export.push_folder(exported, REPO, private=False, tag="v1")


@pytest.mark.slow
def test_a_bad_card_is_refused_before_anything_is_uploaded(hub, exported, tmp_path):
    bad = tmp_path / "bad"
    subprocess.run(["cp", "-r", exported, bad], check=True)
    (bad / "README.md").write_text("---\nlicense: finders-keepers\n---\n# toy\n")
    with pytest.raises(ValueError, match="license"):
        export.push_folder(bad, REPO, private=False, tag="v1")
    assert not hub.objects
