"""The benchmark: every system on every clip, a table by condition, and a page to hear the best and the worst.

    python -m training.evaluation.benchmark --clips data/benchmark/validation --out build/benchmark/validation
    python -m training.evaluation.benchmark --clips data/benchmark/test --out build/benchmark/test --page

One line of JSON for every clip and system, appended as it comes: the same command goes on where it was stopped, and
computes again what changed since. Runs are noted in `runs.log` beside it.
"""

from __future__ import annotations

import argparse
import base64
import functools
import hashlib
import html
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import torch
from tqdm.auto import tqdm

from pipeline_aud2studio import Aud2StudioPipeline, shipped_weights
from pipeline_aud2studio.audio import Waveform, resample
from pipeline_aud2studio.chunks import ArraySource
from pipeline_aud2studio.files import atomic_path
from pipeline_aud2studio.plot import plot_spectrograms
from pipeline_aud2studio.precision import preferred_dtype
from training.hub.export import remote_code_files

from .clips import SAMPLE_RATE, Clip, load_clips
from .metrics import balance_error, gap_excess, log_spectral_distance, multi_resolution_stft, si_sdr
from .peers import PEERS, aligned, ceiling, coherence_weighted, mean
from .perceptual import SAMPLE_RATE as SRMR_RATE
from .perceptual import embed, frechet_distance, gaussian, pesq_on_speech, srmr

OWN = ("faithful", "prediction", "vocoder", "blend")
REFERENCES = ("input", "ceiling")
# Of several recordings: what the pipeline is given, and how it reads out.
SEVERAL: dict[str, tuple[Callable[[Clip], Waveform | list[Waveform]], str]] = {
    "several": (aligned, "faithful"),
    "several_prediction": (aligned, "prediction"),
    "mean": (lambda clip: mean(aligned(clip)), "faithful"),
    "coherence": (lambda clip: coherence_weighted(aligned(clip)), "faithful"),
}
SYSTEMS = (*REFERENCES, *OWN[:2], *PEERS)
UNCORRELATED_DB = -20.0  # a recording below it is as good as another piece: its gain says nothing
NOT_SPOILT = ["clean", "audience alone"]  # conditions with nothing to gain
System = Callable[[Clip], Waveform]
NUM_SHOWN, SHOWN_S = 10, 10.0  # clips of the page, the best and the worst, and what is heard of each
STYLE = """body{font:16px/1.5 system-ui;margin:2rem auto;max-width:70rem;padding:0 1rem}
section{border-top:1px solid #ccc;padding:1rem 0}.parts{display:flex;flex-wrap:wrap;gap:1rem}
figure{margin:0;flex:1 1 18rem}img,audio{width:100%}"""


def build(name: str, weights: str) -> tuple[System, str]:
    """Returns a system, and a text that changes when its results may.

    Raises:
        ValueError: For an unknown name.
    """
    if name == "input":
        return lambda clip: clip.recording, "1"
    if name == "ceiling":
        return lambda clip: ceiling(clip.recording, clip.early), code_digest()
    if name in OWN or name in SEVERAL:
        precision = preferred_dtype("cpu")
        pipeline = Aud2StudioPipeline.from_pretrained(
            weights, dtype={"vocoder": torch.float32, "condition_encoder": torch.float32, "default": precision}
        )
        pipeline.set_progress_bar_config(disable=True)

        gather, reconstruction = SEVERAL.get(name, (None, name))

        def restored(clip: Clip) -> Waveform:
            generator = torch.Generator().manual_seed(0)
            audio = gather(clip) if gather else clip.recording
            return pipeline(audio, SAMPLE_RATE, reconstruction=reconstruction, generator=generator).audios[0]

        return restored, f"{weights_digest(weights)}, {precision}, code {code_digest()}"
    if name in PEERS:
        return lambda clip: PEERS[name](clip.recording), "1"
    raise ValueError(f"unknown system {name!r}: choose from {', '.join((*SYSTEMS, *OWN[2:], *SEVERAL))}")


def score(estimate: Waveform, clip: Clip) -> dict[str, float]:
    """Measures a restored clip (channels, samples), mean over its channels.

    Raises:
        ValueError: If the shape is not the recording's or a sample is not finite.
    """
    if estimate.shape != clip.recording.shape or not np.isfinite(estimate).all():
        raise ValueError(f"the result has the shape {estimate.shape} or is not finite")
    found, early, dry = (torch.from_numpy(np.ascontiguousarray(each)) for each in (estimate, clip.early, clip.dry))
    figures = {
        "early": si_sdr(found, early),
        "dry": si_sdr(found, dry),
        "lsd": log_spectral_distance(found, early),
        "balance": balance_error(found, early, SAMPLE_RATE),
        "gaps": gap_excess(found, early, SAMPLE_RATE),
    }
    return {name: float(value.mean()) for name, value in figures.items()}


def perceptual(estimate: Waveform, clip: Clip) -> dict[str, float]:
    """Measures what takes longer: MR-STFT, SRMR and, where somebody sings or speaks alone, PESQ."""
    found, early = (torch.from_numpy(np.ascontiguousarray(each)) for each in (estimate, clip.early))
    figures = {"mr_stft": float(multi_resolution_stft(found, early).mean())}
    figures["srmr"] = float(np.mean([srmr(channel) for channel in resample(estimate, SAMPLE_RATE, SRMR_RATE)]))
    try:
        speech = pesq_on_speech(found, early, SAMPLE_RATE)
    except ImportError:  # it has to be compiled: not everybody has it
        speech = []
    return figures | ({"pesq": float(np.mean(speech))} if speech else {})


@functools.cache
def code_digest() -> str:
    """Fingerprint of the pipeline's own code: a change of it is another system."""
    files = [file.read_bytes() for file in remote_code_files()]
    return hashlib.sha256(b"\0".join(files)).hexdigest()[:16]


def weights_digest(path: str) -> str:
    """Fingerprint of a checkpoint's folder; a repository's name stands for itself."""
    if not Path(path).is_dir():
        return path
    total = hashlib.sha256()
    for file in sorted([Path(path) / "model_index.json", *Path(path).glob("*/*.safetensors")]):
        total.update(file.relative_to(path).as_posix().encode() + file.read_bytes())
    return total.hexdigest()[:16]


def keep_audio(folder: Path, name: str, waveform: Waveform) -> None:
    """Writes a waveform (channels, samples) as FLAC, for a listening test; above full scale it is lowered."""
    folder.mkdir(parents=True, exist_ok=True)
    scale = min(1.0, 0.99 / max(float(np.abs(waveform).max()), 1e-9))
    soundfile.write(folder / f"{name}.flac", (scale * waveform).T, SAMPLE_RATE, "PCM_24")


def run(
    clips: Sequence[Clip],
    names: Sequence[str],
    weights: str,
    out: Path,
    with_perceptual: bool = False,
    keep: bool = False,
) -> pd.DataFrame:
    """Computes what `out/results.jsonl` does not have yet; returns a row for every clip and system.

    Args:
        with_perceptual: Whether to measure what :func:`perceptual` does.
        keep: Whether to keep the waveforms below `out/kept`, for `spaces_app.listening_test draft`.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.jsonl"
    known = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            known[row["name"], row["system"], row["identity"]] = row
    rows = []
    for name in names:
        system, identity = build(name, weights)
        for clip in tqdm(clips, desc=name, unit="clip"):
            row = known.get((clip.name, name, identity))
            audible = out / "kept" / name / f"{clip.name}.flac"
            if row is None or (with_perceptual and "mr_stft" not in row) or (keep and not audible.is_file()):
                begin = time.perf_counter()
                estimate = system(clip)
                seconds = (time.perf_counter() - begin) * SAMPLE_RATE / clip.recording.shape[1]
                row = {"name": clip.name, "system": name, "identity": identity, "condition": clip.condition}
                row |= {"voice": clip.has_voice, "rtf": round(seconds, 4), **score(estimate, clip)}
                if with_perceptual:
                    row |= perceptual(estimate, clip)
                    row["embedding"] = embed(estimate.mean(0, keepdims=True), SAMPLE_RATE).tolist()
                if keep:
                    keep_audio(audible.parent, clip.name, estimate)
                    keep_audio(out / "kept" / "reference", clip.name, clip.early)
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            rows.append(row)
    return pd.DataFrame(rows)


def gains(results: pd.DataFrame) -> pd.DataFrame:
    """Adds to every row what it gains over the recording: `early_gain`, `dry_gain`, `lsd_change`, `gaps_gain`.

    `counts` says whether the clip's SI-SDR means anything, see `UNCORRELATED_DB`.
    """
    before = results[results.system == "input"].set_index("name")
    table = results.join(before[["early", "dry", "lsd", "balance", "gaps"]], on="name", rsuffix="_before")
    table["early_gain"] = table.early - table.early_before
    table["dry_gain"] = table.dry - table.dry_before
    table["lsd_change"] = 100 * (table.lsd / table.lsd_before - 1)
    table["gaps_gain"] = table.gaps_before - table.gaps
    table["balance_gain"] = table.balance_before - table.balance
    table["counts"] = table.early_before > UNCORRELATED_DB
    return table


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Tabulates condition by system: means, and medians of the SI-SDR."""
    table = gains(results)
    table = table[~table.condition.isin(NOT_SPOILT)]
    every = table.assign(condition="all")
    groups = pd.concat([table, every], ignore_index=True).groupby(["condition", "system"], sort=False)
    heard = pd.concat([table, every], ignore_index=True).query("counts").groupby(["condition", "system"], sort=False)
    return pd.DataFrame(
        {
            "clips": groups.size(),
            "SI-SDR early, gain in dB": heard.early_gain.mean(),
            "median": heard.early_gain.median(),
            "worst": heard.early_gain.min(),
            "SI-SDR dry, gain in dB": heard.dry_gain.mean(),
            "LSD, dB": groups.lsd.mean(),
            "LSD change, %": 100 * (groups.lsd.mean() / groups.lsd_before.mean() - 1),
            "balance error, dB": groups.balance.mean(),
            "gaps nearer to clean, dB": groups.gaps_gain.mean(),
            "RTF": groups.rtf.mean(),
        }
    ).reset_index()


def report(results: pd.DataFrame) -> str:
    """Writes the tables as Markdown."""
    table = gains(results)
    lines = ["# Benchmark", "", summary(results).round(2).to_markdown(index=False), ""]
    left_out = sorted(table[~table.counts].name.unique())
    lines += [f"Not in the SI-SDR means, because the recording is below {UNCORRELATED_DB:.0f} dB: {left_out}.", ""]
    spoilt = table[~table.condition.isin(NOT_SPOILT) & table.counts]
    share = spoilt.groupby("system", sort=False).early_gain.agg(
        within_1_db=lambda gain: 100 * (gain >= -1).mean(), within_2_db=lambda gain: 100 * (gain >= -2).mean()
    )
    lines += ["Share of clips at most 1 and 2 dB below their recording, %:", "", share.round(1).to_markdown(), ""]
    voices = spoilt.groupby(["system", "voice"], sort=False)[["early_gain", "lsd_change"]].mean().unstack()
    voices.columns = [f"{figure}, {'voices' if voice else 'instruments'}" for figure, voice in voices.columns]
    lines += ["Voices and instruments:", "", voices.round(2).to_markdown(), ""]
    clean = (
        results[results.condition == "clean"]
        .groupby("system", sort=False)
        .early.agg(mean="mean", lowest="min", above_20_db=lambda level: 100 * (level >= 20).mean())
    )
    lines += ["Clean music in, SI-SDR out in dB:", "", clean.round(1).to_markdown(), ""]
    alone = results[results.condition == "audience alone"].groupby("system", sort=False)[["early", "lsd"]].mean()
    lines += ["An audience alone, against itself:", "", alone.round(1).to_markdown(), ""]
    return "\n".join(lines)


def perceptual_report(results: pd.DataFrame, clips: Sequence[Clip]) -> str:
    """Tabulates what :func:`perceptual` measured, and the Fréchet distance to the dry versions of the same clips."""
    clean = gaussian([embed(clip.dry.mean(0, keepdims=True), SAMPLE_RATE) for clip in clips])
    rows = []
    for name, of_system in results.groupby("system", sort=False):
        embedded = gaussian([np.array(each, np.float32) for each in of_system.embedding])
        means = of_system.reindex(columns=["mr_stft", "srmr", "pesq"]).mean()
        rows.append({"system": name, **means, "FAD, musicnn": frechet_distance(clean, embedded)})
    return f"Perceptual figures, all clips:\n\n{pd.DataFrame(rows).round(2).to_markdown(index=False)}\n"


def write_page(path: Path, clips: Sequence[Clip], table: pd.DataFrame, restore: System) -> None:
    """Writes the best and the worst clips, before, after and wanted, in one file that needs no network.

    Args:
        table: See :func:`gains`; the rows of `faithful` are shown.
        restore: Makes what is heard as "after".
    """
    by_name = {clip.name: clip for clip in clips}
    ours = table[(table.system == "faithful") & table.counts & ~table.condition.isin(NOT_SPOILT)]
    ordered = ours.sort_values("early_gain", ascending=False)
    count = min(NUM_SHOWN, len(ordered) // 2)
    groups = {"The best": ordered.head(count), "The worst": ordered.tail(count)[::-1]}
    parts = [f"<!doctype html><meta charset=utf-8><title>aud2studio</title><style>{STYLE}</style><h1>aud2studio</h1>"]
    for title, rows in groups.items():
        parts.append(f"<h2>{title} {count} clips, by SI-SDR against the early sound</h2>")
        for row in rows.itertuples():
            clip = by_name[row.name]
            words = f"{clip.condition}, clip {clip.name}: {row.early_gain:+.1f} dB, LSD {row.lsd_change:+.0f} %"
            sounds = {"before": clip.recording, "after": restore(clip), "wanted": clip.early}
            parts.append(f"<section><h3>{html.escape(words)}</h3>{_shown(sounds)}</section>")
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


def _shown(sounds: dict[str, Waveform]) -> str:
    """Players and spectrograms of some waveforms (channels, samples), by their titles."""
    cut = {title: waveform[:, : round(SHOWN_S * SAMPLE_RATE)] for title, waveform in sounds.items()}
    figures = []
    for title, waveform in cut.items():
        file = io.BytesIO()
        soundfile.write(file, (0.9 / max(float(np.abs(waveform).max()), 1e-9) * waveform).T, SAMPLE_RATE, format="OGG")
        player = f'<audio controls preload="none" src="{_embedded(file.getvalue(), "audio/ogg")}"></audio>'
        figures.append(f"<figure><figcaption>{title}</figcaption>{player}</figure>")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "spectrograms.png"
        plot_spectrograms(picture, {title: (ArraySource(each), SAMPLE_RATE) for title, each in cut.items()})
        source = _embedded(picture.read_bytes(), "image/png")
    return f'<div class="parts">{"".join(figures)}</div><img alt="spectrograms" src="{source}">'


def _embedded(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark, see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--clips", type=Path, required=True, metavar="DIR", help="what training.evaluation.clips wrote"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="NAME,... (default: all)")
    parser.add_argument("--weights", default=str(shipped_weights()), help="folder or repository of the checkpoint")
    parser.add_argument("--perceptual", action="store_true", help="also MR-STFT, SRMR, PESQ and FAD: minutes a system")
    parser.add_argument("--keep", action="store_true", help="keep what was restored, for a listening test")
    parser.add_argument("--page", action="store_true", help="also page.html: the ten best and ten worst clips")
    options = parser.parse_args(arguments)
    try:
        clips = load_clips(options.clips)
        names = ["input", *(name for name in options.systems.split(",") if name != "input")]
        results = run(clips, names, options.weights, options.out, options.perceptual, options.keep)
    except (OSError, ValueError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    note: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "systems": names}
    note |= {"weights": weights_digest(options.weights), "code": code_digest()}
    with open(options.out / "runs.log", "a", encoding="utf-8") as file:
        file.write(json.dumps(note) + "\n")
    text = report(results) + (perceptual_report(results, clips) if options.perceptual else "")
    (options.out / "report.md").write_text(text, encoding="utf-8")
    print(text)
    if options.page:
        write_page(options.out / "page.html", clips, gains(results), build("faithful", options.weights)[0])
        print(options.out / "page.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
