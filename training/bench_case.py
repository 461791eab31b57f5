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
from contextlib import ExitStack, contextmanager  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

RATE = 44100
EXAMPLES = Path(__file__).parent.parent / "spaces_app" / "examples"
SEED = 0
QUALITY_S = 60.0  # of the result are compared with the clean music, at the most


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        system: "aud2studio", from file to file; or a peer, from array to array.
        seconds: Length of the recording.
        channels, recordings: 1 or 2; 1 to 4.
        aligned: Whether the recordings are on one clock; else they are aligned first, as part of the work.
        rate: Sampling rate that the files say they have, in Hz.
        steps: Denoising steps; 0 is the checkpoint's default.
        dtype, batch_size, reconstruction, threads, device: As in the pipeline's call.
        backend: "torch", "onnx", or "onnx-int8".
    """

    system: str = "aud2studio"
    seconds: float = 60.0
    channels: int = 2
    recordings: int = 1
    aligned: bool = True
    rate: int = RATE
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


def pieces(seconds: float, channels: int, name: str = "degraded", take: int | None = None) -> Iterator[np.ndarray]:
    """The example again and again, in pieces of a second (channels, samples).

    Args:
        seconds, channels: Of all pieces together.
        name: "degraded", or "clean" for what it should have been.
        take: Number of a take to be aligned: its seconds come in an order drawn by lot, so that no lag fits but
            one; take N begins N tenths of a second later and has noise of its own.
    """
    import soundfile

    waveform, rate = soundfile.read(EXAMPLES / f"{name}.flac", dtype="float32", always_2d=True)
    assert rate == RATE
    rows = waveform.T[:channels]
    num_pieces = rows.shape[1] // RATE
    skipped, wanted = (take or 0) * RATE // 10, round(seconds * RATE)
    order, noise = np.random.default_rng(SEED), np.random.default_rng(take)
    for index in range(-(-(skipped + wanted) // RATE)):
        chosen = index % num_pieces if take is None else int(order.integers(num_pieces))
        piece = rows[:, chosen * RATE : (chosen + 1) * RATE]
        if take is not None:
            piece = piece + noise.normal(0, 1e-3, piece.shape).astype(np.float32)
        piece = piece[:, skipped:][:, :wanted]
        skipped, wanted = 0, wanted - piece.shape[1]
        yield piece


def recording(seconds: float, channels: int, name: str = "degraded") -> np.ndarray:
    """All pieces together: (channels, samples)."""
    return np.concatenate([*pieces(seconds, channels, name)], axis=1)


def write_recording(path: Path, case: Case, number: int) -> None:
    """The case's recording of that number, a piece at a time: what is held in memory here would be measured, too."""
    import soundfile

    take = None if case.aligned else number
    with soundfile.SoundFile(path, "w", case.rate, case.channels, "PCM_16", format="RF64") as file:
        for piece in pieces(case.seconds * case.rate / RATE, case.channels, take=take):
            file.write(piece.T)


def quality_db(path: Path, case: Case) -> float:
    """SI-SDR against the clean music, mean of the channels."""
    import soundfile
    import torch

    from training.metrics import si_sdr

    seconds = min(case.seconds, QUALITY_S)
    restored, _ = soundfile.read(path, round(seconds * RATE), dtype="float32", always_2d=True)
    clean = recording(seconds, case.channels, "clean")
    return float(si_sdr(torch.from_numpy(restored.T), torch.from_numpy(clean)).mean())


class Stages:
    """Seconds spent in parts of the work. A part within another one counts for itself only.

    Args:
        clock: Gives the time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._clock = clock
        self._open: list[tuple[str, float]] = []

    def enter(self, name: str) -> None:
        now = self._clock()
        if self._open:
            outer, since = self._open[-1]
            self.seconds[outer] += now - since
        self._open.append((name, now))

    def leave(self) -> None:
        now = self._clock()
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
    pipeline._features = stages.wrapped("features", pipeline._features)


def measure_own(case: Case, folder: Path) -> dict[str, Any]:
    """Restores files from the disk to the disk."""
    import torch

    from pipeline_aud2studio import files, restore_file, shipped_weights
    from pipeline_aud2studio.gather import gather
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
    for number, path in enumerate(paths):
        write_recording(path, case, number)
    # Other processes on the machine do not change processor time. Of a GPU's work it knows nothing.
    stages = Stages(time.perf_counter if case.device.startswith("cuda") else time.process_time)
    _observe(stages, pipeline)
    restore_file.decode = stages.wrapped("read", restore_file.decode)
    setattr(pipeline, "stream", functools.partial(pipeline.stream, batch_size=case.batch_size))  # noqa: B010
    settings = restore_file.Settings(steps=case.steps or None, reconstruction=case.reconstruction, seed=SEED)
    output = folder / "out.wav"
    begun, begun_cpu = time.perf_counter(), time.process_time()
    takes = [restore_file.take_of_file(path, None, None, False) for path in paths]
    with ExitStack() as stack:
        if not case.aligned:
            with stages.part("alignment"):
                names = [path.name for path in paths]
                found = stack.enter_context(gather(takes, names, pipeline.max_recordings, None, False, print, folder))
                takes = found.takes
        stack.enter_context(stages.part("read-out"))
        partial = partial_path(output)
        done = stack.enter_context(restore_file.restore(takes, lambda: pipeline, settings, folder, print, partial))
        with stages.part("write"):
            blocks, length = done.result.blocks(done.gain), done.result.num_samples
            files.write_blocks(output, blocks, case.channels, length, done.result.sample_rate, "PCM_24", {})
    if case.device.startswith("cuda"):
        torch.cuda.synchronize()
    seconds, cpu_s = time.perf_counter() - begun, time.process_time() - begun_cpu
    measured: dict[str, Any] = {
        "import_s": imported - STARTED if case.backend == "torch" else None,
        "load_s": loaded - imported,
        "seconds": seconds,
        "cpu_s": cpu_s,
        "stages_s": dict(stages.seconds),
        "peak_rss_mb": peak_rss_mb(),
    }
    if case.device.startswith("cuda"):
        measured["peak_gpu_mb"] = torch.cuda.max_memory_allocated() / 1e6
    if case.aligned and case.rate == RATE:
        measured["si_sdr_db"] = quality_db(output, case)
    return measured


def measure_peer(case: Case) -> dict[str, Any]:
    """Runs a peer in its best setting of the validation set."""
    import torch

    from training.systems import Model, build_system

    torch.set_num_threads(case.threads)
    waveform = recording(case.seconds, case.channels)
    system = build_system(case.system, Model())
    begun, begun_cpu = time.perf_counter(), time.process_time()
    system.run(waveform, waveform, RATE)
    seconds, cpu_s = time.perf_counter() - begun, time.process_time() - begun_cpu
    return {"seconds": seconds, "cpu_s": cpu_s, "peak_rss_mb": peak_rss_mb()}


def peak_rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # kilobytes on Linux


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        found = measure_own(case, Path(folder)) if case.system == "aud2studio" else measure_peer(case)
    found["rtf"] = found["seconds"] / case.seconds
    print(json.dumps(found))


if __name__ == "__main__":
    main()
