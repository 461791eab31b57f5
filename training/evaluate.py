"""The benchmark: renders a manifest, runs every system on every clip, scores, and reports.

    python -m training.evaluate --manifest training/benchmark/test.jsonl --data data --out build/benchmark --perceptual
    python -m training.evaluate --manifest training/benchmark/validation.jsonl --data data --out build/tuning \\
        --tune training/benchmark/peers.json

One JSON file per clip and system under `--out`: the same command goes on where it was stopped, and runs again what
failed or what has changed since. A system that fails is reported and does not keep the others from running.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tqdm.auto import tqdm

from training.baselines import PEERS, Waveform
from training.benchmark_audio import compare, describe
from training.degrade import CONDITIONS, RenderedPair
from training.further import VERSION as FURTHER_VERSION
from training.further import FurtherScores
from training.html_report import CLEAN, keep_audio, write_html
from training.jsonl import read_rows
from training.manifest import check_header, check_row, read_header
from training.metrics import level_change_lu, log_spectral_distance, multi_resolution_stft, si_sdr
from training.pairs import load_pair
from training.report import summarise, write_json, write_report
from training.sources import Roots
from training.systems import FOLDER, SYSTEMS, Model, RestoredFolder, System, build_peer, build_system, read_folder

Row = dict[str, Any]
RECORDED_PEAK = 0.5  # full scale is 1


def read_manifest(path: Path, limit: int | None = None) -> list[Row]:
    """Checked rows of a manifest of single recordings, with their fingerprints; `limit` of them, over all conditions.

    Raises:
        ValueError: if a row is malformed or has several recordings.
    """
    check_header(read_header(path))
    rows = []
    for row in read_rows(path):
        checked = check_row(row)
        if checked["num_takes"] != 1:
            raise ValueError(f"{path}, row {row['row_id']} has {checked['num_takes']} recordings, not one")
        rows.append(checked | {"rendered": row.get("rendered")})
    if limit is None:
        return rows
    by_condition = [[row for row in rows if row["condition"] == condition] for condition in CONDITIONS]
    longest = max(map(len, by_condition))
    turns = [group[turn] for turn in range(longest) for group in by_condition if turn < len(group)]
    return turns[:limit]


def below_full_scale(pair: RenderedPair) -> RenderedPair:
    """The pair at the level of a file: in a room the sum of all paths can be ten times as loud as the clean music."""
    gain = np.float32(RECORDED_PEAK / max(float(np.abs(pair.recordings).max()), 1e-9))
    waveforms = {name: getattr(pair, name) * gain for name in ("recordings", "clean", "early")}
    return replace(pair, **waveforms)


def score(restored: Waveform, pair: RenderedPair) -> dict[str, float]:
    """Every metric of one restored clip (channels, samples), averaged over its channels."""
    recording = pair.recordings[0]
    if restored.shape != recording.shape:
        raise ValueError(f"the result has the shape {restored.shape}, the recording {recording.shape}")
    if not np.isfinite(restored).all():
        raise ValueError("the result has NaN or infinite samples")
    estimate, degraded, clean, early = map(torch.tensor, (restored, recording, pair.clean, pair.early))
    scores = {
        "si_sdr": si_sdr(estimate, clean),
        "si_sdr_improvement": si_sdr(estimate, clean) - si_sdr(degraded, clean),
        "si_sdr_early": si_sdr(estimate, early),
        "si_sdr_early_improvement": si_sdr(estimate, early) - si_sdr(degraded, early),
        "mr_stft": multi_resolution_stft(estimate, clean),
        "lsd": log_spectral_distance(estimate, clean),
    }
    level_change = {"level_change_lu": level_change_lu(estimate, degraded, pair.sample_rate)}
    return {name: float(value.mean()) for name, value in scores.items()} | level_change


def run_clip(system: System, pair: RenderedPair) -> tuple[dict[str, float], Waveform]:
    """Scores of one clip, what the system alone took for it, and what it made of it (channels, samples).

    `real_time_factor` is seconds of work per second of audio (below 1 is faster than real time); `cpu_factor` the same
    in processor time, which other work on the machine does not change; `peak_memory_mb` the resident memory of the
    process during the call, libraries and weights included.
    """
    seconds = pair.clean.shape[-1] / pair.sample_rate
    _reset_peak_memory()
    wall, cpu = time.perf_counter(), time.process_time()
    restored = system.run(pair.recordings[0], pair.clean, pair.sample_rate)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    cost = {"real_time_factor": wall / seconds, "cpu_factor": cpu / seconds}
    peak_memory_mb = _peak_memory_mb()
    if peak_memory_mb is not None:
        cost["peak_memory_mb"] = peak_memory_mb
    return score(restored, pair) | cost, restored


def _reset_peak_memory() -> None:
    """Forget the highest memory use so far (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # elsewhere, or not permitted: what is read later is the peak of the whole run


def _peak_memory_mb() -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    peak = next(line for line in lines if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


def digest(row: Mapping[str, Any]) -> str:
    """Fingerprint of a row's parameters."""
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]


def read_result(path: Path, identity: Mapping[str, str]) -> Row | None:
    """A clip's result if it is there, did not fail, and belongs to this row and this system as it is now.

    It may hold more than is asked for, and lacks nothing.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return result if "error" not in result and result["identity"].items() >= identity.items() else None


def evaluate(
    rows: Sequence[Row],
    systems: Sequence[System | RestoredFolder],
    roots: Roots,
    folder: Path,
    further: FurtherScores | None = None,
    audible: bool = False,
    progress: bool = True,
) -> list[Row]:
    """Results of all clips and systems, from `folder` or computed and written there.

    Args:
        further: What is measured beyond the fast metrics.
        audible: Whether the restored, the recorded and the clean clips are kept for the HTML report.
    """
    results = []
    with tqdm(total=len(rows) * len(systems), desc="evaluating", unit="clip", disable=not progress) as bar:
        for row in rows:
            pair: RenderedPair | None = None
            for system in systems:
                bar.set_postfix_str(system.name)
                path = folder / system.name / f"{row['row_id']:05d}.json"
                identity = {"row": digest(row), "system": system.identity}
                if further is not None:
                    identity["further"] = FURTHER_VERSION
                result = read_result(path, identity)
                if result is None or (audible and not path.with_suffix(".opus").is_file()):
                    pair = pair or load_pair(row, roots)
                    kept = {key: row[key] for key in ("row_id", "condition", "venue", "music_path")}
                    result = {**kept, "system": system.name, "identity": identity}
                    result["audio"] = compare(row["rendered"], describe(pair))
                    try:
                        scaled = below_full_scale(pair)
                        of_clip = system.for_clip(row["row_id"]) if isinstance(system, RestoredFolder) else system
                        scores, restored = run_clip(of_clip, scaled)
                        result |= scores
                        if audible:
                            _keep(folder, system.name, path.stem, restored, scaled)
                        if further is not None:
                            result |= further(system.name, row, scaled, restored)
                    except Exception as error:  # of whatever kind: the other systems have to go on
                        result["error"] = f"{type(error).__name__}: {error}"
                        tqdm.write(f"{system.name} failed on row {row['row_id']}: {result['error']}", file=sys.stderr)
                    write_json(path, result)
                results.append(result)
                bar.update()
    return results


@dataclass(frozen=True)
class Job:
    """What a worker needs to evaluate rows: everything but the rows, and nothing that cannot be sent to a process."""

    names: tuple[str, ...]
    model: Model
    roots: Roots
    folder: Path
    perceptual: bool
    audible: bool

    def systems(self) -> tuple[list[System | RestoredFolder], dict[str, str]]:
        """The systems, loaded, and why others could not be: a peer that is not installed, a missing checkpoint."""
        systems: list[System | RestoredFolder] = []
        broken = {}
        for name in self.names:
            try:
                systems.append(read_folder(name) if name.startswith(FOLDER) else build_system(name, self.model))
            except Exception as error:
                broken[name] = f"{type(error).__name__}: {error}"
        return systems, broken

    def further(self) -> FurtherScores | None:
        return FurtherScores(self.folder, self.roots) if self.perceptual else None


_worker: tuple[list[System | RestoredFolder], Job] | None = None


def _start_worker(job: Job, threads: int) -> None:
    global _worker
    torch.set_num_threads(threads)
    _worker = (job.systems()[0], job)


def _work(row: Row) -> None:
    assert _worker is not None
    systems, job = _worker
    evaluate([row], systems, job.roots, job.folder, job.further(), job.audible, progress=False)


def evaluate_in_parallel(rows: Sequence[Row], job: Job, workers: int) -> None:
    """Writes the results of all clips to the job's folder with several processes, which share the cores."""
    threads = max(1, torch.get_num_threads() // workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (job, threads)) as pool:
        for _ in tqdm(pool.map(_work, rows), total=len(rows), desc=f"evaluating, {workers} processes", unit="clip"):
            pass


def write_recordings(rows: Sequence[Row], roots: Roots, folder: Path) -> None:
    """Writes every clip's recording as `ROWID.flac`, 24 bit; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in tqdm(rows, desc="recordings", unit="clip"):
        path = folder / f"{row['row_id']:05d}.flac"
        if not path.is_file():
            recording = below_full_scale(load_pair(row, roots)).recordings[0]
            part = path.with_name(f".{path.name}.part")
            soundfile.write(part, recording.T, row["sample_rate"], format="FLAC", subtype="PCM_24")
            os.replace(part, path)


def _keep(folder: Path, system: str, stem: str, restored: Waveform, pair: RenderedPair) -> None:
    """Keeps the restored clip for the HTML report, and the clean one beside it."""
    keep_audio(folder / system / f"{stem}.opus", restored, pair.sample_rate)
    if not (clean := folder / CLEAN / f"{stem}.opus").is_file():
        keep_audio(clean, pair.clean, pair.sample_rate)


def tune(path: Path, names: Sequence[str], rows: Sequence[Row], roots: Roots, folder: Path, manifest: Path) -> None:
    """Write the peers' settings with the best mean SI-SDR, and what the others reached, to `path`.

    Peers that are not named keep what the file has of them.
    """
    candidates = {
        f"{name}-{number}": (name, settings) for name in names for number, settings in enumerate(PEERS[name].settings)
    }
    systems = [build_peer(name, settings, label) for label, (name, settings) in candidates.items()]
    results = evaluate(rows, systems, roots, folder)
    peers: dict[str, Any] = {name: {"trials": []} for name in names}
    for label, (name, settings) in candidates.items():
        of_trial = [result for result in results if result["system"] == label]
        if any("error" in result for result in of_trial):
            raise ValueError(f"{label} failed on some clips: see {folder / label}")
        improvement = float(np.mean([result["si_sdr_improvement"] for result in of_trial]))
        trial = {"settings": dict(settings), "si_sdr_improvement": round(improvement, 3)}
        peers[name]["trials"].append(trial)
    for name, peer in peers.items():
        best = max(peer["trials"], key=lambda trial: float(trial["si_sdr_improvement"]))
        peers[name] = {"settings": best["settings"], "manifest": manifest.name, "clips": len(rows), **peer}
    known = json.loads(path.read_text(encoding="utf-8"))["peers"] if path.exists() else {}
    write_json(path, {"peers": known | peers})


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--manifest", type=Path, default=Path("training/benchmark/test.jsonl"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with clean, rirs and noise")
    parser.add_argument(
        "--systems",
        default=",".join(SYSTEMS),
        help="NAME,... (default: all); folder:NAME=PATH is a folder of restored files",
    )
    parser.add_argument("--out", type=Path, default=Path("build/benchmark"), help="folder of results and report")
    parser.add_argument(
        "--perceptual", action="store_true", help="also SRMR, PESQ, ViSQOL, Zimtohrli, late tail, Fréchet distances"
    )
    parser.add_argument("--html", action="store_true", help="also report.html, in one file with every clip to hear")
    parser.add_argument("--workers", type=int, default=1, help="processes; they distort the real-time factors")
    parser.add_argument("--limit", type=int, metavar="N", help="only N clips, over all conditions, for a quick look")
    parser.add_argument("--model", default=Model.path, help="folder or repository of the checkpoint")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the checkpoint's)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default=Model.dtype)
    parser.add_argument("--device", default=Model.device)
    parser.add_argument(
        "--recordings", type=Path, metavar="DIR", help="only write the recordings to DIR, for other tools to restore"
    )
    parser.add_argument(
        "--tune",
        type=Path,
        metavar="FILE",
        help="choose the settings of the peers among --systems and write them to FILE",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    roots = Roots(*(options.data / name for name in ("clean", "rirs", "noise")))
    model = Model(options.model, options.steps, options.dtype, options.device)
    try:
        if options.limit is not None and options.limit < 1:
            raise ValueError("--limit must be at least 1")
        if options.workers < 1:
            raise ValueError("--workers must be at least 1")
        rows = read_manifest(options.manifest, options.limit)
        folder = options.out / "clips"
        names = [name.strip() for name in options.systems.split(",")]
        if unknown := {name for name in names if not name.startswith(FOLDER)} - set(SYSTEMS):
            raise ValueError(f"unknown system {', '.join(sorted(unknown))}: choose from {', '.join(SYSTEMS)}")
        if options.recordings:
            write_recordings(rows, roots, options.recordings)
            print(options.recordings)
            return 0
        if options.tune:
            peers = [name for name in names if name in PEERS]
            tune(options.tune, peers, rows, roots, folder, options.manifest)
            print(options.tune)
            return 0
        job = Job(tuple(names), model, roots, folder, options.perceptual, options.html)
        systems, broken = job.systems()
        for name, reason in broken.items():
            print(f"{name} cannot be loaded: {reason}", file=sys.stderr)
        if options.workers > 1:
            evaluate_in_parallel(rows, job, options.workers)
        further = job.further()
        results = evaluate(rows, systems, roots, folder, further, options.html)
        # Also without --perceptual: an earlier call may have left the embeddings.
        frechet = FurtherScores(folder, roots).frechet(rows, [system.name for system in systems])
    except (ValueError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    summary = summarise(results, broken, options.manifest.name, threads=torch.get_num_threads(), cores=os.cpu_count())
    summary["frechet"] = frechet
    if further is not None and further.missing:
        print(f"not installed, and left out: {', '.join(sorted(further.missing))}", file=sys.stderr)
    write_report(options.out, summary, results)
    if options.html:
        write_html(options.out / "report.html", summary, results, folder, options.out)
    print((options.out / "report.md").read_text(encoding="utf-8"))
    print(options.out / "report.md")
    return 1 if broken or any("error" in result for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
