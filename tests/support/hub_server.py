"""A Hub on 127.0.0.1: the part of the API that huggingface_hub, diffusers and datasets use, kept in memory.

Commits are whole trees, large files go through Git LFS, writing needs the token. As on the real Hub, what is private
looks as if it did not exist to those without a token, and a card with a bad header is refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import yaml

TOKEN = "hf_" + "s3cret" * 6
LARGE = (".safetensors", ".flac", ".png", ".wav")
LICENCES = {
    "cc0-1.0",
    "cc-by-3.0",
    "apache-2.0",
    "mit",
    "cc-by-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "gpl-3.0",
    "gpl",
    "other",
}
PIPELINE_TAGS = {"audio-to-audio", "text-to-audio", "audio-classification", "unconditional-image-generation"}


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """`commits` maps an id to the whole tree, path to content."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    head: str = ""
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, tree: dict[str, bytes]) -> str:
        identity = json.dumps([len(self.commits), {path: blob_id(content) for path, content in tree.items()}])
        self.head = hashlib.sha1(identity.encode()).hexdigest()
        self.commits[self.head] = tree
        return self.head

    def resolve(self, revision: str) -> str | None:
        revision = unquote(revision)
        found = {"main": self.head, "HEAD": self.head, **self.tags}.get(revision, revision)
        return found if found in self.commits else None


class HubServer(ThreadingHTTPServer):
    """Attributes: `repositories` by (kind, name); `objects`, the LFS store; `requests`, the log of (method, path,
    authorization); `uploads_until_failure`, after how many LFS uploads every further one is refused."""

    daemon_threads = True

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.token = token
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.uploads_until_failure: int | None = None
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def counted(self, method: str, part: str) -> int:
        """Number of requests so far with this method and this text in their path."""
        return sum(method == done and part in path for done, path, _ in self.requests)


@contextmanager
def running(token: str) -> Iterator[HubServer]:
    server = HubServer(token)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(server: HubServer, home: Path) -> dict[str, str]:
    """Variables that point a process to the server, with its token."""
    return {
        "HF_ENDPOINT": server.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "OMP_NUM_THREADS": "1",
    }


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        self.body = self._read_body()
        url = urlparse(self.path)
        self.query = parse_qs(url.query)
        self.server.requests.append((self.command, self.path, self.headers.get("Authorization")))
        try:
            with self.server.lock:
                self._route(unquote(url.path))
        except Refused as refused:
            headers = {"X-Error-Message": str(refused)} | ({"X-Error-Code": refused.code} if refused.code else {})
            self._answer({"error": str(refused)}, refused.status, headers)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        headers.setdefault("Content-Length", str(len(data)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def _need_token(self) -> None:
        if not self.authorised:
            raise Refused(401, "Invalid username or password.")

    def _repository(self, kind: str, name: str) -> Repository:
        found = self.server.repositories.get((kind, name))
        if found is None or (found.private and not self.authorised):
            raise Refused(404 if self.authorised else 401, "Repository not found", "RepoNotFound")
        return found

    def _tree(self, repository: Repository, revision: str) -> tuple[str, dict[str, bytes]]:
        commit = repository.resolve(revision)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, repository.commits[commit]

    def _route(self, path: str) -> None:
        routes = {
            r"/api/repos/create": self._create,
            r"/api/validate-yaml": self._validate,
            r"/lfs/(?P<oid>[0-9a-f]{64})": self._put_object,
            r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch": self._batch,
            r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
            r"(?:/(?P<action>preupload|commit|tree|tag|refs|paths-info|revision)(?:/(?P<revision>[^/]+))?"
            r"(?:/(?P<path>.+))?)?": self._api,
            r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)": self._resolve,
        }
        for pattern, answer in routes.items():
            if match := re.fullmatch(pattern, path):
                answer(**match.groupdict())
                return
        raise Refused(404, f"no such address: {path}")

    def _create(self) -> None:
        self._need_token()
        wanted = json.loads(self.body)
        kind = wanted.get("type") or "model"
        name = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
        url = f"{self.server.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (f"{kind}s", name) in self.server.repositories:
            self._answer({"url": url, "error": "You already created this repo"}, 409)
            return
        repository = Repository(wanted.get("private") is True or wanted.get("visibility") == "private")
        repository.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self.server.repositories[f"{kind}s", name] = repository
        self._answer({"url": url, "name": name})

    def _validate(self) -> None:
        wanted = json.loads(self.body)
        errors = card_errors(wanted["content"], wanted["repoType"])
        self._answer({"errors": [{"message": text} for text in errors], "warnings": []}, 400 if errors else 200)

    def _put_object(self, oid: str) -> None:
        if self.server.uploads_until_failure is not None:
            if self.server.uploads_until_failure == 0:
                raise Refused(403, "the connection is bad today")
            self.server.uploads_until_failure -= 1
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "the content has another checksum")
        self.server.objects[oid] = self.body
        self._answer(b"")

    def _batch(self, kind: str | None, name: str) -> None:
        self._need_token()
        self._repository("datasets" if kind else "models", name)
        objects = []
        for item in json.loads(self.body)["objects"]:
            if item["oid"] not in self.server.objects:
                item = {**item, "actions": {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}}
            objects.append(item)
        self._answer({"transfer": "basic", "objects": objects})

    def _api(self, kind: str, name: str, action: str | None, revision: str | None, path: str | None) -> None:
        repository = self._repository(kind, name)
        if action in ("preupload", "commit", "tag"):
            self._need_token()
        if action == "refs":
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": repository.head}
            tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": c} for t, c in repository.tags.items()]
            self._answer({"branches": [branch], "tags": tags, "converts": []})
            return
        commit, tree = self._tree(repository, revision or "main")
        if action == "preupload":
            files = json.loads(self.body)["files"]
            self._answer({"files": [self._upload_mode(item, tree) for item in files]})
        elif action == "commit":
            self._commit(repository, tree)
        elif action == "tag":
            tag = json.loads(self.body)["tag"]
            if tag in repository.tags:
                raise Refused(409, f"Tag {tag} already exists")
            repository.tags[tag] = commit
            self._answer({})
        elif action == "tree":
            self._list(tree, path or "")
        elif action == "paths-info":
            fields = parse_qs(self.body.decode())
            wanted = fields["paths"] if "paths" in fields else json.loads(self.body)["paths"]
            self._answer([self._entry(p, tree[p]) for p in wanted if p in tree] + self._folders(tree, wanted))
        else:
            siblings = [{"rfilename": p, "size": len(c), "blobId": blob_id(c)} for p, c in sorted(tree.items())]
            info = {"id": name, "_id": name, "sha": commit, "private": repository.private, "siblings": siblings}
            self._answer({**info, "tags": [], "disabled": False, "gated": False, "downloads": 0, "likes": 0})

    def _upload_mode(self, item: dict[str, Any], tree: dict[str, bytes]) -> dict[str, Any]:
        mode = "lfs" if item["path"].endswith(LARGE) else "regular"
        known = tree.get(item["path"])
        oid = None if known is None else hashlib.sha256(known).hexdigest() if mode == "lfs" else blob_id(known)
        return {"path": item["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _commit(self, repository: Repository, tree: dict[str, bytes]) -> None:
        tree = dict(tree)
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"], validate=True)
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    raise Refused(400, f"{value['path']} was never uploaded")
                tree[value["path"]] = self.server.objects[value["oid"]]
            elif operation["key"] == "deletedFile":
                del tree[value["path"]]
        commit = repository.commit(tree)
        self._answer({"commitUrl": f"{self.server.url}/x/x/commit/{commit}", "commitOid": commit, "success": True})

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
        if path.endswith(LARGE):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n"
            entry["oid"] = blob_id(pointer.encode())
        return entry

    def _folders(self, tree: dict[str, bytes], paths: list[str]) -> list[dict[str, Any]]:
        known = {"/".join(p.split("/")[:n]) for p in tree for n in range(1, p.count("/") + 1)}
        return [{"type": "directory", "path": p, "size": 0, "oid": blob_id(p.encode())} for p in paths if p in known]

    def _list(self, tree: dict[str, bytes], folder: str) -> None:
        prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        inside = [p for p in sorted(tree) if p.startswith(prefix)]
        if prefix and not inside:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        folders = sorted({prefix + p[len(prefix) :].split("/")[0] for p in inside if "/" in p[len(prefix) :]})
        if self.query.get("recursive", ["false"])[0].lower() in ("true", "1"):
            folders = sorted({p[: m.start()] for p in inside for m in re.finditer("/", p) if m.start() > len(prefix)})
            files = inside
        else:
            files = [p for p in inside if "/" not in p[len(prefix) :]]
        self._answer(self._folders(tree, folders) + [self._entry(p, tree[p]) for p in files])

    def _resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        repository = self._repository("datasets" if kind else "models", name)
        commit, tree = self._tree(repository, revision)
        if path not in tree:
            raise Refused(404, f"{path} does not exist in this repository", "EntryNotFound")
        content = tree[path]
        entry = self._entry(path, content)
        headers = {
            "Content-Type": "application/octet-stream",
            "X-Repo-Commit": commit,
            "ETag": f'"{entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]}"',
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self._answer(content, 200, headers)
            return
        first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
        self._answer(content[first : last + 1], 206, headers)


def card_errors(content: str, kind: str) -> list[str]:
    """What the Hub complains about in a card's header (the rules of its documentation)."""
    found = re.match(r"\A---\n(.*?)\n---\n", content, flags=re.DOTALL)
    if found is None:
        return []  # a card without a header is only warned about
    try:
        header = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"invalid YAML: {error}"]
    if not isinstance(header, dict):
        return ["the header must be a mapping"]
    errors = []
    if "license" in header and header["license"] not in LICENCES:
        errors.append(f'"license" must be one of {sorted(LICENCES)}')
    if header.get("license") == "other" and not re.fullmatch(r"[a-z0-9.-]+", header.get("license_name", "x")):
        errors.append('"license_name" must be lower case')
    if header.get("pipeline_tag", "audio-to-audio") not in PIPELINE_TAGS:
        errors.append('"pipeline_tag" is unknown')
    for key in ("tags", "datasets", "metrics"):
        value = header.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            errors.append(f'"{key}" must be a list of strings')
    if not all(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", item) for item in header.get("datasets") or []):
        errors.append('"datasets" must be names of datasets')
    for model in header.get("model-index", []) if kind == "model" else []:
        for result in model.get("results", []):
            if not isinstance(result.get("task", {}).get("type"), str):
                errors.append("model-index: task.type is required")
            if not {"name", "type"} <= set(result.get("dataset", {})):
                errors.append("model-index: dataset.name and dataset.type are required")
            for metric in result.get("metrics", [{}]):
                if "type" not in metric or "value" not in metric:
                    errors.append("model-index: metrics[].type and .value are required")
        if "name" not in model:
            errors.append("model-index: name is required")
    return errors
