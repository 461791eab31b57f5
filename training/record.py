"""The training record: how weights came about, as JSON beside them, for whoever asks and for the model card.

    python -m training.record --run runs/first runs/second --vocoder-run runs/vocoder --data data \\
        --pairs data/train.jsonl --out runs/second/best-4000/training.json

Several runs are those that `--init_from` chains; a run that was stopped and resumed is one. `--before training.json`,
the record beside the weights that the first run began with, stands for runs of which only the weights are left.
Nothing is typed: figures come from the runs' folders, the manifests and the indexes of the data; what they do not say
is null. Paths lose their folders, which name people and their disks.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

import psutil
import torch
import yaml

from .config import TrainingConfig, parse_config
from .jsonl import read_rows
from .report import write_json

Row = Mapping[str, Any]
FORMAT = 1
STARTS_FILE = "starts.jsonl"
PACKAGES = ("torch", "diffusers", "transformers", "numpy")
SYNTHETIC_KINDS = ("simulated", "generated")


def machine() -> dict[str, Any]:
    """What this computer is, as far as it says so."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    return {
        "cpu": cpu,
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
    }


def note_start(run: Path, step: int, command: Sequence[str], threads: int, processes: int) -> None:
    """Appends a row to a run's `starts.jsonl`: when, from which step, by which command and on what it was started."""
    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": " ".join(map(without_folders, command)),
        "processes": processes,
        "threads": threads,
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }
    with open(run / STARTS_FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def without_folders(value: Any) -> Any:
    """Absolute paths shortened to their last part, in texts (also behind a `=`), lists and mappings."""
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if not isinstance(value, str):
        return value
    key, separator, path = value.rpartition("=")
    return f"{key}{separator}{PurePath(path).name}" if PurePath(path).is_absolute() else value


def run_record(run: Path) -> dict[str, Any]:
    """What the folder of a run of `training/train.py` says about it.

    Raises:
        ValueError: If it is not such a folder.
    """
    try:
        config = parse_config(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")), source=str(run))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{run} is not the folder of a training run: {error}") from error
    rows = _json_rows(run / "history.jsonl")
    starts = _starts(run)
    processes = starts[-1]["processes"] if starts else 1
    steps = max((row["step"] for row in rows), default=0)
    examples = steps * config.train.batch_size * config.train.gradient_accumulation_steps * processes
    return {
        "experiment": config.experiment,
        "seed": config.seed,
        "steps": steps,
        "seconds": max((row["seconds"] for row in rows), default=0.0),
        "examples": examples,
        "hours_seen": round(examples * config.clip_samples / config.audio.sample_rate / 3600, 2),
        "validation": _best(rows),
        "commands": [start["command"] for start in starts],
        "machine": starts[-1]["machine"] if starts else None,
        "versions": starts[-1]["versions"] if starts else None,
        "threads": starts[-1]["threads"] if starts else config.train.cpu_threads,
        "config": without_folders(config.model_dump(mode="json")),
    }


def _starts(run: Path) -> list[dict[str, Any]]:
    return _json_rows(run / STARTS_FILE)


def _json_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file that is appended to; the last one may be torn, where the process was killed."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _best(rows: Sequence[Row]) -> dict[str, float] | None:
    """The validation whose weights a run keeps, by the same figure."""
    scored = [row for row in rows if "validation/si_sdr_change" in row]
    if not scored:
        return None
    best = max(scored, key=lambda row: float(row["validation/si_sdr_change"]))
    return {"step": best["step"]} | {
        key.removeprefix("validation/"): round(value, 3)
        for key, value in best.items()
        if key.startswith("validation/")
    }


def vocoder_record(run: Path) -> dict[str, Any]:
    """What the folder of a run of `training/train_vocoder.py` says about it."""
    rows = _json_rows(run / "history.jsonl")
    if not rows:
        raise ValueError(f"{run} has no history.jsonl: it is not the folder of a training run")
    best: dict[str, float] = {}
    for name in ("log_mel_l1", "mr_stft"):
        for prefix in ("validation", "griffin_lim"):
            values = [row[f"{prefix}/{name}"] for row in rows if f"{prefix}/{name}" in row]
            if values:
                best[f"{prefix}_{name}"] = round(min(values), 3)
    return {
        "steps": max(row["step"] for row in rows),
        "seconds": max(row.get("seconds", 0.0) for row in rows),
        **best,
    }


def pairs_record(paths: Sequence[Path]) -> dict[str, Any]:
    """Number, hours and conditions of the pairs in manifests."""
    conditions: dict[str, int] = defaultdict(int)
    seconds, music, count, several, stereo = 0.0, set(), 0, 0, 0
    for path in paths:
        for row in read_rows(path):
            count += 1
            seconds += row["seconds"]
            conditions[row["condition"]] += 1
            several += row["num_takes"] > 1
            stereo += row["channels"] == 2
            music.add(row.get("music_path") or row.get("clean"))
    return {
        "count": count,
        "hours": round(seconds / 3600, 2),
        "tracks": len(music),
        "with_several_takes": several,
        "stereo": stereo,
        "conditions": dict(sorted(conditions.items())),
    }


def sources_record(data: Path, pairs: Sequence[Path]) -> list[dict[str, Any]]:
    """A row per source of music, rooms and crowds: licence, split, number of items, hours, and how many pairs use it.

    Args:
        data: Folder with `clean`, `rirs` and `noise` and their indexes.
        pairs: Manifests of the training pairs.
    """
    music = read_rows(data / "clean" / "inventory.jsonl")
    rirs = read_rows(data / "rirs" / "index.jsonl")
    noise = read_rows(data / "noise" / "index.jsonl")
    groups: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
    of_path: dict[str, tuple[str, str, str, str]] = {}
    for kind, rows in (("music", music), ("room", rirs), ("crowd", noise)):
        for row in rows:
            name, licence = _origin(kind, row)
            groups[kind, name, licence, row["split"]].append(row)
            of_path[f"{kind}:{row['path']}"] = (kind, name, licence, row["split"])
    used: dict[tuple[str, str, str, str], int] = defaultdict(int)
    for path in pairs:
        for row in read_rows(path):
            paths = {f"music:{row.get('music_path')}", f"room:{row.get('rir_path')}"}
            paths |= {f"crowd:{bed}" for bed in row.get("bed_path", [])}
            for group in {of_path[found] for found in paths if found in of_path}:
                used[group] += 1
    return [
        {
            "kind": kind,
            "name": name,
            "licence": licence,
            "split": split,
            "items": len(rows),
            "hours": round(sum(row["seconds"] for row in rows) / 3600, 3),
            "pairs": used[kind, name, licence, split],
        }
        for (kind, name, licence, split), rows in sorted(groups.items())
    ]


def _origin(kind: str, row: Row) -> tuple[str, str]:
    """What a source is called, and its licence."""
    if kind == "music":
        return row["package"], row["licence"]
    if kind == "room" and row["kind"] in SYNTHETIC_KINDS:
        return f"{row['kind']} rooms (training/venues.py)", row["licence"]
    if row["origin"].startswith("training/"):
        return f"synthetic ({row['origin'].split(',')[0]})", row["licence"]
    if kind == "room":
        return row["venue"], row["licence"]
    return row["origin"].split(":")[0], row["licence"]


def heard_test_venues(data: Path, benchmark: Path) -> list[str]:
    """Venues of the benchmark that are training rooms: by the name of simulated ones, by spelling of measured ones.

    A measured venue also counts where its name is a part of another one's, as of files named after their hall.
    """
    held_out = {row["venue"] for row in read_rows(benchmark)}
    trained = {row["venue"] for row in read_rows(data / "rirs" / "index.jsonl") if row["split"] == "train"}
    measured = {name for name in held_out if not name.startswith(SYNTHETIC_KINDS)}
    spelled = {name for name in measured if any(_letters(name) in _letters(other) for other in trained)}
    return sorted(spelled | (held_out & trained))


def _letters(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def training_record(
    runs: Sequence[Path],
    vocoder_run: Path | None,
    data: Path,
    pairs: Sequence[Path],
    benchmark: Path,
) -> dict[str, Any]:
    """The whole record; see the module's text for the arguments."""
    of_runs = [run_record(run) for run in runs]
    return {
        "format": FORMAT,
        "runs": of_runs,
        "vocoder": None if vocoder_run is None else vocoder_record(vocoder_run),
        "pairs": pairs_record(pairs) if pairs else None,
        "sources": sources_record(data, pairs),
        "test_venues_heard": heard_test_venues(data, benchmark),
        "datasets": sorted({name for run in runs if (name := _dataset(_config(run)))}),
    }


def continued(record: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The record of weights that went through all of `before` first.

    Pairs and their sources add up; of distinct tracks and items only the larger number is known to be right. A vocoder
    that was not trained anew is that of before.
    """
    whole = {**record, "runs": [*before["runs"], *record["runs"]], "vocoder": record["vocoder"] or before["vocoder"]}
    pairs = [part["pairs"] for part in (before, record) if part["pairs"]]
    if pairs:
        names = sorted({name for part in pairs for name in part["conditions"]})
        sums = {key: sum(part[key] for part in pairs) for key in ("count", "hours", "with_several_takes", "stereo")}
        whole["pairs"] = {
            **sums,
            "hours": round(sums["hours"], 2),
            "tracks": max(part["tracks"] for part in pairs),
            "conditions": {name: sum(part["conditions"].get(name, 0) for part in pairs) for name in names},
        }
    sources = {_source_key(source): dict(source) for source in record["sources"]}
    for source in before["sources"]:
        known = sources.setdefault(_source_key(source), {**source, "pairs": 0})
        known["pairs"] += source["pairs"]
        known["items"], known["hours"] = (max(known[name], source[name]) for name in ("items", "hours"))
    whole["sources"] = [sources[key] for key in sorted(sources)]
    for name in ("test_venues_heard", "datasets"):
        whole[name] = sorted({*record[name], *before[name]})
    return whole


def _source_key(source: Row) -> tuple[str, ...]:
    return tuple(source[name] for name in ("kind", "name", "licence", "split"))


def _config(run: Path) -> TrainingConfig:
    return parse_config(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")), source=str(run))


def _dataset(config: TrainingConfig) -> str | None:
    """The Hub's name of the dataset that a run streamed its pairs from."""
    scheme, _, rest = str(config.data.pairs_manifest).partition("://datasets/")
    return "/".join(rest.split("@")[0].split("/")[:2]) if scheme == "hf" and not config.data.memmap_dir else None


def read_record(path: Path) -> dict[str, Any]:
    """A record from a file.

    Raises:
        ValueError: If it is not one of this format.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a readable training record: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{path} is not a training record of format {FORMAT}: write it with `training.record`")
    return record


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.record", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="run folders in the order of --init_from")
    parser.add_argument("--vocoder-run", type=Path, metavar="DIR", help="folder of the vocoder's run")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with clean, rirs and noise")
    parser.add_argument("--pairs", type=Path, nargs="*", default=[], help="manifests of the training pairs")
    parser.add_argument("--benchmark", type=Path, default=Path(__file__).parent / "benchmark" / "test.jsonl")
    parser.add_argument("--before", type=Path, metavar="JSON", help="record of the weights the first run began with")
    parser.add_argument("--here", action="store_true", help="the runs took place on this machine, if they do not say")
    parser.add_argument("--out", type=Path, required=True, help="training.json beside the weights")
    options = parser.parse_args(argv)
    try:
        record = training_record(
            options.run,
            options.vocoder_run,
            options.data,
            options.pairs,
            options.benchmark,
        )
        if options.here:
            for run in record["runs"]:
                run["machine"] = run["machine"] or machine()
        if options.before is not None:
            record = continued(record, read_record(options.before))
        write_json(options.out, record)
    except (ValueError, OSError, KeyError) as error:
        print(f"record: {error}", file=sys.stderr)
        return 1
    if record["test_venues_heard"]:
        print(f"record: venues of the benchmark are among the training rooms: {record['test_venues_heard']}")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
