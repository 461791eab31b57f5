"""The shipped weights from nothing, in one command: data, every run of the training, and the pipeline at the end.

    python -m training.reproduce --config training/configs/shipped.yaml --out runs/shipped \\
        --measured-rirs FOLDER --measured-crowd FOLDER

The recipe names what each run is trained on and what differs from the model's own configuration. Every step is a
command that goes on where it was stopped; so does this one. A run that has ended is not started again.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from .average import average
from .config import ConfigError, NonNegativeInt, PositiveInt, Section, load_config, parse_as, read_values

PIPELINE, AVERAGED = "pipeline", "averaged"  # folders of a run
PAIRS = "pairs"  # folder below `--out`


class DataRecipe(Section):
    """How much of what is prepared, once for all runs."""

    generated_venues: NonNegativeInt
    simulated_venues: NonNegativeInt
    beds: PositiveInt  # of crowd and noise
    seed: NonNegativeInt


class PairsRecipe(Section):
    """Options of :mod:`training.make_synth_pairs`."""

    split: Literal["train", "validation"] = "train"
    ranges: Literal["train", "benchmark"] = "train"
    first_row: NonNegativeInt
    count: PositiveInt
    seconds: Annotated[float, Field(gt=0)] = 6.0
    conditions: str
    takes: str
    stereo_probability: Annotated[float, Field(ge=0, le=1)]
    rir_kinds: str
    seed: NonNegativeInt
    min_bandwidth_hz: Annotated[float, Field(ge=0)] = 15_000.0


class Stage(Section):
    """One run. It begins with the weights of the one before, the first one with none."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    pairs: tuple[str, ...]  # sets that it is trained on
    set: dict[str, Any]  # `section.key` of the configuration and its value
    share: Annotated[float, Field(gt=0, le=1)] = 1.0  # of its weights in the result, with those it began with


class Recipe(Section):
    config: Path  # of the model, beside the recipe
    data: DataRecipe
    pairs: dict[str, PairsRecipe]
    validation: str | None = None  # name of the pairs that every run is measured on
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        asked = {name for stage in self.stages for name in stage.pairs} | ({self.validation} - {None})
        if unknown := sorted(f"{name}" for name in asked - set(self.pairs)):
            raise ValueError(f"the pairs {unknown} are asked for, but not described")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages share a name: {names}")
        rows = sorted(
            (pairs.split, pairs.first_row, pairs.first_row + pairs.count, name) for name, pairs in self.pairs.items()
        )
        for (split, _, end, name), (other_split, start, _, other) in zip(rows, rows[1:], strict=False):
            if split == other_split and start < end:
                raise ValueError(f"the pairs {name} and {other} share rows")
        return self


def load_recipe(path: Path) -> Recipe:
    """Reads and checks a recipe, and the configuration of each of its runs.

    Raises:
        ConfigError: a key is unknown or a value bad, here or in a run's configuration.
    """
    recipe = parse_as(Recipe, read_values(path), str(path))
    for stage in recipe.stages:
        load_config(path.parent / recipe.config, settings(stage))
    return recipe


def settings(stage: Stage) -> list[str]:
    """What differs from the configuration, as texts for `--set`."""
    return [
        f"{key}={yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}" for key, value in stage.set.items()
    ]


def data_commands(
    recipe: Recipe, out: Path, measured_rirs: Path | None, measured_crowd: Path | None
) -> Iterator[list[str]]:
    """What prepares clean music, rooms and noise."""
    data, seed = recipe.data, str(recipe.data.seed)
    yield ["training.corpora", "--out", f"{out / 'clean'}"]
    rirs = ["training.prepare_rirs", "--out", f"{out / 'rirs'}", "--seed", seed]
    rirs += ["--generate", f"{data.generated_venues}", "--simulate", f"{data.simulated_venues}"]
    yield [*rirs, *(["--measured", f"{measured_rirs}"] if measured_rirs else [])]
    crowd = ["training.crowd", "--out", f"{out / 'noise'}", "--count", f"{data.beds}", "--seed", seed]
    yield [*crowd, *(["--measured", f"{measured_crowd}"] if measured_crowd else [])]


def pairs_command(name: str, pairs: PairsRecipe, data: Path, folder: Path) -> list[str]:
    """What draws pairs and renders them into a folder, beside which their manifest lies."""
    command = ["training.make_synth_pairs", "--out", f"{folder.parent / name}.jsonl", "--memmap", f"{folder}"]
    for key in ("clean", "rirs", "noise"):
        command += [f"--{key}", f"{data / key}"]
    for key, value in pairs.model_dump().items():
        command += [f"--{key.replace('_', '-')}", f"{value}"]
    return command


def train_command(path: Path, recipe: Recipe, stage: Stage, data: Path, out: Path, before: Path | None) -> list[str]:
    """The run itself, which goes on from its last checkpoint, or from the weights of the run before."""
    command = ["training.train", "--config", f"{path.parent / recipe.config}", "--output_dir", f"{out / stage.name}"]
    command += ["--resume_from_checkpoint", "latest", "--report_to", "none"]
    command += ["--init_from", f"{before}"] if before else []
    folders = {"clean_music_dir": "clean", "rir_dir": "rirs", "noise_dir": "noise"}
    values = [*settings(stage), f"data.memmap_dir={out / PAIRS / stage.name}"]
    values += [f"data.validation_pairs={out / PAIRS / recipe.validation if recipe.validation else 'null'}"]
    values += [f"data.{key}={data / name}" for key, name in folders.items()]
    return [*command, *(part for value in values for part in ("--set", value))]


def run(command: Sequence[str]) -> None:
    """Runs a module; its output goes where ours goes.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    print(f"python -m {shlex.join(command)}", flush=True)
    subprocess.run([sys.executable, "-m", *command], check=True)


def reproduce(
    path: Path, out: Path, measured_rirs: Path | None, measured_crowd: Path | None, data: Path | None
) -> Path:
    """Follows a recipe; returns the folder of the pipeline.

    Raises:
        ConfigError: the recipe is bad.
        subprocess.CalledProcessError: a step failed; what was done is kept.
    """
    recipe = load_recipe(path)
    if data is None:
        data = out / "data"
        for command in data_commands(recipe, data, measured_rirs, measured_crowd):
            run(command)
    if recipe.validation:
        run(pairs_command(recipe.validation, recipe.pairs[recipe.validation], data, out / PAIRS / recipe.validation))
    before: Path | None = None
    for stage in recipe.stages:
        folder = out / stage.name
        if not (folder / PIPELINE).is_dir():
            for name in stage.pairs:
                run(pairs_command(name, recipe.pairs[name], data, out / PAIRS / stage.name))
            run(train_command(path, recipe, stage, data, out, before))
        if not (folder / PIPELINE).is_dir():  # asked to stop, which is no failure
            raise KeyboardInterrupt
        result = folder / PIPELINE
        if before is not None and stage.share < 1:
            result = folder / AVERAGED
            if not result.is_dir():
                average(before, folder / PIPELINE, stage.share, result)
        before = result
    assert before is not None
    return before


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.reproduce", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", type=Path, default=Path("training/configs/shipped.yaml"), help="the recipe")
    parser.add_argument("--out", type=Path, default=Path("runs/shipped"), help="folder of data, runs and pipelines")
    parser.add_argument("--measured-rirs", type=Path, metavar="DIR", help="measured responses, with an index.json")
    parser.add_argument("--measured-crowd", type=Path, metavar="DIR", help="recorded crowds, with an index.json")
    parser.add_argument("--data", type=Path, metavar="DIR", help="clean, rirs and noise that are prepared already")
    options = parser.parse_args(argv)
    if options.data is None and options.measured_rirs is None:
        print("Without --measured-rirs all rooms are simulated or generated.", file=sys.stderr)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        print(reproduce(options.config, options.out, options.measured_rirs, options.measured_crowd, options.data))
    except (ConfigError, OSError) as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"reproduce: {error.cmd[2]} failed; the same command goes on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("reproduce: stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
