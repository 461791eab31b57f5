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
from typing import Annotated, Any

import yaml
from pydantic import Field, model_validator

from .config import ConfigError, NonNegativeInt, PositiveInt, Section, load_config, parse_as, read_values

PIPELINE = "pipeline"


class DataRecipe(Section):
    """How much of what is prepared, once for all runs."""

    generated_venues: NonNegativeInt
    simulated_venues: NonNegativeInt
    beds: PositiveInt  # of crowd and noise
    seed: NonNegativeInt


class PairsRecipe(Section):
    """Options of :mod:`training.make_synth_pairs`."""

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


class Recipe(Section):
    config: Path  # of the model, beside the recipe
    data: DataRecipe
    pairs: dict[str, PairsRecipe]
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if unknown := sorted({name for stage in self.stages for name in stage.pairs} - set(self.pairs)):
            raise ValueError(f"stages ask for the pairs {unknown}, which are not described")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages share a name: {names}")
        rows = sorted((pairs.first_row, pairs.first_row + pairs.count, name) for name, pairs in self.pairs.items())
        for (_, end, name), (start, _, other) in zip(rows, rows[1:], strict=False):
            if start < end:
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


def pairs_commands(recipe: Recipe, stage: Stage, data: Path, out: Path) -> Iterator[list[str]]:
    """What draws and renders the pairs of a run, all into one folder."""
    for name in stage.pairs:
        command = ["training.make_synth_pairs", "--split", "train", "--out", f"{out / name}.jsonl"]
        command += ["--memmap", f"{out / stage.name}"]
        for key in ("clean", "rirs", "noise"):
            command += [f"--{key}", f"{data / key}"]
        for key, value in recipe.pairs[name].model_dump().items():
            command += [f"--{key.replace('_', '-')}", f"{value}"]
        yield command


def train_command(
    recipe: Path, stage: Stage, model: Path, data: Path, pairs: Path, out: Path, before: Path | None
) -> list[str]:
    """The run itself, which goes on from its last checkpoint, or from the weights of the run before."""
    command = ["training.train", "--config", f"{recipe.parent / model}", "--output_dir", f"{out}"]
    command += ["--resume_from_checkpoint", "latest", "--report_to", "none"]
    command += ["--init_from", f"{before}"] if before else []
    folders = {"clean_music_dir": "clean", "rir_dir": "rirs", "noise_dir": "noise"}
    values = [*settings(stage), f"data.memmap_dir={pairs / stage.name}"]
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
    before: Path | None = None
    for stage in recipe.stages:
        folder = out / stage.name
        if not (folder / PIPELINE).is_dir():
            for command in pairs_commands(recipe, stage, data, out / "pairs"):
                run(command)
            run(train_command(path, stage, recipe.config, data, out / "pairs", folder, before))
        if not (folder / PIPELINE).is_dir():  # asked to stop, which is no failure
            raise KeyboardInterrupt
        before = folder / PIPELINE
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
