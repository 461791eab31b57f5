"""One measurement of `training.bench`, in a process of its own: peak memory is a property of the process.

Reads a case as JSON from the command line and prints what it measured as one line of JSON.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import functools  # noqa: E402 (the clock runs before the imports, which are measured)
import json  # noqa: E402
import resource  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections import defaultdict  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

RATE = 44100
EXAMPLE = Path(__file__).parent.parent / "spaces_app" / "examples" / "degraded.flac"
SEED = 0


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        system: "aud2studio", from file to file; or a peer, from array to array.
        seconds: Length of the recording.
        channels, recordings: 1 or 2; 1 to 4, already aligned.
        steps: Denoising steps; 0 is the checkpoint's default.
        dtype, batch_size, reconstruction, threads, device: As in the pipeline's call.
        backend: "torch", "onnx", or "onnx-int8".
    """

    system: str = "aud2studio"
    seconds: float = 60.0
    channels: int = 2
    recordings: int = 1
    steps: int = 0
    dtype: str = "float32"
    batch_size: int = 4
    reconstruction: str = "faithful"
    threads: int = 1
    device: str = "cpu"
    backend: str = "torch"

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def recording(seconds: float, channels: int) -> np.ndarray:
    """The example, repeated up to this length: (channels, samples)."""
    import soundfile

    waveform, rate = soundfile.read(EXAMPLE, dtype="float32", always_2d=True)
    assert rate == RATE
    rows = np.resize(waveform.T, (channels, waveform.shape[0])) if len(waveform.T) != channels else waveform.T
    samples = round(seconds * RATE)
    return np.tile(rows, -(-samples // rows.shape[1]))[:, :samples]


class Stages:
    """Seconds spent in parts of the work. A part within another one counts for itself only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[tuple[str, float]] = []

    def enter(self, name: str) -> None:
        now = time.perf_counter()
        if self._open:
            outer, since = self._open[-1]
            self.seconds[outer] += now - since
        self._open.append((name, now))

    def leave(self) -> None:
        now = time.perf_counter()
        name, since = self._open.pop()
        self.seconds[name] += now - since
        if self._open:
            self._open[-1] = (self._open[-1][0], now)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call


def _observe(stages: Stages, pipeline: Any) -> None:
    """Lets the parts of the pipeline tell how long they took."""
    for name in ("condition_encoder", "unet", "vocoder"):
        component = getattr(pipeline, name)
        component.register_forward_pre_hook(lambda *_, name=name: stages.enter(name))
        component.register_forward_hook(lambda *_: stages.leave())
    # Instance attributes: the classes stay as they are.
    pipeline._stft = stages.wrapped("features", pipeline._stft)
    pipeline.image.features = stages.wrapped("features", pipeline.image.features)


def measure_own(case: Case, folder: Path) -> dict[str, Any]:
    """Restores files from the disk to the disk."""
    import soundfile
    import torch

    from pipeline_aud2studio import files, restore_file, shipped_weights
    from pipeline_aud2studio.infer import load_onnx, load_pipeline
    from pipeline_aud2studio.partial import partial_path

    torch.set_num_threads(case.threads)
    model = folder / "onnx"
    if case.backend != "torch":
        # In a process of its own, whose memory and time do not count.
        command = [sys.executable, "-m", "pipeline_aud2studio.infer", "export-onnx", "--out", str(model)]
        int8 = ["--int8"] if case.backend == "onnx-int8" else []
        subprocess.run([*command, *int8], check=True, capture_output=True)
    imported = time.perf_counter()
    if case.backend == "torch":
        pipeline = load_pipeline(str(shipped_weights()), case.device, case.dtype, None)
    else:
        pipeline = load_onnx(model, None)
    pipeline.set_progress_bar_config(disable=True)
    loaded = time.perf_counter()

    paths = [folder / f"{number}.wav" for number in range(case.recordings)]
    for path in paths:
        soundfile.write(path, recording(case.seconds, case.channels).T, RATE)
    stages = Stages()
    _observe(stages, pipeline)
    restore_file.decode = stages.wrapped("read", restore_file.decode)
    setattr(pipeline, "stream", functools.partial(pipeline.stream, batch_size=case.batch_size))  # noqa: B010
    settings = restore_file.Settings(steps=case.steps or None, reconstruction=case.reconstruction, seed=SEED)
    output = folder / "out.wav"
    begun = time.perf_counter()
    takes = [restore_file.take_of_file(path, None, None, False) for path in paths]
    with (
        stages.part("read-out"),
        restore_file.restore(takes, lambda: pipeline, settings, folder, print, partial_path(output)) as done,
        stages.part("write"),
    ):
        result = done.result
        files.write_blocks(output, result.blocks(done.gain), case.channels, result.num_samples, RATE, "PCM_24", {})
    if case.device.startswith("cuda"):
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    found = {
        "import_s": imported - STARTED if case.backend == "torch" else None,
        "load_s": loaded - imported,
        "seconds": seconds,
        "stages_s": dict(stages.seconds),
    }
    if case.device.startswith("cuda"):
        found["peak_gpu_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return found


def measure_peer(case: Case) -> dict[str, Any]:
    """Runs a peer in its best setting of the validation set."""
    import torch

    from training.systems import Model, build_system

    torch.set_num_threads(case.threads)
    waveform = recording(case.seconds, case.channels)
    system = build_system(case.system, Model())
    begun = time.perf_counter()
    system.run(waveform, waveform, RATE)
    return {"seconds": time.perf_counter() - begun}


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        found = measure_own(case, Path(folder)) if case.system == "aud2studio" else measure_peer(case)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # kilobytes on Linux
    found |= {"rtf": found["seconds"] / case.seconds, "peak_rss_mb": peak}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
