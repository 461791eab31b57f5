"""Writes a complete repository for the Hub, checks it, and pushes it if asked to.

    python -m training.hub.export --checkpoint runs/tiny/best-4000 --out build/hub
    python -m training.hub.export --checkpoint runs/tiny/best-4000 --out build/hub --push org/aud2studio --private

The folder holds the pipeline as stock components (safetensors, float32 and the `fp16` variant), `pipeline.py` and its
siblings as remote code, the model card with its figures, the training record and the licence. It is loaded in every
way that the card names, in a fresh environment too, before anything is pushed; the same command goes on with a push
that was interrupted. The token is that of `hf auth login` or `HF_TOKEN`.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import MMAudioVocoder
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.hf_api import RepoFile

from pipeline_aud2studio import Aud2StudioPipeline, shipped_weights
from training.build import build_condition_encoder, build_pipeline, build_unet
from training.checkpoints import STATE_FILE, atomic_folder, load_checkpoint
from training.config import parse_config

from .verify import PACKAGE, remote_code_files, verify

LICENCE = PACKAGE.parent / "LICENSE"
HALF = "fp16"


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
        documents: Folder whose content (card, figures, training record) is put beside the components.

    Raises:
        ValueError: If `out` is something else than an earlier export, or float16 cannot hold the weights.
    """
    if not is_export(out) and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty and not an earlier export: choose another folder")
    if not LICENCE.is_file():
        raise ValueError(f"{LICENCE} is missing: run this from a clone of the repository")
    with atomic_folder(out) as temporary:
        halved(pipeline).save_pretrained(temporary, variant=HALF)
        pipeline.save_pretrained(temporary)  # last, so that the configurations are those of float32
        _forget_origin(temporary)
        for file in remote_code_files():
            shutil.copyfile(file, temporary / file.name)
        shutil.copyfile(LICENCE, temporary / "LICENSE")
        shutil.copytree(documents, temporary, dirs_exist_ok=True)


def _forget_origin(folder: Path) -> None:
    """Takes the path that a pipeline was loaded from out of its configurations: it names a private disk."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def is_export(folder: Path) -> bool:
    """Tells whether a folder is what `write_repository` writes."""
    return all((folder / name).is_file() for name in ("model_index.json", "pipeline.py", "LICENSE"))


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


def collect_documents(checkpoint: Path, folder: Path) -> None:
    """Copies a checkpoint's card, record and figures."""
    if not (checkpoint / "README.md").is_file():
        raise ValueError(f"{checkpoint} has no README.md, the model card")
    for name in ("README.md", "training.json"):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
    if (checkpoint / "figures").is_dir():
        shutil.copytree(checkpoint / "figures", folder / "figures")


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
        with tempfile.TemporaryDirectory(prefix="aud2studio-") as documents:
            collect_documents(options.checkpoint, Path(documents))
            write_repository(pipeline, options.out, Path(documents))
        print(f"{options.out} is written; loading it in every way that its card names.")
        for line in verify(options.out):
            print(f"  {line}")
        if options.push:
            message = f"aud2studio {options.tag}"
            commit = push_folder(options.out, options.push, private=options.private, tag=options.tag, message=message)
            print(f"{options.push} holds it as {options.tag}, commit {commit}")
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())


logger = logging.getLogger(__name__)


class PushError(ValueError):
    """The folder is not, or not completely, on the Hub; the message says why."""


def push_folder(
    folder: Path, repo_id: str, *, repo_type: str = "model", private: bool, tag: str | None, message: str
) -> str:
    """Makes a repository hold what a folder holds, and nothing else.

    The same call goes on where an interrupted one stopped: files that arrived are not sent again, and if nothing
    differs there is no new commit.

    Args:
        folder: Everything in it is uploaded.
        repo_id: `name` or `organisation/name`; created if it does not exist.
        repo_type: `model` or `dataset`.
        private: Whether a repository that is created is private; an existing one stays as it is.
        tag: Name for the uploaded state, or None.
        message: Of the commit.

    Returns:
        The commit's id.

    Raises:
        PushError: There is no token, the Hub refuses or cannot be reached, what arrived differs from the folder, or
            the tag exists already and means something else.
    """
    if get_token() is None:
        raise PushError("there is no token for the Hub: run `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    try:
        repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
        tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id, repo_type=repo_type).tags}
        if tag in tags and (changed := differences(api, repo_id, repo_type, tags[tag], folder)):
            raise PushError(
                f"the tag {tag} of {repo_id} exists already and is another state ({_some(changed)} differ):"
                " nothing was uploaded; choose another tag"
            )
        # Old files are deleted by the same upload, so that no sibling of an earlier version is imported.
        commit: str = api.upload_folder(
            repo_id=repo_id, repo_type=repo_type, folder_path=folder, commit_message=message, delete_patterns="*"
        ).oid
        if changed := differences(api, repo_id, repo_type, commit, folder):
            raise PushError(f"{_some(changed)} arrived at {repo_id} different from what was sent: push again")
        if tag is not None and tag not in tags:
            api.create_tag(repo_id, repo_type=repo_type, tag=tag, revision=commit)
    except (HTTPError, HfHubHTTPError, HFValidationError, RuntimeError, OSError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise PushError(
            f"{folder} could not be pushed to {repo_id}: {reason} (the same command goes on where it stopped)"
        ) from error
    return commit


def differences(api: HfApi, repo_id: str, repo_type: str, revision: str, folder: Path) -> list[str]:
    """Lists paths that are in the folder or in a revision of the repository only, or with another content."""
    entries = api.list_repo_tree(repo_id, repo_type=repo_type, revision=revision, recursive=True)
    remote = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    remote.pop(".gitattributes", None)  # the Hub's own
    local = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return sorted(
        path
        for path in local.keys() | remote.keys()
        if path not in local or path not in remote or not _same(local[path], remote[path])
    )


def _same(path: Path, entry: RepoFile) -> bool:
    if path.stat().st_size != entry.size:
        return False
    if entry.lfs is not None:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.lfs.sha256
    return git_blob_id(path.read_bytes()) == entry.blob_id


def git_blob_id(content: bytes) -> str:
    """Computes what git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(paths[:3]) + more
