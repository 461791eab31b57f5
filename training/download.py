"""Files from the network: resumed where they stopped, verified before they count, unpacked in their folder only."""

import hashlib
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm.auto import tqdm

BLOCK_BYTES = 1 << 20


def digest(path: Path, algorithm: str) -> str:
    """Hexadecimal checksum of a file; `algorithm` as hashlib names it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def verify(path: Path, checksum: str) -> None:
    """Raise ValueError unless the file has this checksum, written `algorithm:hexadecimal`."""
    algorithm, _, expected = checksum.partition(":")
    if algorithm not in hashlib.algorithms_guaranteed or not expected:
        raise ValueError(f"checksum {checksum!r} is not of the form 'sha256:HEX'")
    found = digest(path, algorithm)
    if found != expected.lower():
        raise ValueError(
            f"{path.name}: {algorithm} is {found}, expected {expected}; the file is broken or was replaced"
        )


def download(url: str, path: Path, checksum: str, timeout_s: float = 60.0) -> None:
    """Fetch `url` to `path`.

    The bytes go to `path` + `.part`; a part that is there already is continued with an HTTP range request, or started
    again where the server does not answer ranges. Only a complete file with the right checksum gets its name.

    Raises:
        ValueError: the server refused, the transfer broke off (call again: it goes on), or the checksum is wrong
            (the part is deleted).
    """
    if path.exists():
        return verify(path, checksum)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            continued = have > 0 and response.status == 206
            length = response.headers.get("Content-Length")
            total = int(length) + have * continued if length else None
            with (
                open(part, "ab" if continued else "wb") as file,
                tqdm(total=total, initial=have * continued, unit="B", unit_scale=True, desc=path.name) as bar,
            ):
                while block := response.read(BLOCK_BYTES):
                    file.write(block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        # 416: the part is already as long as the file; its checksum decides.
        if error.code != 416 or not have:
            raise ValueError(f"{url}: the server answered {error.code} {error.reason}") from error
        total = have
    except (OSError, EOFError) as error:
        raise ValueError(f"{url}: the transfer broke off ({error}); run it again to continue") from error
    if total is not None and part.stat().st_size < total:
        raise ValueError(f"{url}: only {part.stat().st_size} of {total} bytes came; run it again to continue")
    try:
        verify(part, checksum)
    except ValueError:
        part.unlink()
        raise
    os.replace(part, path)


def safe_target(folder: Path, name: str) -> Path:
    """Where the archive's member `name` goes below `folder`; ValueError if that would be outside it."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or (parts.parts and ":" in parts.parts[0]):
        raise ValueError(f"the archive wants to write outside its folder: {name!r}")
    return folder / parts


def unpack(path: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Write the wanted files of a zip or tar archive below `folder`; `wanted` is asked with each member's name."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir() and wanted(entry.filename):
                    with archive.open(entry) as source:
                        _write(source, safe_target(folder, entry.filename))
    else:
        with open(path, "rb") as file:
            unpack_tar(file, folder, wanted)


def unpack_tar(file: IO[bytes], folder: Path, wanted: Callable[[str], bool]) -> None:
    """The same for a tar stream, compressed or not; links and devices are neither followed nor made."""
    try:
        with tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                if member.isfile() and wanted(member.name):
                    source = archive.extractfile(member)
                    assert source is not None  # a regular file has data
                    _write(source, safe_target(folder, member.name))
    except tarfile.TarError as error:
        raise ValueError(f"{getattr(file, 'name', 'the archive')} cannot be unpacked: {error}") from error


def _write(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as file:
        shutil.copyfileobj(source, file, BLOCK_BYTES)
