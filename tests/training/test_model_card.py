"""The card against figures made by hand; every number in it comes from one of the files."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from pipeline_aud2studio import Aud2StudioPipeline
from training.model_card import build_card, components, energy, main


def figure(mean: float) -> dict[str, float]:
    return {"mean": mean, "median": mean + 0.25, "low": mean - 1, "high": mean + 1}


def summary() -> dict[str, object]:
    def system(improvement: float, factor: float) -> dict[str, object]:
        figures = {
            "si_sdr_improvement": figure(improvement),
            "lsd": figure(5.5),
            "real_time_factor": figure(factor),
            "cpu_factor": figure(factor),
        }
        groups = dict.fromkeys(("all", "crowd", "room", "room_crowd", "phone"), figures)
        return {"figures": groups, "genres": {"metal": figures}, "venues": {"Old Hall": figures}, "failed": 0}

    return {
        "manifest": "hand.jsonl",
        "clips": 12,
        "threads": 1,
        "cores": 2,
        "systems": {"input": system(0.0, 0.0), "faithful": system(2.345, 0.125)},
        "frechet": {},
    }


def record() -> dict[str, object]:
    run = {
        "experiment": "hand",
        "seed": 3,
        "steps": 1234,
        "seconds": 5400.0,
        "examples": 9872,
        "hours_seen": 5.6,
        "machine": {"cpu": "Abacus", "cores": 4, "memory_gb": 8.0, "gpu": None, "system": "Linux"},
        "versions": {"torch": "2.9"},
        "config": {
            "train": {
                "optimizer": "muon",
                "lr": 0.002,
                "lr_schedule": "cosine",
                "lr_decay_steps": 600,
                "batch_size": 4,
                "ema_decay": 0.999,
            },
            "audio": {"clip_seconds": 2.0},
            "loss": {"diffusion": 0.5, "si_sdr": 0.1},
        },
    }
    source = {
        "kind": "music",
        "name": "songs",
        "licence": "GPL-2",
        "split": "train",
        "items": 7,
        "hours": 1.25,
        "pairs": 9,
    }
    return {
        "format": 1,
        "runs": [run],
        "pairs": {
            "count": 9,
            "hours": 0.5,
            "tracks": 7,
            "with_several_takes": 2,
            "stereo": 3,
            "conditions": {"crowd": 5, "room_crowd": 4},
        },
        "sources": [source, {**source, "name": "free", "licence": "CC0-1.0", "pairs": 0}],
        "test_venues_heard": [],
        "datasets": [],
    }


def test_components_are_counted(toy_pipeline: Aud2StudioPipeline, toy_model: Path) -> None:
    found = {part["name"]: part for part in components(toy_model)}
    for name in ("unet", "vocoder", "condition_encoder"):
        assert found[name]["parameters"] == sum(t.numel() for t in getattr(toy_pipeline, name).state_dict().values())
        assert found[name]["dtypes"] == "float32"
    assert found["unet"]["kind"] == "UNet2DConditionModel"


def test_a_card_with_everything(toy_model: Path) -> None:
    card = build_card(toy_model, summary(), record(), "toy", "A note.")
    text = card.content
    for words in (
        "| faithful | 2.35 [1.35, 3.35] |",
        "seed 3, 1234 steps, 1.5 h, 9872 examples, 5.6 h of audio heard",
        "Abacus, 4 cores, 8 GB, no GPU; torch 2.9",
        "muon, learning rate 0.002 (cosine, 600 steps of decay)",
        "| music | songs | train | GPL-2 | 7 | 1.25 | 9 |",
        "9 of 7 tracks, 0.5 h: 5 crowd, 4 room and crowd; 2 with several takes, 3 in stereo",
        "the strictest here are\nGPL-2, and",
        "| faithful | 0.375 | 0.375 | - |",
        "about 0.06 kWh",
        "SI-SDR improvement by genre, dB",
        "A note.",
    ):
        assert words in text, words
    assert energy(record())["kwh"] == pytest.approx(1.5 * 4 * 10 / 1000)
    results = {(result.dataset_config, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert results["room", "si_sdr_improvement"] == 2.345
    assert len(results) == 10  # five groups, two figures
    # What the Hub reads is what was meant.
    again = ModelCard(str(card))
    assert again.data.pipeline_tag == "audio-to-audio" and again.data.library_name == "diffusers"
    assert len(again.data.eval_results) == 10


def test_what_is_not_there_is_said_to_be_missing(toy_model: Path) -> None:
    text = build_card(toy_model, None, None, "toy", "").content
    assert text.count("Not measured.") == 2 and text.count("Not recorded.") == 2
    heard = {**record(), "test_venues_heard": ["warehouse"]}
    assert "NO: venues of the benchmark are among the training rooms: warehouse" in str(
        build_card(toy_model, None, heard, "toy", "")
    )


def test_command_writes_beside_the_weights(toy_pipeline: Aud2StudioPipeline, tmp_path: Path, capsys) -> None:
    toy_pipeline.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "training.json").write_text(json.dumps(record()))
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    weights = ["--weights", str(tmp_path / "model")]
    assert main([*weights, "--summary", str(tmp_path / "summary.json")]) == 0
    assert "| faithful | 2.35 [1.35, 3.35] |" in (tmp_path / "model" / "README.md").read_text()
    assert main(["--weights", str(tmp_path / "nothing.pt")]) == 1
    assert "is not a pipeline's folder" in capsys.readouterr().err


def test_several_recordings(toy_model: Path, tmp_path: Path) -> None:
    figures = {f"{key}_over_{single}": figure(1.0) for key in ("si_sdr", "lsd") for single in ("best", "average")}
    ours = {**figures, "si_sdr_over_best": figure(-3.21), "median_over_best": -1.5}
    methods = {"best alone": figures, "ours": ours}
    groups = {"all": {"performances": 5, "numbers": {"1": methods, "2": methods}}}
    measured = {"manifest": "hand.jsonl", "performances": 5, "groups": groups}
    (tmp_path / "summary.json").write_text(json.dumps(measured))
    (tmp_path / "recordings.png").write_bytes(b"a plot")
    model = tmp_path / "model"
    shutil.copytree(toy_model, model)
    assert main(["--weights", str(model), "--fusion", str(tmp_path)]) == 0
    text = (model / "README.md").read_text()
    rows = [line for line in text.splitlines() if "| ours |" in line]
    assert rows == ["| 2 | ours | +1.00 [+0.00, +2.00] | -3.21 [-4.21, -2.21], median -1.50 | +1.00 [+0.00, +2.00] |"]
    assert "5 performances of the manifest `hand.jsonl`" in text and "| best alone |" not in text
    assert (model / "figures" / "recordings.png").read_bytes() == b"a plot"
    assert "Several recordings of one" not in build_card(toy_model, None, None, "toy", "").content
