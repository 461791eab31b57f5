"""The model card, generated from the weights, the run and the benchmark; no figure in it is typed.

    python -m training.hub.card --weights DIR --run runs/tiny --material data/material --report
    build/benchmark/test/report.md

Writes `training.json`, the run's record, and `README.md` beside the weights. Called again without `--run`, it keeps
the record that is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader
from safetensors.torch import load_file

from pipeline_aud2studio import shipped_weights
from training.checkpoints import STARTS_FILE
from training.config import parse_config
from training.data.material import SAMPLE_RATE, Material
from training.data.scenes import CONDITIONS, SECONDS

TEMPLATES = Path(__file__).parents[2] / "model_card"
WATTS_PER_CORE = 10  # of a server CPU under load, memory and cooling included: a guess, and the card says so
RECORD = "training.json"
ADDED = ("steps", "hours", "scenes", "hours_heard")  # of a run that goes on from the weights of another


def components(folder: Path) -> list[dict[str, Any]]:
    """Lists name, class, number of parameters, bytes and types of the parts in a pipeline's folder."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    found = []
    for name, value in index.items():
        files = [file for file in sorted((folder / name).glob("*.safetensors")) if ".fp16" not in file.name]
        if not (isinstance(value, list) and files):
            continue
        tensors = [tensor for file in files for tensor in load_file(file).values()]
        part = {"name": name, "kind": value[1], "parameters": sum(tensor.numel() for tensor in tensors)}
        part["bytes"] = sum(file.stat().st_size for file in files)
        part["dtypes"] = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))
        found.append(part)
    return found


def run_record(run: Path, material: Path) -> dict[str, Any]:
    """Records what the folder of a run and the material say of how weights came about.

    Raises:
        ValueError: If one of them is no such folder.
    """
    try:
        config = parse_config(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")), source=str(run))
        history = [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]
        starts = [json.loads(line) for line in (run / STARTS_FILE).read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise ValueError(f"{run} is not the folder of a training run: {error}") from error
    steps = max((row["step"] for row in history), default=0)
    scenes = steps * config.train.batch_size * config.train.gradient_accumulation_steps * starts[-1]["processes"]
    opened = Material.open(material)
    return {
        "experiment": config.experiment,
        "seed": config.seed,
        "steps": steps,
        "hours": round(max((row["seconds"] for row in history), default=0.0) / 3600, 2),
        "scenes": scenes,
        "hours_heard": round(scenes * SECONDS / 3600, 1),
        "conditions": CONDITIONS,
        "machine": starts[-1]["machine"],
        "versions": starts[-1]["versions"],
        "sources": sources(opened),
        "rooms": {"files": len(opened.rooms), "spaces": len({room.space for room in opened.rooms})},
    }


def sources(material: Material) -> list[dict[str, Any]]:
    """Lists what was trained on by kind, collection and licence, with its number of files and hours."""
    hours: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for sound in material.sounds:
        collection = sound.group if sound.kind == "music" else sound.origin.split(":")[0].removeprefix("github")
        collection = collection or ":".join(sound.origin.split(":")[1:2])
        hours[sound.kind, collection, sound.licence].append(sound.samples / SAMPLE_RATE / 3600)
    return [
        dict(zip(("kind", "collection", "licence"), key, strict=True), files=len(each), hours=round(sum(each), 2))
        for key, each in sorted(hours.items())
    ]


def render_card(weights: Path, record: Mapping[str, Any] | None, report: str | None) -> str:
    """Renders the card of a pipeline's folder; what is not recorded or measured is called so."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), trim_blocks=True, lstrip_blocks=True)
    index = json.loads((weights / "model_index.json").read_text(encoding="utf-8"))
    encoder = json.loads((weights / "condition_encoder" / "config.json").read_text(encoding="utf-8"))
    text = environment.get_template("card.md.j2").render(
        components=components(weights),
        pipeline=index,
        chunk_s=4 * encoder["max_length"] * index["hop_length"] / index["sample_rate"],
        record=record,
        licences=sorted({source["licence"] for source in record["sources"]}) if record else [],
        kwh=record and record["hours"] * (record["machine"].get("cores") or 1) * WATTS_PER_CORE / 1000,
        watts=WATTS_PER_CORE,
        report=report and report.split("\n", 2)[2],
    )
    data = ModelCardData(
        license="other",
        license_name="research",
        license_link="https://huggingface.co/org/aud2studio/blob/main/README.md#sources-and-licences",
        library_name="diffusers",
        pipeline_tag="audio-to-audio",
        tags=["audio", "music", "restoration", "dereverberation", "denoising", "diffusers:Aud2StudioPipeline"],
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the card, see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=shipped_weights(), metavar="DIR")
    parser.add_argument("--run", type=Path, metavar="DIR", help="folder of the training run")
    parser.add_argument("--continued", action="store_true", help="it began with the weights whose record is there")
    parser.add_argument("--material", type=Path, default=Path("data/material"), metavar="DIR")
    parser.add_argument("--report", type=Path, metavar="MD", help="of training.evaluation.benchmark, on the test set")
    options = parser.parse_args(arguments)
    try:
        path = options.weights / RECORD
        if options.run:
            added = run_record(options.run, options.material)
            if options.continued:
                before = json.loads(path.read_text(encoding="utf-8"))
                added |= {name: round(added[name] + before[name], 2) for name in ADDED}
            path.write_text(json.dumps(added, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        report = options.report.read_text(encoding="utf-8") if options.report else None
        card = render_card(options.weights, record, report)
    except (OSError, ValueError) as error:
        print(f"card: {error}", file=sys.stderr)
        return 1
    (options.weights / "README.md").write_text(card, encoding="utf-8")
    print(options.weights / "README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
