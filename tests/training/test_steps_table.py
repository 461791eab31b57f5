"""Quality against steps: the mel that is judged is the one that the vocoder gets, and what is measured stays."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_aud2studio import Aud2StudioPipeline
from training.make_synth_pairs import main as make_synth_pairs
from training.steps_table import INPUT, SEED, chunks, log_mel, main, measure_clip, restored_log_mel, table

RATE = 44_100
CHUNK = 128 * 256  # samples of the toy pipeline's chunk


def noise(seed: int, samples: int = CHUNK, channels: int = 2) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal((channels, samples))).astype(np.float32)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_the_mel_is_the_vocoders(toy_pipeline: Aud2StudioPipeline, strength: float) -> None:
    seen: list[torch.Tensor] = []
    handle = toy_pipeline.vocoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    generator = torch.Generator().manual_seed(SEED)
    try:
        toy_pipeline(noise(0), RATE, 2, "vocoder", generator=generator, strength=strength)
    finally:
        handle.remove()
    mel, seconds = restored_log_mel(toy_pipeline, noise(0), 2, strength)
    assert mel.shape == (2, 128, 128) and seconds > 0
    torch.testing.assert_close(mel, torch.cat(seen), atol=1e-4, rtol=1e-4)  # one channel after the other


def test_error_of_the_input_is_the_distance_of_the_levelled_mels(toy_pipeline: Aud2StudioPipeline) -> None:
    """Twice as loud is the same; with a third of the noise's power in other noise it is not."""
    clean = noise(1, 2 * CHUNK + 500)
    assert [pair[0].shape for pair in chunks(toy_pipeline, clean, clean)] == [(2, CHUNK)] * 2
    silent = np.zeros_like(clean)
    assert chunks(toy_pipeline, silent, clean) == []
    pipelines = {"dpm++": toy_pipeline}
    assert measure_clip(pipelines, 2 * clean, clean, (), 1.0)[INPUT][0] == pytest.approx(0.0, abs=1e-5)
    noisy = clean + 0.5 * noise(2, clean.shape[1])
    figures = measure_clip(pipelines, noisy, clean, (1,), 1.0)
    errors = []
    for start in (0, CHUNK):
        parts = [each[:, start : start + CHUNK] for each in (noisy, clean)]
        mels = [log_mel(toy_pipeline, 0.05 * part / np.sqrt(np.square(part).mean())) for part in parts]
        errors.append(float((mels[0] - mels[1]).abs().mean()))
    assert figures[INPUT][0] == pytest.approx(np.mean(errors), rel=1e-4)
    assert figures.keys() == {INPUT, "dpm++-1"} and figures["dpm++-1"][0] > 0 and figures["dpm++-1"][1] > 0


def test_the_table_has_means_and_intervals() -> None:
    clips = [{INPUT: [1.0, 0.0], "ddim-2": [error, took]} for error, took in ((0.4, 0.1), (0.6, 0.3))]
    lines = table(clips, (2,), ("ddim",)).splitlines()
    assert "2 clips" in lines[0] and "1.000" in lines[0]
    assert lines[2:] == ["| steps | ddim |", "| --- | --- |", "| 2 | 0.500 [0.400, 0.600], 0.200 s/s |"]


def test_from_a_manifest_to_the_table_and_on(
    corpus, toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, out = tmp_path / "validation.jsonl", tmp_path / "steps"
    options = {
        "--clean": corpus.clean_music_dir, "--rirs": corpus.rir_dir, "--noise": corpus.noise_dir, "--count": 1,
        "--split": "validation", "--seconds": 0.8, "--min-bandwidth-hz": 0, "--sample-rate": RATE, "--out": manifest,
    }  # fmt: skip
    assert make_synth_pairs([str(part) for option in options.items() for part in option]) == 0
    data = tmp_path / "data"
    data.mkdir()
    for name, folder in (("clean", corpus.clean_music_dir), ("rirs", corpus.rir_dir), ("noise", corpus.noise_dir)):
        (data / name).symlink_to(Path(folder).absolute())
    words = ["--manifest", str(manifest), "--data", str(data), "--out", str(out), "--model", str(toy_model)]
    words += ["--schedulers", "ddim", "unipc", "--steps", "1", "2"]
    capsys.readouterr()
    assert main(words) == 0
    first = capsys.readouterr().out
    assert first.count("s/s") == 4 and (out / "table.md").read_text() == first
    results = next(out.glob("*.json"))
    content = json.loads(results.read_text())
    content["figures"]["ddim-1"][0] = 9.0  # what is there is taken, and not measured again
    results.write_text(json.dumps(content))
    assert main(words) == 0
    assert "9.000" in capsys.readouterr().out
    assert main([*words, "--strength", "0.5"]) == 0, "of other settings it is"
    assert "9.000" not in capsys.readouterr().out
    assert main([*words, "--strength", "0.1"]) == 1
    assert "leaves no step" in capsys.readouterr().err
