"""What has been restored of a recording so far, in a file that outlives the process: an interrupted run can go on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .audio import Waveform
from .files import AudioError, name_beside
from .spool import BLOCK_SAMPLES, interleaved, read_interleaved, write_all

if TYPE_CHECKING:
    from .pipeline import Aud2StudioPipeline

_MAGIC = b"aud2studio partial result 1\n"
_HEADER_BYTES = 128  # magic, what it is a part of (64 hexadecimal digits), zeros


def partial_path(output: Path) -> Path:
    """Where the partial result of an output lies."""
    return name_beside(output, ".partial")


class Partial:
    """A waveform (channels, samples) on the disk, written from the beginning on by one run or by several.

    A context. Left without an error the file is removed, its work being done; left with one it stays, unless it holds
    nothing.

    Args:
        path: Of the file.
        identity: What it is a part of, 64 hexadecimal digits, see :func:`identify`.
        num_channels: Of the waveform.
        resume: Whether to go on with the file if it exists and is a part of the same. Where it is a part of the same
            and this is false, nothing is overwritten.

    Attributes:
        num_samples: How many it holds.
        found: How many it held when it was opened.
        is_stale: Whether the file held a part of another result, which is gone now.

    Raises:
        AudioError: there is a part of the same result and `resume` is false, or another process is working on it.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, identity: str, num_channels: int, resume: bool) -> None:
        self._path, self.num_channels = path, num_channels
        self._file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)
        try:
            _lock(self._file.fileno(), path)
            self.num_samples = self.found = self._samples_of(identity)
            if self.found and not resume:
                raise AudioError(
                    f"{path} holds the beginning of this result, of a run that was interrupted: pass --resume to go on"
                    f" with it, or delete it to begin anew"
                )
            self.is_stale = not self.found and os.fstat(self._file.fileno()).st_size > _HEADER_BYTES
            if not self.found:
                self._file.truncate(0)
                self._file.seek(0)
                write_all(self._file, (_MAGIC + identity.encode()).ljust(_HEADER_BYTES, b"\0"))
            # A sample whose bytes were not all written is not there.
            self._file.truncate(self._position(self.num_samples))
        except BaseException:
            self._file.close()
            raise

    def _position(self, sample: int) -> int:
        return _HEADER_BYTES + 4 * self.num_channels * sample

    def _samples_of(self, identity: str) -> int:
        """Samples that the file holds of that result; 0 of another one."""
        header = self._file.read(_HEADER_BYTES)
        if header != (_MAGIC + identity.encode()).ljust(_HEADER_BYTES, b"\0"):
            return 0
        return (os.fstat(self._file.fileno()).st_size - _HEADER_BYTES) // (4 * self.num_channels)

    def extend(self, blocks: Iterable[Waveform]) -> Partial:
        """Writes further blocks (channels, samples), each of which is on the disk before the next one is asked for.

        Raises:
            OSError: The disk is full.
        """
        for block in blocks:
            self._file.seek(self._position(self.num_samples))
            write_all(self._file, interleaved(block))
            os.fsync(self._file.fileno())
            self.num_samples += block.shape[1]
        return self

    def blocks(self) -> Iterator[Waveform]:
        """All of it (channels, samples) in blocks."""
        for start in range(0, self.num_samples, BLOCK_SAMPLES):
            stop = min(start + BLOCK_SAMPLES, self.num_samples)
            self._file.seek(self._position(start))
            yield read_interleaved(self._file, self.num_channels, stop - start)

    def __enter__(self) -> Partial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if kind is None or not self.num_samples:
            self._path.unlink(missing_ok=True)  # before the lock is gone
        self._file.close()


def identify(pipeline: Aud2StudioPipeline, sources: Sequence[str], *settings: Any) -> str:
    """64 hexadecimal digits that differ where a result may differ: by program, weights, recordings or settings.

    Args:
        pipeline: With its weights.
        sources: Digests of the recordings.
        settings: Whatever else the result depends on, as its representation tells.
    """
    import diffusers
    import torch

    digest = hashlib.blake2b(digest_size=32)
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    versions = (torch.__version__, diffusers.__version__, torch.get_num_threads())
    config = {name: value for name, value in pipeline.config.items() if not name.startswith("_")}
    scheduler = (type(pipeline.scheduler).__name__, dict(pipeline.scheduler.config))
    facts = (versions, config, scheduler, pipeline.unet.dtype, pipeline.device, sources, settings)
    digest.update(json.dumps(facts, default=str, sort_keys=True).encode())
    for component in (pipeline.unet, pipeline.condition_encoder, pipeline.vocoder):
        for name, tensor in component.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class SampleDigest:
    """Digest of a waveform that comes in blocks, however it is cut."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=32)

    def push(self, block: Waveform) -> None:
        """Takes the next block (channels, samples)."""
        self._digest.update(interleaved(block))

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _lock(descriptor: int, path: Path) -> None:
    """Keeps other processes from writing to the file, until it is closed, where the system can do that."""
    with contextlib.suppress(ImportError):  # Windows
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AudioError(f"{path} is in use: another process restores the same recording") from None
        except OSError:  # a file system without locks
            return
