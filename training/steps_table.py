"""How good the restored mel is against what it costs, by scheduler and number of steps.

    python -m training.steps_table --manifest training/benchmark/validation.jsonl --data data --out build/steps

Every clip is restored chunk by chunk. The error is the mean of `|restored - clean|` of the log-mels, in nats, with
recording and clean music at the same level; the time is that of the sampling alone, without the vocoder, in seconds of
work per second of audio. One JSON file per clip under `--out`: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from pipeline_aud2studio import Aud2StudioPipeline
from pipeline_aud2studio.audio import resample
from pipeline_aud2studio.infer import SCHEDULERS, load_pipeline
from pipeline_aud2studio.spectral import MEL_FLOOR
from pipeline_aud2studio.takes import SILENCE_RMS, level_gain, rms
from training.baselines import Waveform
from training.evaluate import Row, digest, read_manifest
from training.metrics import mean_interval
from training.pairs import load_pair
from training.report import write_json
from training.sources import Roots
from training.systems import Model, code_digest, weights_digest

STEPS = (1, 2, 4, 8, 16, 50)
INPUT = "input"  # what the restored mel is to be better than
SEED = 0


def restored_log_mel(
    pipeline: Aud2StudioPipeline, recording: Waveform, steps: int, strength: float = 1.0
) -> tuple[torch.Tensor, float]:
    """The log-mel (channels, bands, frames) that the vocoder gets of a single chunk, and the seconds that it took.

    Args:
        recording: (channels, samples), as long as the pipeline's chunk, at its sample rate.
    """

    def keep(pipe: Any, step: int, timestep: torch.Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == int(steps * strength) - 1:
            raise _Sampled(kwargs["latents"])
        return {}

    begin = time.perf_counter()
    try:
        pipeline(
            recording,
            pipeline.config.sample_rate,
            steps,
            "vocoder",
            generator=torch.Generator().manual_seed(SEED),
            callback_on_step_end=keep,
            strength=strength,
        )
    except _Sampled as sampled:
        correction = sampled.latents[:, 0].cpu() * pipeline.config.correction_std
    seconds = time.perf_counter() - begin
    return (log_mel(pipeline, recording) + correction).clamp_min(math.log(MEL_FLOOR)), seconds


class _Sampled(Exception):
    """Ends a call of the pipeline before the vocoder, which would take most of the time and is not measured."""

    def __init__(self, latents: torch.Tensor) -> None:
        super().__init__()
        self.latents = latents


def log_mel(pipeline: Aud2StudioPipeline, waveform: Waveform) -> torch.Tensor:
    """At the level at which the networks see a recording: (channels, bands, frames)."""
    normal = waveform * np.float32(level_gain(rms(waveform)))
    return pipeline.transform.log_mel(pipeline.transform.stft(torch.from_numpy(normal)))


def chunks(pipeline: Aud2StudioPipeline, recording: Waveform, clean: Waveform) -> list[tuple[Waveform, Waveform]]:
    """Recording and clean music (channels, samples) in whole chunks, without the silent ones."""
    size = pipeline.chunk_frames * pipeline.config.hop_length
    starts = range(0, recording.shape[-1] - size + 1, size)
    pairs = [(recording[:, start : start + size], clean[:, start : start + size]) for start in starts]
    return [pair for pair in pairs if min(map(rms, pair)) > 100 * SILENCE_RMS]


def measure_clip(
    pipelines: Mapping[str, Aud2StudioPipeline],
    recording: Waveform,
    clean: Waveform,
    steps: Sequence[int],
    strength: float,
    bar: tqdm[Any] | None = None,
) -> dict[str, list[float]]:
    """Error in nats and seconds per second of audio by `SCHEDULER-STEPS`, and of the input as it is."""
    figures: dict[str, list[float]] = {}
    any_pipeline = next(iter(pipelines.values()))
    pairs = chunks(any_pipeline, recording, clean)
    if not pairs:
        raise ValueError("no whole chunk of the clip has sound")
    seconds = len(pairs) * pairs[0][0].shape[-1] / any_pipeline.config.sample_rate
    targets = [log_mel(any_pipeline, target) for _, target in pairs]
    errors = [log_mel(any_pipeline, part) - target for (part, _), target in zip(pairs, targets, strict=True)]
    figures[INPUT] = [float(torch.stack(errors).abs().mean()), 0.0]
    for name, pipeline in pipelines.items():
        for count in steps:
            results = [restored_log_mel(pipeline, part, count, strength) for part, _ in pairs]
            errors = [mel - target for (mel, _), target in zip(results, targets, strict=True)]
            spent = sum(took for _, took in results)
            figures[f"{name}-{count}"] = [float(torch.stack(errors).abs().mean()), spent / seconds]
            if bar is not None:
                bar.update()
    return figures


def read_clip(path: Path, identity: Mapping[str, Any]) -> dict[str, list[float]] | None:
    """A clip's figures if they are there and of this row, model and settings."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return content["figures"] if content.get("identity") == identity else None


def table(clips: Sequence[Mapping[str, Sequence[float]]], steps: Sequence[int], names: Sequence[str]) -> str:
    """Markdown: rows are numbers of steps, columns schedulers; the error with its 95 % interval, and the time."""

    def cell(key: str) -> str:
        errors = [clip[key][0] for clip in clips]
        low, high = mean_interval(errors)
        took = float(np.mean([clip[key][1] for clip in clips]))
        return f"{np.mean(errors):.3f} [{low:.3f}, {high:.3f}], {took:.3f} s/s"

    untouched = float(np.mean([clip[INPUT][0] for clip in clips]))
    lines = [
        f"Error of the log-mel in nats [95 %] and time per second of audio, {len(clips)} clips; "
        f"the input's error is {untouched:.3f}.",
        "",
        f"| steps | {' | '.join(names)} |",
        f"|{' --- |' * (len(names) + 1)}",
    ]
    return "\n".join([*lines, *(f"| {n} | {' | '.join(cell(f'{name}-{n}') for name in names)} |" for n in steps)])


def run(rows: Sequence[Row], roots: Roots, options: argparse.Namespace) -> str:
    """Measures what is not measured yet; returns the table."""
    if not rows:
        raise ValueError("there is no clip to measure")
    steps = [count for count in options.steps if int(count * options.strength)]
    if not steps:
        raise ValueError(f"--strength {options.strength} leaves no step of {options.steps}")
    pipelines = {}
    for name in options.schedulers:
        pipelines[name] = load_pipeline(options.model, options.device, options.dtype, name)
        pipelines[name].set_progress_bar_config(disable=True)
    rate = pipelines[options.schedulers[0]].config.sample_rate
    clips = []
    with tqdm(total=len(rows) * len(pipelines) * len(steps), desc="steps", unit="setting") as bar:
        for row in rows:
            path = options.out / f"{row['row_id']:05d}.json"
            identity = {
                "row": digest(row),
                "model": f"{weights_digest(options.model)}, {options.dtype}, code {code_digest()}",
                "strength": options.strength,
                "schedulers": [*options.schedulers],
                "steps": steps,
            }
            figures = read_clip(path, identity)
            if figures is None:
                pair = load_pair(row, roots)
                recording, clean = (
                    resample(waveform, pair.sample_rate, rate) for waveform in (pair.recordings[0], pair.clean)
                )
                figures = measure_clip(pipelines, recording, clean, steps, options.strength, bar)
                write_json(path, {"identity": identity, "figures": figures})
            else:
                bar.update(len(pipelines) * len(steps))
            clips.append(figures)
    return table(clips, steps, options.schedulers)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.steps_table", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--manifest", type=Path, default=Path("training/benchmark/validation.jsonl"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with clean, rirs and noise")
    parser.add_argument("--out", type=Path, default=Path("build/steps"), help="folder of results and table.md")
    parser.add_argument("--limit", type=int, metavar="N", help="only N clips, over all conditions")
    parser.add_argument("--model", default=Model.path, help="folder or repository of the checkpoint")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="default: %(default)s")
    parser.add_argument("--schedulers", nargs="+", choices=tuple(SCHEDULERS), default=tuple(SCHEDULERS))
    parser.add_argument("--strength", type=float, default=1.0, help="below 1: from the input's mel (default: 1)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    roots = Roots(*(options.data / name for name in ("clean", "rirs", "noise")))
    try:
        found = run(read_manifest(options.manifest, options.limit), roots, options)
    except (ValueError, OSError) as error:
        print(f"steps_table: {error}", file=sys.stderr)
        return 1
    (options.out / "table.md").write_text(f"{found}\n", encoding="utf-8")
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
