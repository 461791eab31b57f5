"""The fusion benchmark: is what several recordings make together better than the best of them alone?

    python -m training.evaluate_fusion --data data --model DIR --takes 1,2,3,4 --out build/fusion

Every performance of the manifest is restored from its first 1, 2, 3 and 4 recordings: by our pipeline, and by
baselines that make one recording of them, which our pipeline then restores. The reference is the first recording: the
clean mix that a result is measured against is aligned with its direct path.

What they have to beat is the best single one: each of the same recordings is restored alone and measured against the
clean mix at the time of its own direct path, which a recording that is fused is off by up to 1 ms from. The best by
SI-SDR counts, with its log-spectral distance. Nobody could choose it without the clean mix: it is harder to beat than
what a user would have picked. `oracle weights` says how much of that there is to win: the sum of the single
restorations with the weights that bring it nearest to the clean mix.

One JSON file per performance under `--out`: the same command goes on where it was stopped, runs again what failed or
changed, and adds numbers of recordings that are not there yet.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from training import equaliser
from training.baselines import Waveform
from training.benchmark_audio import compare_takes, describe_takes
from training.degrade import RenderedPair
from training.evaluate import below_full_scale, digest, read_result
from training.fusion_baselines import VERSION, baselines
from training.fusion_report import summarise, write_report
from training.jsonl import read_rows
from training.manifest import check_header, check_row, read_header
from training.metrics import log_spectral_distance, si_sdr
from training.pairs import load_pair
from training.report import write_json
from training.sources import Roots
from training.systems import TUNED_PEERS, Model, build_peer, load_pipeline, model_identity, read_tuned, restore

Row = dict[str, Any]
Restore = Callable[[Sequence[Waveform], int], Waveform]
OURS, ORACLE = "ours", "oracle weights"
BASELINES = ("mean", "coherence", "nara_wpe")
MAX_TAKES = 4


@dataclass(frozen=True)
class Job:
    """What a worker needs to evaluate performances, and nothing that cannot be sent to a process."""

    model: Model
    roots: Roots
    folder: Path
    numbers: tuple[int, ...]  # of recordings
    names: tuple[str, ...]  # of baselines

    def evaluation(self) -> Evaluation:
        """Everything loaded.

        Raises:
            ValueError: if the package of a baseline is not installed or its settings are not there.
            OSError: if there is no such checkpoint.
        """
        load_pipeline(self.model)
        settings = read_tuned(TUNED_PEERS, "nara_wpe")
        try:
            wpe = build_peer("nara_wpe", settings).identity
        except PackageNotFoundError:
            raise ValueError('nara_wpe is not installed: pip install "aud2studio[eval]"') from None
        identity = f"{model_identity(self.model, 'faithful')}; nara_wpe {wpe}; baselines {VERSION}"
        fuse = {name: method for name, method in baselines(settings).items() if name in self.names}
        return Evaluation(partial(restore, model=self.model), fuse, identity, self)


@dataclass(frozen=True)
class Evaluation:
    """How takes are restored, and the baselines that make one of several, by name."""

    restore: Restore
    fuse: dict[str, Callable[[Sequence[Waveform], int], Waveform]]
    identity: str
    job: Job

    def __call__(self, row: Row) -> Row:
        """The result of a performance, from the job's folder or computed and written there."""
        path = self.job.folder / f"{row['row_id']:05d}.json"
        identity = {"row": digest(row), "system": self.identity}
        kept = {key: row[key] for key in ("row_id", "condition", "venue", "rir_path", "music_path")}
        result = read_result(path, identity) or {**kept, "identity": identity, "takes": [], "fused": {}}
        wanted = {OURS, ORACLE, *self.fuse}
        if all(wanted <= result["fused"].get(str(number), {}).keys() for number in self.job.numbers):
            return result
        try:
            pair = load_pair(row, self.job.roots)
            result["audio"] = compare_takes(row["rendered"], describe_takes(pair))
            self._measure(result, below_full_scale(pair), row["misalignment_s"])
        except Exception as error:  # of whatever kind: the other performances have to go on
            result["error"] = f"{type(error).__name__}: {error}"
            tqdm.write(f"performance {row['row_id']} failed: {result['error']}", file=sys.stderr)
        write_json(path, result)
        return result

    def _measure(self, result: Row, pair: RenderedPair, misalignment_s: Sequence[float]) -> None:
        """Adds what is missing: `takes`, every recording and its restoration; `fused`, by number and method."""
        takes = list(pair.recordings)
        single = [self.restore([take], pair.sample_rate) for take in takes[: max(self.job.numbers)]]
        for take in range(len(result["takes"]), max(self.job.numbers)):
            clean = equaliser.shift(pair.clean, misalignment_s[take], pair.sample_rate)
            result["takes"].append({"input": measure(takes[take], clean), "restored": measure(single[take], clean)})
        for number in self.job.numbers:
            # What leaves the reference as it is, as a mean of one does, has been restored and measured already.
            alone = result["takes"][0]["restored"]
            fused = result["fused"].setdefault(str(number), {})
            if OURS not in fused:
                ours = self.restore(takes[:number], pair.sample_rate) if number > 1 else None
                fused[OURS] = alone if ours is None else measure(ours, pair.clean)
            if ORACLE not in fused:
                fused[ORACLE] = alone if number == 1 else measure(best_sum(single[:number], pair.clean), pair.clean)
            for name, fuse in self.fuse.items():
                if name in fused:
                    continue
                one = fuse(takes[:number], pair.sample_rate)
                if np.array_equal(one, takes[0]):
                    fused[name] = alone
                else:
                    fused[name] = measure(self.restore([one], pair.sample_rate), pair.clean)


def best_sum(waveforms: Sequence[Waveform], clean: Waveform) -> Waveform:
    """The weighted sum (channels, samples) nearest to the clean mix by least squares, one weight for a waveform."""
    columns = np.stack([waveform.ravel() for waveform in waveforms], axis=1).astype(np.float64)
    weights, *_ = np.linalg.lstsq(columns, clean.ravel().astype(np.float64), rcond=None)
    return (columns @ weights).reshape(clean.shape).astype(np.float32)


def measure(estimate: Waveform, clean: Waveform) -> dict[str, float]:
    """SI-SDR and log-spectral distance in dB of (channels, samples), averaged over the channels."""
    if estimate.shape != clean.shape:
        raise ValueError(f"the result has the shape {estimate.shape}, the clean mix {clean.shape}")
    if not np.isfinite(estimate).all():
        raise ValueError("the result has NaN or infinite samples")
    pair = torch.tensor(estimate), torch.tensor(clean)
    return {"si_sdr": float(si_sdr(*pair).mean()), "lsd": float(log_spectral_distance(*pair).mean())}


def read_performances(path: Path, takes: int, limit: int | None = None) -> list[Row]:
    """Checked rows of a manifest with their fingerprints, the first `limit` of them.

    Raises:
        ValueError: if a row is malformed or has fewer than `takes` recordings.
    """
    check_header(read_header(path))
    rows = []
    for row in read_rows(path)[:limit]:
        checked = check_row(row)
        if checked["num_takes"] < takes:
            raise ValueError(f"{path}, row {row['row_id']} has {checked['num_takes']} recordings, not {takes}")
        rows.append(checked | {"rendered": row.get("rendered")})
    return rows


def parse_takes(text: str) -> tuple[int, ...]:
    """`1,2,4` -> (1, 2, 4).

    Raises:
        ValueError: if that is no list of numbers from 1 to 4.
    """
    numbers = {item.strip() for item in text.split(",")}
    if not numbers <= {str(number) for number in range(1, MAX_TAKES + 1)}:
        raise ValueError(f"--takes is {text!r}: give numbers of recordings from 1 to {MAX_TAKES}, as in 1,2,4")
    return tuple(sorted(map(int, numbers)))


def parse_baselines(text: str) -> tuple[str, ...]:
    """`mean,coherence` -> ("mean", "coherence").

    Raises:
        ValueError: if one of them is unknown.
    """
    names = [item.strip() for item in text.split(",") if item.strip()]
    if unknown := [name for name in names if name not in BASELINES]:
        raise ValueError(f"--baselines names {', '.join(unknown)}: choose from {', '.join(BASELINES)}")
    return tuple(name for name in BASELINES if name in names)


_worker: Evaluation | None = None


def _start_worker(job: Job, threads: int) -> None:
    global _worker
    torch.set_num_threads(threads)
    _worker = job.evaluation()


def _work(row: Row) -> Row:
    assert _worker is not None
    return _worker(row)


def evaluate(rows: Sequence[Row], job: Job, workers: int) -> list[Row]:
    """Results of all performances, with as many processes."""
    bar = partial(tqdm, total=len(rows), desc="fusion", unit="performance")
    if workers == 1:
        return list(bar(map(job.evaluation(), rows)))
    threads = max(1, torch.get_num_threads() // workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (job, threads)) as pool:
        return list(bar(pool.map(_work, rows)))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate_fusion", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--manifest", type=Path, default=Path("training/benchmark/fusion.jsonl"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with clean, rirs and noise")
    parser.add_argument("--model", default=Model.path, help="folder or repository of the checkpoint")
    parser.add_argument("--takes", default="1,2,3,4", help="numbers of recordings, N,... (default: %(default)s)")
    parser.add_argument(
        "--baselines",
        default=",".join(BASELINES),
        help="NAME,... (default: %(default)s; nara_wpe takes four fifths of the time)",
    )
    parser.add_argument("--out", type=Path, default=Path("build/fusion"), help="folder of results and report")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N performances, for a quick look")
    options = parser.parse_args(argv)
    try:
        if options.limit is not None and options.limit < 1:
            raise ValueError("--limit must be at least 1")
        if options.workers < 1:
            raise ValueError("--workers must be at least 1")
        numbers, names = parse_takes(options.takes), parse_baselines(options.baselines)
        rows = read_performances(options.manifest, max(numbers), options.limit)
        roots = Roots(*(options.data / name for name in ("clean", "rirs", "noise")))
        job = Job(Model(options.model), roots, options.out / "performances", numbers, names)
        job.evaluation()  # so that what cannot be loaded is said once, and here
        results = evaluate(rows, job, options.workers)
    except (ValueError, OSError) as error:
        print(f"evaluate_fusion: {error}", file=sys.stderr)
        return 1
    failed = [result for result in results if "error" in result]
    if len(failed) < len(results):
        done = [result for result in results if "error" not in result]
        summary = summarise(done, numbers, len(failed), options.manifest.name, options.model)
        write_report(options.out, summary)
        print((options.out / "report.md").read_text(encoding="utf-8"))
        print(options.out / "report.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
