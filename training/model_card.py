"""The model card, generated from the weights, the training record and the benchmark's figures; never typed.

    python -m training.model_card --weights DIR --summary build/benchmark/summary.json

Reads `training.json` beside the weights (see `training.record`) and writes `README.md` there. What was not measured is
called so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader
from safetensors import safe_open

from pipeline_aud2studio import shipped_weights
from training.artifact_examples import FOLDER as EXAMPLES
from training.artifacts import ARTIFACTS, INDICATORS
from training.degrade import CONDITIONS
from training.fusion_report import PLOT, overview
from training.record import read_record
from training.report import ALL, COLUMNS, frechet_tables

TEMPLATES = Path(__file__).parents[1] / "model_card"
WATTS_PER_CORE = 10  # of a server CPU under load, memory and cooling included: a guess, and the card says so
SHOWN = ("si_sdr_improvement", "si_sdr_early_improvement", "lsd", "mr_stft", "late_tail_db", "visqol", "pesq", "srmr")
FIGURES = "figures"  # beside the weights
OWN = ("faithful", "vocoder", "blend")
COPYLEFT = ("GPL", "SA")


def components(folder: Path) -> list[dict[str, Any]]:
    """Name, class, number of parameters, bytes and types of the parts in a pipeline's folder."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    found = []
    for name, value in index.items():
        files = [file for file in sorted((folder / name).glob("*.safetensors")) if ".fp16" not in file.name]
        if not (isinstance(value, list) and files):
            continue
        parameters, types = 0, set()
        for file in files:
            with safe_open(file, "numpy") as weights:
                for key in weights.keys():
                    tensor = weights.get_slice(key)
                    size = 1
                    for length in tensor.get_shape():
                        size *= length
                    parameters += size
                    types.add({"F16": "float16", "F32": "float32"}.get(tensor.get_dtype(), tensor.get_dtype()))
        size = sum(file.stat().st_size for file in files)
        part = {"name": name, "kind": value[1], "parameters": parameters, "bytes": size}
        found.append({**part, "dtypes": ", ".join(sorted(types))})
    return found


def pipeline_settings(folder: Path) -> dict[str, Any]:
    """What the card says about the pipeline's configuration."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    encoder = json.loads((folder / "condition_encoder" / "config.json").read_text(encoding="utf-8"))
    return {
        **index,
        "steps": index["default_num_inference_steps"],
        "max_recordings": (unet["in_channels"] // index["patch_size"] ** 2 - 1) // 3,
        "chunk_seconds": encoder["max_length"] * index["hop_length"] / index["sample_rate"],
    }


def result_tables(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tables of the most telling figures by condition, and of the SI-SDR improvement by genre and venue."""
    systems = {name: system for name, system in summary["systems"].items() if system["figures"][ALL]}
    tables = []
    for column in COLUMNS:
        if column.key in SHOWN and any(column.key in system["figures"][ALL] for system in systems.values()):
            groups = (*CONDITIONS, ALL)
            rows = [
                [name, *(_cell(system["figures"][group], column.key, column.digits) for group in groups)]
                for name, system in systems.items()
            ]
            tables.append({"title": column.title, "note": f"{column.note}.", "groups": groups, "rows": rows})
    for key in ("genres", "venues"):
        groups = tuple(sorted({group for system in systems.values() for group in system[key]}))
        rows = [
            [name, *(_cell(system[key].get(group, {}), "si_sdr_improvement", 2) for group in groups)]
            for name, system in systems.items()
        ]
        note = "Over the input, against the clean mix; genres are those of whole collections."
        tables.append({"title": f"SI-SDR improvement by {key[:-1]}, dB", "note": note, "groups": groups, "rows": rows})
    return tables


def _cell(figures: Mapping[str, Any], key: str, digits: int) -> str:
    if key not in figures:
        return "-"
    mean, low, high = (f"{figures[key][part]:.{digits}f}" for part in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def speed_table(summary: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, system in summary["systems"].items():
        figures = system["figures"][ALL]
        if name == "input" or "real_time_factor" not in figures:
            continue
        memory = f"{figures['peak_memory_mb']['median']:.0f}" if "peak_memory_mb" in figures else "-"
        factors = [f"{figures[key]['median']:.3f}" for key in ("real_time_factor", "cpu_factor")]
        rows.append([name, *factors, memory])
    return rows


def evaluation_results(summary: Mapping[str, Any]) -> list[EvalResult]:
    """The read-outs' results as the Hub lists them."""
    metrics = {"si_sdr_improvement": "SI-SDR improvement, dB", "lsd": "Log-spectral distance, dB"}
    return [
        EvalResult(
            task_type="audio-to-audio",
            task_name="Restoration of audience recordings",
            dataset_type="aud2studio-benchmark",
            dataset_name=f"aud2studio benchmark, {summary['manifest']}",
            dataset_config=condition,
            metric_type=key,
            metric_name=f"{title} ({name})",
            metric_value=round(system["figures"][condition][key]["mean"], 3),
        )
        for name, system in summary["systems"].items()
        if name in OWN
        for condition in (ALL, *CONDITIONS)
        for key, title in metrics.items()
        if key in system["figures"][condition]
    ]


def strictest_licences(record: Mapping[str, Any]) -> list[str]:
    """The share-alike licences among what was trained on."""
    licences = {source["licence"] for source in record["sources"] if source["pairs"]}
    return sorted(licence for licence in licences if any(word in licence for word in COPYLEFT)) or sorted(licences)


def energy(record: Mapping[str, Any]) -> dict[str, Any]:
    """Hours, cores and energy of all runs of a record."""
    runs = record["runs"]
    cores = max(((run["machine"] or {}).get("cores") or 1 for run in runs), default=1)
    hours = sum(run["seconds"] for run in runs) / 3600
    return {"hours": hours, "cores": cores, "watts": WATTS_PER_CORE, "kwh": hours * cores * WATTS_PER_CORE / 1000}


def machine(run: Mapping[str, Any]) -> str:
    found = run["machine"]
    if found is None:
        return "not recorded"
    parts = [found["cpu"], f"{found['cores']} cores", f"{found['memory_gb']:.0f} GB", found["gpu"] or "no GPU"]
    versions = ", ".join(f"{name} {number}" for name, number in (run["versions"] or {}).items())
    return f"{', '.join(parts)}; {versions}"


def settings(run: Mapping[str, Any]) -> str:
    """The optimizer's settings of a run."""
    train, loss = run["config"]["train"], run["config"]["loss"]
    losses = ", ".join(f"{name} {value:g}" for name, value in loss.items())
    clip_seconds = run["config"]["audio"]["clip_seconds"]
    return (
        f"{train['optimizer']}, learning rate {train['lr']:g} ({train['lr_schedule']}, {train['lr_decay_steps']} steps"
        f" of decay), batches of {train['batch_size']} clips of {clip_seconds:g} s a process, EMA"
        f" {train['ema_decay']:g}; losses: {losses}"
    )


def conditions(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' and ')}" for name, count in counts.items())


def artifact_sections(summary: Mapping[str, Any] | None, weights: Path) -> list[dict[str, Any]]:
    """What to listen for: name, definition, measured rates of the own read-outs, and the example in `figures`."""
    systems = {} if summary is None else summary["systems"]
    sections = []
    for key, artifact in ARTIFACTS.items():
        lines = [
            f"{indicator.text}: above {indicator.limit:.2g} in {100 * found['rate']:.0f} % of {found['clips']} clips"
            f" [{100 * found['low']:.0f}, {100 * found['high']:.0f}], {found['mean']:.{indicator.digits}f} on average"
            f" (`{name}`)"
            for indicator in INDICATORS
            if indicator.artifact == key
            for name in OWN
            if (found := systems.get(name, {}).get("artifacts", {}).get(indicator.key))
        ]
        description = weights / EXAMPLES / f"{key}.json"
        example = json.loads(description.read_text(encoding="utf-8")) if description.is_file() else None
        definition = f"{artifact.definition[0].upper()}{artifact.definition[1:]}."
        section = {"key": key, "name": artifact.title, "definition": definition, "lines": lines, "example": example}
        sections.append(section)
    return sections


def build_card(
    weights: Path,
    summary: Mapping[str, Any] | None,
    record: Mapping[str, Any] | None,
    name: str,
    notes: str,
    fusion: Mapping[str, Any] | None = None,
) -> ModelCard:
    """The card of a pipeline's folder.

    Args:
        summary, fusion: What `training.evaluate` and `training.evaluate_fusion` measured.

    Raises:
        ValueError: if the folder is no pipeline.
    """
    try:
        parts, pipeline = components(weights), pipeline_settings(weights)
        scheduler = json.loads((weights / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{weights} is not a pipeline's folder: {error}") from error
    environment = Environment(loader=FileSystemLoader(TEMPLATES), trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(machine=machine, settings=settings, conditions=conditions)
    text = environment.get_template("card.md.j2").render(
        name=name,
        notes=notes.strip(),
        components=parts,
        pipeline=pipeline,
        scheduler=scheduler["_class_name"],
        prediction_type=scheduler["prediction_type"],
        record=record,
        strictest=[] if record is None else strictest_licences(record),
        energy=None if record is None else energy(record),
        summary=summary,
        fusion=fusion,
        recordings=[] if fusion is None else overview(fusion),
        tables=[] if summary is None else result_tables(summary),
        frechet=[] if summary is None else frechet_tables(summary.get("frechet", {})),
        speed=[] if summary is None else speed_table(summary),
        artifacts=artifact_sections(summary, weights),
    )
    data = ModelCardData(
        license="other",
        license_name="copyleft-sources",
        license_link="README.md",
        library_name="diffusers",
        pipeline_tag="audio-to-audio",
        tags=["audio", "music", "dereverberation", "denoising", "speech-enhancement", "diffusion"],
        datasets=(record or {}).get("datasets") or None,
        model_name=name,
        eval_results=None if summary is None else evaluation_results(summary) or None,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.model_card", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--weights", type=Path, default=shipped_weights(), help="a pipeline's folder")
    parser.add_argument("--summary", type=Path, help="summary.json of training.evaluate")
    parser.add_argument("--fusion", type=Path, metavar="DIR", help="results of training.evaluate_fusion")
    parser.add_argument("--name", default="aud2studio tiny", help="the model's name")
    parser.add_argument("--notes", type=Path, help="Markdown that is put below the training's tables")
    options = parser.parse_args(argv)
    try:
        summary = None if options.summary is None else json.loads(options.summary.read_text(encoding="utf-8"))
        record_path = options.weights / "training.json"
        record = read_record(record_path) if record_path.is_file() else None
        notes = "" if options.notes is None else options.notes.read_text(encoding="utf-8")
        fusion = None
        if options.fusion is not None:
            fusion = json.loads((options.fusion / "summary.json").read_text(encoding="utf-8"))
            (options.weights / FIGURES).mkdir(exist_ok=True)
            shutil.copyfile(options.fusion / PLOT, options.weights / FIGURES / PLOT)
        card = build_card(options.weights, summary, record, options.name, notes, fusion)
        part = options.weights / f".README.md.{os.getpid()}.part"
        part.write_text(str(card), encoding="utf-8")
        os.replace(part, options.weights / "README.md")
    except (ValueError, OSError) as error:
        print(f"model_card: {error}", file=sys.stderr)
        return 1
    print(options.weights / "README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
