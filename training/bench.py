"""How fast, and in how much memory: a table of this machine's figures for the shipped weights.

    make bench                                  # or: python -m training.bench --out build/bench.json
    python -m training.bench --device cuda --dtype bfloat16
    python -m training.bench --long-seconds 10800 --only "180 minutes, 48 kHz"     # three hours

Every case runs in a process of its own, from file to file, and its figures are stored as soon as they are known: a
second run measures what is missing. Results of other weights, other code or another machine are measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import soundfile
from tqdm.auto import tqdm

from pipeline_aud2studio.partial import partial_path
from training.baselines import PEERS
from training.bench_case import RATE, Case, recording
from training.record import machine
from training.report import write_json
from training.systems import Model, code_digest, weights_digest

STARTS = 3  # repetitions of the time to the first audio, of which the median counts
NETWORKS = ("condition_encoder", "unet", "vocoder")


def plan(base: Case, threads: int, long_s: float) -> dict[str, Case]:
    """The cases by what they show: `base`, and what differs from it in one thing each."""
    vocoder = replace(base, reconstruction="vocoder", seconds=10.0)
    cases = {
        "default": base,
        "mono": replace(base, channels=1),
        f"{long_s / 60:g} minutes": replace(base, seconds=long_s),
        **{f"{count} recordings": replace(base, recordings=count) for count in (2, 3, 4)},
        **{f"{size} rows in a batch": replace(base, batch_size=size) for size in (1, 2, 8, 16)},
        **{f"vocoder, {steps} steps": replace(vocoder, steps=steps) for steps in (1, 2, 4, 8, 50)},
    }
    for dtype in ("float32", "bfloat16", "float16") if base.device.startswith("cuda") else ("float32", "bfloat16"):
        if dtype != base.dtype:
            cases[dtype] = replace(base, dtype=dtype)
    if base.device == "cpu" and base.dtype == "float32":
        cases |= {backend: replace(base, backend=backend) for backend in ("onnx", "onnx-int8")}
    if base.device == "cpu" and threads > 1:
        cases[f"{threads} threads"] = replace(base, threads=threads)
        cases[f"{long_s / 60:g} minutes, {threads} threads"] = replace(base, threads=threads, seconds=long_s)
    long = replace(base, threads=threads, seconds=long_s, rate=48000)
    cases[f"{long_s / 60:g} minutes, 48 kHz"] = long
    cases[f"{long_s / 60:g} minutes, 48 kHz, 3 recordings to align"] = replace(long, recordings=3, aligned=False)
    cases |= {name: replace(base, system=name, seconds=20.0, device="cpu", dtype="float32") for name in PEERS}
    return cases


def measure(case: Case) -> dict[str, Any]:
    """Runs a case in a process of its own.

    Returns:
        What it measured; or `error`, in one line, where it failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(case.threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "training.bench_case", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
        return {"error": last}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def first_audio_s(seconds: float, device: str) -> float:
    """Seconds from the command's start, imports included, until restored audio of a recording lies on the disk."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "in.wav", Path(folder) / "out.wav"
        soundfile.write(source, recording(seconds, 2).T, RATE)
        command = [sys.executable, "-m", "pipeline_aud2studio.infer", "--inputs", str(source), "--save", str(output)]
        for _ in range(STARTS):
            begun = time.perf_counter()
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            with subprocess.Popen([*command, "--device", device], **quiet) as process:  # type: ignore[call-overload]
                partial = partial_path(output)
                # More than the file's header.
                while not (output.exists() or (partial.exists() and partial.stat().st_size > 1000)):
                    if process.poll() not in (None, 0):
                        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
                    time.sleep(0.01)
                times.append(time.perf_counter() - begun)
                process.kill()
            partial.unlink(missing_ok=True)
            output.unlink(missing_ok=True)
    return median(times)


def tabulate(cases: dict[str, Case], results: dict[str, Any]) -> str:
    """Markdown: speed, memory and quality (of the example) by case, the default's stages, and ratios against peers.

    CPU s is processor time, of all threads together: what a busy machine changes less than the RTF.
    """
    lines = [
        "| case | RTF | times real time | CPU s | peak memory, MB | SI-SDR, dB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, case in cases.items():
        found = results["cases"].get(case.key)
        if found is None:
            continue
        if "error" in found:
            lines.append(f"| {name} | {found['error']} | | | | |")
        else:
            quality = f"{found['si_sdr_db']:.2f}" if "si_sdr_db" in found else ""
            speed = f"{found['rtf']:.3f} | {1 / found['rtf']:.1f}"
            lines.append(f"| {name} | {speed} | {found['cpu_s']:.1f} | {found['peak_rss_mb']:.0f} | {quality} |")
    default = results["cases"].get(cases["default"].key, {})
    if "stages_s" in default:
        clock = "seconds" if cases["default"].device.startswith("cuda") else "CPU s"
        total = sum(default["stages_s"].values())
        stages = sorted(default["stages_s"].items(), key=lambda item: -item[1])
        lines += ["", f"| stage of the default case | {clock} | share |", "| --- | --- | --- |"]
        lines += [f"| {name} | {seconds:.2f} | {100 * seconds / total:.0f} % |" for name, seconds in stages]
        outside = 1 - sum(default["stages_s"].get(name, 0.0) for name in NETWORKS) / total
        lines += ["", f"Outside the networks: {100 * outside:.0f} % of {total:.1f} {clock}."]
        lines += [f"Imports {default['import_s']:.1f} s, loading the model {default['load_s']:.1f} s."]
        for name in PEERS:
            peer = results["cases"].get(cases[name].key, {})
            if "rtf" in peer:
                lines.append(f"{name} takes {peer['rtf'] / default['rtf']:.1f} times as long.")
    if "first_audio_s" in results:
        lines.append(f"First audio on the disk {results['first_audio_s']:.1f} s after the command.")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"), help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the short recording (default: %(default)s)")
    parser.add_argument("--long-seconds", type=float, default=600.0, help="of the long one (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="CASE", help="measure these cases only")
    args = parser.parse_args(argv)
    if args.seconds <= 0 or args.long_seconds <= 0:
        parser.error("--seconds and --long-seconds have to be more than 0")
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cases = plan(Case(seconds=args.seconds, device=args.device, dtype=args.dtype), threads, args.long_seconds)
    if args.only:
        if unknown := set(args.only) - set(cases):
            parser.error(f"unknown case {sorted(unknown)[0]!r}: choose from {', '.join(cases)}")
        wanted = [cases[name] for name in args.only]
    else:
        wanted = list(cases.values())

    identity = {"machine": machine(), "weights": weights_digest(Model().path), "code": code_digest()}
    results: dict[str, Any] = {"identity": identity, "cases": {}}
    if args.out.is_file():
        earlier = json.loads(args.out.read_text(encoding="utf-8"))
        if earlier.get("identity") == identity:
            results = earlier
    args.out.parent.mkdir(parents=True, exist_ok=True)
    missing = [case for case in wanted if "rtf" not in results["cases"].get(case.key, {})]
    for case in tqdm(missing, desc="measuring", unit="case"):
        results["cases"][case.key] = measure(case)
        write_json(args.out, results)
    if not args.only and "first_audio_s" not in results:
        results["first_audio_s"] = first_audio_s(args.long_seconds, args.device)
        write_json(args.out, results)
    print(tabulate(cases, results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
