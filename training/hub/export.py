"""Writes a complete repository for the Hub, checks it, and pushes it if asked to.

    python -m training.hub.export --checkpoint runs/tiny/best-4000 --out build/hub
    python -m training.hub.export --checkpoint runs/tiny/best-4000 --out build/hub --push org/aud2studio --private

The folder holds the pipeline as stock components (safetensors, float32 and the `fp16` variant), `pipeline.py` and its
siblings as remote code, the model card, the training record and the licence. It is loaded in every way that the card
names, where the package cannot be imported, too, before anything is pushed; the same command goes on with a push that
was interrupted. The token is that of `hf auth login` or `HF_TOKEN`.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import DiffusionPipeline, MMAudioVocoder
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from scipy import signal

import pipeline_aud2studio
from pipeline_aud2studio import Aud2StudioPipeline, shipped_weights
from pipeline_aud2studio.audio import LoudnessWarning
from training.build import build_condition_encoder, build_pipeline, build_unet
from training.checkpoints import STATE_FILE, atomic_folder, load_checkpoint
from training.config import parse_config

PACKAGE = Path(pipeline_aud2studio.__file__).parent
ENTRY = "pipeline"
LICENCE = PACKAGE.parent / "LICENSE"
HALF = "fp16"

SECONDS, SAMPLE_RATE = 2.0, 44100  # of what is restored to compare the ways of loading
NUM_STEPS = 2
TOLERANCE = 1e-5  # of full scale; a saved and loaded pipeline differs by up to 2.4e-6
ITERATED_DB = 0.5  # of a band's level: Griffin-Lim makes audible phases of rounding, but no other spectrum
SPECTRUM, NUM_BANDS = 2048, 24  # samples of a spectrum, and bands that it is measured in
HALF_PRECISION_DB = 30.0  # how far the error of the rounded weights stays below the output

REMOTE = """
import json, sys
sys.modules["pipeline_aud2studio"] = None  # whoever imports the package fails
import numpy as np, torch
from diffusers import DiffusionPipeline

model, audio, rate, steps, out = json.loads(sys.argv[1])
torch.set_num_threads(1)
pipe = DiffusionPipeline.from_pretrained(model, custom_pipeline="pipeline", trust_remote_code=True)
waveform, refine, results = np.load(audio), pipe.refine, []
for name, pipe.refine in (("faithful", None), ("vocoder", None), ("vocoder", refine)):
    results.append(pipe(waveform, rate, steps, name, generator=torch.Generator().manual_seed(0)).audios[0])
np.save(out, np.stack(results))
"""


class VerificationError(ValueError):
    """An exported folder does not do what its card promises."""


class PushError(ValueError):
    """The folder is not, or not completely, on the Hub; the message says why."""


# --- The folder ------------------------------------------------------------------------------------------------------


def load_pipeline(checkpoint: Path, vocoder: Path | None = None) -> Aud2StudioPipeline:
    """Loads the pipeline of a checkpoint in float32.

    Args:
        checkpoint: A pipeline's folder (`runs/EXPERIMENT/best-STEP`, `runs/EXPERIMENT/pipeline`), or a
            `checkpoint-STEP` of a run, of which the averaged weights are taken.
        vocoder: Folder of an MMAudioVocoder instead of the checkpoint's own.

    Raises:
        ValueError: If there is no pipeline in the folder, a file of it is damaged, or there is no vocoder.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"{checkpoint} is not a folder")
    own = None if vocoder is None else _load_vocoder(vocoder)
    if (checkpoint / "model_index.json").is_file():
        replaced: dict[str, Any] = {} if own is None else {"vocoder": own}
        try:
            pipeline = Aud2StudioPipeline.from_pretrained(checkpoint, dtype=torch.float32, **replaced)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{checkpoint} cannot be loaded: {str(error).splitlines()[0]}") from error
    elif (checkpoint / STATE_FILE).is_file():
        pipeline = _from_training(checkpoint, own)
    else:
        found = sorted(path.parent.name for path in checkpoint.glob("*/model_index.json"))
        raise ValueError(
            f"{checkpoint} holds neither model_index.json nor {STATE_FILE}: it is no checkpoint"
            + (f"; did you mean {checkpoint / found[-1]}?" if found else "")
        )
    if pipeline.vocoder is None:
        raise ValueError(f"{checkpoint} has no vocoder: give one with --vocoder DIR")
    return pipeline


def _from_training(checkpoint: Path, vocoder: MMAudioVocoder | None) -> Aud2StudioPipeline:
    tensors, state = load_checkpoint(checkpoint)
    config = parse_config(state["config"], source=str(checkpoint))
    models = {"unet": build_unet(config), "condition_encoder": build_condition_encoder(config)}
    weights = tensors.get("ema", tensors["model"])
    for name, model in models.items():
        own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        try:
            missing = model.load_state_dict(own, strict=False).missing_keys
            if missing := sorted(set(missing) & {key for key, _ in model.named_parameters()}):
                raise RuntimeError(f"{missing[0]} is missing")
        except RuntimeError as error:
            raise ValueError(f"{checkpoint} does not fit its configuration: {str(error).splitlines()[0]}") from error
    if vocoder is None and config.export.vocoder is not None:
        vocoder = _load_vocoder(config.export.vocoder)
    return build_pipeline(config, models["unet"].eval(), models["condition_encoder"].eval(), vocoder)


def _load_vocoder(folder: Path) -> MMAudioVocoder:
    try:
        return MMAudioVocoder.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no vocoder: {str(error).splitlines()[0]}") from error


def write_repository(pipeline: Aud2StudioPipeline, out: Path, documents: Path) -> None:
    """Writes the repository's folder, all or nothing; an earlier export is replaced.

    Args:
        pipeline: In float32.
        out: The folder.
        documents: Folder of the card and the training record.

    Raises:
        ValueError: If there is no card, `out` is something else than an earlier export, or float16 cannot hold the
            weights.
    """
    if not (documents / "README.md").is_file():
        raise ValueError(f"{documents} has no README.md, the model card")
    is_export = all((out / name).is_file() for name in ("model_index.json", "pipeline.py", "LICENSE"))
    if not is_export and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty and not an earlier export: choose another folder")
    if not LICENCE.is_file():
        raise ValueError(f"{LICENCE} is missing: run this from a clone of the repository")
    with atomic_folder(out) as temporary:
        halved(pipeline).save_pretrained(temporary, variant=HALF)
        pipeline.save_pretrained(temporary)  # last, so that the configurations are those of float32
        _forget_origin(temporary)
        for file in (*remote_code_files(), LICENCE, documents / "README.md", documents / "training.json"):
            if file.is_file():
                shutil.copyfile(file, temporary / file.name)


def _forget_origin(folder: Path) -> None:
    """Takes the path that a pipeline was loaded from out of its configurations: it names a private disk."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def halved(pipeline: Aud2StudioPipeline) -> Aud2StudioPipeline:
    """Copies a pipeline with float16 weights.

    Raises:
        ValueError: If a weight is beyond what float16 holds.
    """
    parts = {name: copy.deepcopy(part) for name, part in pipeline.components.items()}
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            part.half()
            if wrong := [key for key, value in part.state_dict().items() if not torch.isfinite(value).all()]:
                raise ValueError(f"{name}: {wrong[0]} is beyond the range of float16")
    settings = {key: value for key, value in pipeline.config.items() if key not in parts and not key.startswith("_")}
    return Aud2StudioPipeline(**parts, **settings)


def remote_code_files(package: Path = PACKAGE) -> list[Path]:
    """`pipeline.py` and its siblings that it needs, directly or not.

    Raises:
        ValueError: If a sibling is needed that `pipeline.py` does not import itself: diffusers would not fetch it.
    """
    direct = _relative_imports(package / f"{ENTRY}.py")
    needed = set(direct)
    waiting = list(direct)
    while waiting:
        name = waiting.pop()
        for found in _relative_imports(package / f"{name}.py") - needed:
            needed.add(found)
            waiting.append(found)
    if hidden := sorted(needed - direct - {ENTRY}):
        raise ValueError(
            f"{ENTRY}.py has to import {', '.join(hidden)} itself: as remote code, what only a sibling imports is not"
            " fetched"
        )
    return [package / f"{name}.py" for name in sorted(needed | {ENTRY})]


def _relative_imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found


# --- Every way to load it --------------------------------------------------------------------------------------------


def verify(folder: Path) -> list[str]:
    """Loads an exported folder in the three ways and its `fp16` variant, and compares the read-outs.

    Returns:
        A line for each way, with the largest difference of the faithful read-out and of one pass of the vocoder.

    Raises:
        VerificationError: If a way fails, or its output differs.
    """
    expected = read_outs(Aud2StudioPipeline.from_pretrained(folder, dtype=torch.float32))
    by_import = DiffusionPipeline.from_pretrained(folder)
    if not isinstance(by_import, Aud2StudioPipeline):
        raise VerificationError(f"{folder} loads as {type(by_import).__name__}")
    found = {
        "package imported, DiffusionPipeline": read_outs(by_import),
        "package imported, Aud2StudioPipeline": read_outs(Aud2StudioPipeline.from_pretrained(folder)),
        "trust_remote_code, without the package": remote_read_outs(folder),
    }
    lines = []
    for way, result in found.items():
        difference = float(np.abs(result[:2] - expected[:2]).max())
        iterated_db = band_difference_db(result[2], expected[2])
        if result.shape != expected.shape or not difference <= TOLERANCE:
            raise VerificationError(f"{way}: the output differs by {difference:.2g}, more than {TOLERANCE:g}")
        if not iterated_db <= ITERATED_DB:
            raise VerificationError(f"{way}: the vocoder's spectrum differs by {iterated_db:.1f} dB")
        lines.append(f"{way}: loads, largest difference {difference:.1e}")
    half = Aud2StudioPipeline.from_pretrained(folder, variant="fp16", dtype=torch.float32)
    rounded = read_outs(half)[0]  # the vocoder's phases amplify what nobody hears
    error_db = 10 * np.log10(np.mean((rounded - expected[0]) ** 2) / np.mean(expected[0] ** 2) + 1e-20)
    if not error_db <= -HALF_PRECISION_DB:
        raise VerificationError(f"the fp16 variant differs by {error_db:.0f} dB, more than {-HALF_PRECISION_DB:g} dB")
    lines.append(f"fp16 variant: loads, error of the faithful read-out {error_db:.0f} dB")
    return lines


def excerpt() -> np.ndarray:
    """Makes decaying tones in noise, the same everywhere: (2, samples)."""
    rng = np.random.default_rng(0)
    time = np.arange(round(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    waveform = 0.02 * rng.standard_normal((2, len(time)))
    for frequency in rng.uniform(80, 4000, 8):
        waveform += 0.05 * np.sin(2 * np.pi * frequency * time) * np.exp(-4 * (time % 0.5))
    return waveform.astype(np.float32)


def read_outs(pipeline: DiffusionPipeline) -> np.ndarray:
    """Restores the excerpt (3, channels, samples): faithful, one pass of the vocoder, that with iterated phases."""
    pipeline.set_progress_bar_config(disable=True)
    waveform, refine, results = excerpt(), pipeline.refine, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LoudnessWarning)  # an untrained vocoder is nearly silent
        for name, pipeline.refine in (("faithful", None), ("vocoder", None), ("vocoder", refine)):
            generator = torch.Generator().manual_seed(0)
            results.append(pipeline(waveform, SAMPLE_RATE, NUM_STEPS, name, generator=generator).audios[0])
    return np.stack(results)


def band_difference_db(found: np.ndarray, expected: np.ndarray) -> float:
    """Measures by how much the levels of two waveforms (channels, samples) differ at most, in dB, in bands."""
    edges = np.unique(np.geomspace(1, SPECTRUM // 2, NUM_BANDS).astype(int))
    powers = [signal.welch(each, nperseg=SPECTRUM)[1].mean(0) for each in (found, expected)]
    one, other = (10 * np.log10(np.add.reduceat(power, edges) + 1e-20) for power in powers)
    return float(np.abs(one - other)[other > other.max() - 60].max())


def remote_read_outs(model: Path | str, environment: dict[str, str] | None = None) -> np.ndarray:
    """Does the same by the remote code, in a process that cannot import this package.

    Args:
        model: Folder, or a repository's name with an `environment` in which it can be reached.
        environment: Variables beside this process's; none: offline.

    Raises:
        VerificationError: With what the other process said.
    """
    with tempfile.TemporaryDirectory(prefix="aud2studio-") as name:
        root = Path(name)
        np.save(root / "in.npy", excerpt())
        source = str(model.resolve()) if isinstance(model, Path) else model
        arguments = [source, str(root / "in.npy"), SAMPLE_RATE, NUM_STEPS, str(root / "out.npy")]
        homes = {"HF_HOME": str(root / "home"), "HF_MODULES_CACHE": str(root / "modules")}
        variables = os.environ | (environment or {"HF_HUB_OFFLINE": "1"}) | homes
        command = [sys.executable, "-I", "-c", REMOTE, json.dumps(arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=variables)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise VerificationError(f"trust_remote_code, without the package: {reason}")
        return np.load(root / "out.npy")


# --- The Hub ---------------------------------------------------------------------------------------------------------


def push_folder(folder: Path, repo_id: str, *, private: bool, tag: str) -> str:
    """Makes a repository of the Hub hold what a folder holds, and nothing else; returns the commit's id.

    The same call goes on where an interrupted one stopped: files that arrived are not sent again.

    Args:
        folder: Everything in it is uploaded.
        repo_id: `name` or `organisation/name`; created if it does not exist.
        private: Whether a repository that is created is private; an existing one stays as it is.
        tag: Name for the uploaded state.

    Raises:
        PushError: There is no token, the tag exists already, or the Hub refuses or cannot be reached.
    """
    if get_token() is None:
        raise PushError("there is no token for the Hub: run `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if tag in {ref.name for ref in api.list_repo_refs(repo_id).tags}:
            raise PushError(f"{repo_id} has a tag {tag} already: nothing was uploaded; choose another tag")
        # Old files are deleted by the same upload, so that no sibling of an earlier version is imported.
        commit: str = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=f"aud2studio {tag}", delete_patterns="*"
        ).oid
        api.create_tag(repo_id, tag=tag, revision=commit)
    except (HTTPError, HfHubHTTPError, HFValidationError, RuntimeError, OSError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise PushError(
            f"{folder} could not be pushed to {repo_id}: {reason} (the same command goes on where it stopped)"
        ) from error
    return commit


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.hub.export", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--checkpoint", type=Path, default=shipped_weights(), help="a pipeline's folder or a run's checkpoint-STEP"
    )
    parser.add_argument("--vocoder", type=Path, metavar="DIR", help="vocoder instead of the checkpoint's own")
    parser.add_argument(
        "--out", type=Path, required=True, help="the repository's folder; an earlier export is replaced"
    )
    parser.add_argument("--push", metavar="REPO", help="upload to this repository of the Hub, as org/aud2studio")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--tag", default=f"v{version('aud2studio')}", help="of what is pushed (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        pipeline = load_pipeline(options.checkpoint, options.vocoder)
        write_repository(pipeline, options.out, options.checkpoint)
        print(f"{options.out} is written; loading it in every way that its card names.")
        for line in verify(options.out):
            print(f"  {line}")
        if options.push:
            commit = push_folder(options.out, options.push, private=options.private, tag=options.tag)
            print(f"{options.push} holds it as {options.tag}, commit {commit}")
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
