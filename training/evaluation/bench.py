"""How fast, and in how much memory: a table of this machine's figures for the shipped weights, from file to file.

    make bench                                                      # or: python -m training.evaluation.bench
    python -m training.evaluation.bench --only default --seconds 3600 --threads 2

Every case runs in a process of its own, because peak memory is a property of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from tqdm.auto import tqdm

EXAMPLE = Path(__file__).parents[2] / "spaces_app" / "examples" / "degraded.flac"
CASES: dict[str, list[str]] = {  # and the command's words
    "default": [],
    "float32": ["--dtype", "float32"],
    "prediction": ["--reconstruction", "prediction"],
    "vocoder": ["--reconstruction", "vocoder"],
    "mono": [],
    "3 recordings, aligned": [],
    "ONNX Runtime": ["--backend", "onnx", "--model", "{folder}/onnx"],
}


def write_recording(path: Path, seconds: float, channels: int = 2, take: int = 0, sample_rate: int = 44100) -> None:
    """Writes the example's seconds, in an order drawn by lot, so that no lag fits but one.

    Take N begins N tenths of a second later and has noise of its own. A second at a time is written: what is held in
    memory here would be measured, too.
    """
    waveform, rate = soundfile.read(EXAMPLE, dtype="float32", always_2d=True)
    order, noise = np.random.default_rng(0), np.random.default_rng(take + 1)
    with soundfile.SoundFile(path, "w", sample_rate, channels, "PCM_16", format="RF64") as file:
        for second in range(round(seconds)):
            first = int(order.integers(len(waveform) // rate)) * rate
            piece = waveform[first + (0 if second else take * rate // 10) : first + rate, :channels]
            file.write(piece + noise.normal(0, 1e-3, piece.shape).astype(np.float32))


def peak_rss_mb() -> float:
    """Returns the largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, seconds: float, threads: int) -> None:
    """Runs a case in this process and prints its figures as a line of JSON."""
    import torch

    from pipeline_aud2studio import infer

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        if name == "ONNX Runtime":
            infer.main(["export-onnx", "--out", f"{folder}/onnx"])
        inputs = [Path(folder) / f"{take}.wav" for take in range(3 if name.startswith("3") else 1)]
        for take, path in enumerate(inputs):
            write_recording(path, seconds, 1 if name == "mono" else 2, take)
        words = [word.format(folder=folder) for word in CASES[name]]
        wall, cpu = time.perf_counter(), time.process_time()
        status = infer.main(["--inputs", *map(str, inputs), "--save", f"{folder}/out.wav", *words])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"status": status, "wall": wall, "cpu": cpu, "memory": peak_rss_mb()}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the recordings")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=tuple(CASES), default=tuple(CASES))
    parser.add_argument("--case", choices=tuple(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        measure(options.case, options.seconds, options.threads)
        return 0
    lines = ["| case | real-time factor | processor time | peak memory |", "| --- | --- | --- | --- |"]
    for name in tqdm(options.only, desc="bench"):
        words = ["--case", name, "--seconds", str(options.seconds), "--threads", str(options.threads)]
        done = subprocess.run(
            [sys.executable, "-m", "training.evaluation.bench", *words], capture_output=True, text=True
        )
        if done.returncode or json.loads(done.stdout.splitlines()[-1])["status"]:
            lines.append(f"| {name} | failed: {done.stderr.strip().splitlines()[-1:]} | | |")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        factors = [f"{found[key] / options.seconds:.3f}" for key in ("wall", "cpu")]
        lines.append(f"| {name} | {factors[0]} | {factors[1]} | {found['memory']:.0f} MB |")
    print(f"{options.seconds:g} s of stereo, {options.threads} thread(s), imports and loading included:\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
