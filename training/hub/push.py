"""Folders to repositories of the Hugging Face Hub: create, upload, check, tag; what was interrupted goes on.

The token comes from where `huggingface_hub` looks for it (`hf auth login`, or `HF_TOKEN`) and goes nowhere else.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.hf_api import RepoFile

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
    """Paths that are in the folder or in a revision of the repository only, or with another content."""
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
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(paths[:3]) + more
