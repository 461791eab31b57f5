"""A recipe in miniature, followed as users follow it."""

import json
from pathlib import Path

import pytest
import yaml
from diffusers import UNet2DConditionModel

from training import reproduce
from training.config import ConfigError

SHIPPED = Path(__file__).parents[2] / "training" / "configs" / "shipped.yaml"
MODEL = {
    "audio": {"clip_seconds": 0.2},
    "mel": {"n_mels": 32},
    "model": {
        "block_out_channels": [8, 16],
        "attention_resolutions": [4],
        "attention_head_dim": 8,
        "norm_num_groups": 4,
        "conditioning_dim": 16,
        "conditioning_layers": 1,
        "conditioning_heads": 2,
        "overlap_frames": 8,
        "layers_per_block": 2,
    },
    "train": {"batch_size": 2, "cpu_threads": 1, "lr_warmup_steps": 0},
}
PAIRS = {
    "count": 2,
    "seconds": 0.8,
    "conditions": "crowd:1,room:1",
    "stereo_probability": 0.0,
    "rir_kinds": "simulated:1",
    "seed": 3,
    "min_bandwidth_hz": 0.0,
}
RECIPE = {
    "config": "toy.yaml",
    "data": {"generated_venues": 0, "simulated_venues": 0, "beds": 1, "seed": 0},
    "pairs": {
        "one": {**PAIRS, "first_row": 0, "takes": "1:1"},
        "two": {**PAIRS, "first_row": 2, "takes": "2:1"},
        "held out": {**PAIRS, "first_row": 0, "takes": "1:1", "split": "validation"},
    },
    "validation": "held out",
    "stages": [
        {"name": "shallow", "pairs": ["one"], "set": {"model.layers_per_block": 1, "train.max_train_steps": 2}},
        # So slow that the weights show where they come from.
        {"name": "deep", "share": 0.5, "pairs": ["two"], "set": {"train.max_train_steps": 3, "train.lr": 1e-8}},
    ],
}


def written(folder: Path, recipe: dict) -> Path:
    (folder / "toy.yaml").write_text(yaml.safe_dump(MODEL))
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def follow(path: Path, out: Path, corpus) -> int:
    assert corpus.clean_music_dir.parent == corpus.rir_dir.parent == corpus.noise_dir.parent
    return reproduce.main(["--config", str(path), "--out", str(out), "--data", str(corpus.clean_music_dir.parent)])


def test_runs_follow_one_another_and_are_not_repeated(corpus, tmp_path, capfd):
    path, out = written(tmp_path, RECIPE), tmp_path / "out"
    assert follow(path, out, corpus) == 0
    assert capfd.readouterr().out.splitlines()[-1] == str(out / "deep" / "averaged")
    assert [path.name for path in (out / "pairs" / "deep").glob("shard-*.json")] == ["shard-00000002.json"]
    starts = {name: json.loads((out / name / "starts.jsonl").read_text()) for name in ("shallow", "deep")}
    assert "--init_from" not in starts["shallow"]["command"]
    assert "--init_from" in starts["deep"]["command"]
    history = [json.loads(line) for line in (out / "deep" / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history if "validation/si_sdr" in row] == [3]
    shallow, deep = (
        UNet2DConditionModel.from_pretrained(out / name / "pipeline" / "unet") for name in ("shallow", "deep")
    )
    assert (shallow.config["layers_per_block"], deep.config["layers_per_block"]) == (1, 2)
    first, second = (model.state_dict()["conv_in.weight"] for model in (shallow, deep))
    assert first.std() > 1e-3
    assert (first - second).abs().max() < 1e-3

    times = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    assert follow(path, out, corpus) == 0
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()} == times


def test_a_step_that_fails_is_named(corpus, tmp_path, capfd):
    bad = {
        **RECIPE,
        "validation": None,
        "pairs": {**RECIPE["pairs"], "one": {**PAIRS, "first_row": 0, "takes": "4:1", "seconds": 60.0}},
    }
    assert follow(written(tmp_path, bad), tmp_path / "out", corpus) == 1
    assert "training.make_synth_pairs failed" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": [{"name": "a", "pairs": ["three"], "set": {}}]}, "three"),
        ({"stages": [{"name": "a", "pairs": ["one"], "set": {"train.speed": 9}}]}, "speed"),
        ({"stages": [{"name": "a", "pairs": [], "set": {}}] * 2}, "share a name"),
        ({"stages": []}, "stages"),
        ({"validation": "four"}, "four"),
        ({"pairs": {**RECIPE["pairs"], "two": {**PAIRS, "first_row": 1, "takes": "2:1"}}}, "share rows"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_bad_recipes_are_refused_before_anything_starts(change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        reproduce.load_recipe(written(tmp_path, {**RECIPE, **change}))


def test_the_shipped_recipe_ends_in_the_shipped_architecture():
    recipe = reproduce.load_recipe(SHIPPED)
    assert {name for stage in recipe.stages for name in stage.pairs} | {"validation"} == set(recipe.pairs)
    commands = list(reproduce.data_commands(recipe, Path("d"), None, Path("crowds")))
    assert [command[0] for command in commands] == ["training.corpora", "training.prepare_rirs", "training.crowd"]
    assert "--measured" not in commands[1]
    assert commands[2][-2:] == ["--measured", "crowds"]
