"""The benchmark's machinery on short clips of synthetic music: balance, fingerprints, resuming, failures, report."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.numpy import load_file
from scipy import signal

import training.evaluate as evaluation
from pipeline_aud2studio.audio import resample
from training import draw_benchmark, systems
from training.baselines import PEERS
from training.benchmark_audio import compare, describe
from training.compare import read_clips
from training.degrade import CONDITIONS, RenderedPair
from training.evaluate import below_full_scale, evaluate, main, read_manifest, run_clip
from training.frechet import frechet_distance, gaussian, load_reference
from training.jsonl import read_rows, write_rows
from training.late_tail import known_parts
from training.metrics import level_matched, si_sdr
from training.pairs import load_pair
from training.sources import Roots
from training.systems import System, read_folder

SAMPLE_RATE = 44_100
SECONDS = 1.5


def pink(rng: np.random.Generator, seconds: float, channels: int = 2) -> np.ndarray:
    white = rng.standard_normal((channels, round(seconds * SAMPLE_RATE)))
    coloured = signal.lfilter([1.0], [1.0, -0.95], white, axis=-1)
    return (0.1 * coloured / coloured.std()).astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two collections of music, a measured and three simulated venues, four kinds of noise; all of the test split."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    (folder / "clean").mkdir()
    (folder / "rirs").mkdir()
    (folder / "noise").mkdir()
    music = []
    for number in range(4):
        path = f"{number}.flac"
        soundfile.write(folder / "clean" / path, pink(rng, 4.0).T, SAMPLE_RATE)
        music.append(
            {
                "path": path,
                "package": "ab"[number % 2],
                "split": "test",
                "seconds": 4.0,
                "channels": 2,
                "bandwidth_hz": 20_000,
            }
        )
    rooms = []
    for number in range(4):
        response = (
            rng.standard_normal((SAMPLE_RATE // 2, 2))
            * np.exp(-14 * np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE)[:, None]
        )
        response[0] = 10.0
        response /= np.sqrt(np.square(response[:110]).sum(axis=0))
        path = f"{number}.wav"
        soundfile.write(folder / "rirs" / path, response, SAMPLE_RATE, subtype="FLOAT")
        rooms.append(
            {
                "path": path,
                "venue": f"venue {number}",
                "split": "test",
                "kind": "measured" if number == 0 else "simulated",
                "num_mics": 1,
                "mic_channels": 2,
                "t20_s": 0.49,
            }
        )
    noises = []
    for kind in ("applause", "babble", "hum", "hiss", "wind", "handling"):
        soundfile.write(folder / "noise" / f"{kind}.flac", pink(rng, 3.0).T, SAMPLE_RATE)
        noises.append({"path": f"{kind}.flac", "kind": kind, "split": "test", "seconds": 3.0})
    write_rows(folder / "clean" / "inventory.jsonl", music)
    write_rows(folder / "rirs" / "index.jsonl", rooms)
    write_rows(folder / "noise" / "index.jsonl", noises)
    return folder


@pytest.fixture(scope="module")
def manifest(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "test.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw_benchmark, "SECONDS", SECONDS)
        arguments = ["--data", str(data), "--split", "test", "--count", "16", "--out", str(path)]
        assert draw_benchmark.main(arguments) == 0
        assert draw_benchmark.main(arguments) == 1, "a frozen manifest must not be overwritten"
    return path


def roots(data: Path) -> Roots:
    return Roots(data / "clean", data / "rirs", data / "noise")


def counting(name: str, calls: list[int], factor: float = 1.0) -> System:
    def run(recording: np.ndarray, clean: np.ndarray, sample_rate: int) -> np.ndarray:
        calls.append(1)
        return factor * recording

    return System(name, run, f"factor {factor}")


def test_manifest_is_balanced_and_in_range(manifest: Path) -> None:
    rows = read_rows(manifest)
    for condition in CONDITIONS:
        of_condition = [row for row in rows if row["condition"] == condition]
        assert len(of_condition) == 4
        assert sorted(int(row["music_path"][0]) % 2 for row in of_condition) == [0, 0, 1, 1]
        assert [row["venue"] == "venue 0" for row in of_condition].count(True) == 2
    assert {row["channels"] for row in rows} == {2} and {row["num_takes"] for row in rows} == {1}
    assert all(
        0 <= row["snr_db"][0] <= 12 and -10 <= row["drr_db"][0] <= 6 and 0.4 <= row["rt60_s"] <= 3 for row in rows
    )


def test_rows_render_to_what_the_manifest_recorded(data: Path, manifest: Path) -> None:
    for row in read_manifest(manifest, limit=4):
        pair = load_pair(row, roots(data))
        assert compare(row["rendered"], describe(pair)) == "identical"
        recording, clean = (torch.from_numpy(waveform) for waveform in (pair.recordings[0], pair.clean))
        assert row["rendered"]["si_sdr_db"] == pytest.approx(float(si_sdr(recording, clean).mean()), abs=1e-3)
        # Another library's rounding is forgiven, another sound is not.
        nearly = dict(row["rendered"], sha256="0" * 16, si_sdr_db=row["rendered"]["si_sdr_db"] + 0.05)
        assert compare(nearly, describe(pair)) == "equivalent"
        assert compare(dict(nearly, si_sdr_db=nearly["si_sdr_db"] + 0.2), describe(pair)) == "different"
    assert compare(None, describe(pair)) == "unknown"


def test_limit_takes_from_every_condition(manifest: Path) -> None:
    rows = read_manifest(manifest, limit=6)
    assert [row["condition"] for row in rows] == [*CONDITIONS, *CONDITIONS[:2]]


def test_scores_of_a_known_restoration(data: Path, manifest: Path) -> None:
    row = next(row for row in read_manifest(manifest) if row["condition"] == "crowd")
    pair = load_pair(row, roots(data))
    half_way = System("half", lambda recording, clean, sample_rate: (recording + clean) / 2, "1")
    result, restored = run_clip(half_way, pair)
    np.testing.assert_array_equal(restored, (pair.recordings[0] + pair.clean) / 2)
    recording, clean = (torch.from_numpy(waveform) for waveform in (pair.recordings[0], pair.clean))
    expected = si_sdr((recording + clean) / 2, clean)
    assert result["si_sdr"] == pytest.approx(expected.mean().item(), abs=1e-4)
    # Half of the noise is 6 dB less noise, and without a room the early target is the clean one.
    assert result["si_sdr_improvement"] == pytest.approx(6.02, abs=0.3)
    assert result["si_sdr_early"] == result["si_sdr"]
    assert result["real_time_factor"] > 0.0
    same, _ = run_clip(System("input", lambda recording, clean, sample_rate: recording, "1"), pair)
    assert same["si_sdr_improvement"] == same["level_change_lu"] == 0.0


def test_a_second_run_computes_only_what_is_missing_or_changed(data: Path, manifest: Path, tmp_path: Path) -> None:
    rows, calls = read_manifest(manifest, limit=4), []
    first = evaluate(rows, [counting("one", calls)], roots(data), tmp_path)
    assert len(calls) == 4
    (tmp_path / "one" / f"{rows[2]['row_id']:05d}.json").unlink()
    (tmp_path / "one" / f"{rows[3]['row_id']:05d}.json").write_text('{"cut off')
    second = evaluate(rows, [counting("one", calls)], roots(data), tmp_path)
    assert len(calls) == 6
    timings = {"real_time_factor", "cpu_factor", "peak_memory_mb"}
    for one, other in zip(first, second, strict=True):
        assert {k: v for k, v in one.items() if k not in timings} == {
            k: v for k, v in other.items() if k not in timings
        }
    evaluate(rows, [counting("one", calls, factor=0.5)], roots(data), tmp_path)
    assert len(calls) == 10, "results of another setting must not be reused"


def test_a_broken_system_does_not_stop_the_others(
    data: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []
    odd: list[int] = []

    def sometimes(recording: np.ndarray, clean: np.ndarray, sample_rate: int) -> np.ndarray:
        odd.append(1)
        return recording[:, :-1] if len(odd) % 2 else recording

    def build(name: str, model: Any) -> System:
        if name == "vocoder":
            raise OSError("no weights")
        return System(name, sometimes, "1") if name == "faithful" else counting(name, calls)

    monkeypatch.setattr(evaluation, "build_system", build)
    arguments = ["--manifest", str(manifest), "--data", str(data), "--out", str(tmp_path), "--limit", "4"]
    assert main([*arguments, "--systems", "input,faithful,vocoder"]) == 1
    assert len(calls) == 4
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["broken"] == {"vocoder": "OSError: no weights"}
    assert summary["systems"]["faithful"]["failed"] == 2 and summary["systems"]["input"]["failed"] == 0
    assert summary["audio"] == {"identical": 4, "equivalent": 0, "different": 0, "unknown": 0}
    values = [json.loads(path.read_text())["si_sdr"] for path in sorted((tmp_path / "clips" / "input").glob("*.json"))]
    figures = summary["systems"]["input"]["figures"]["all"]["si_sdr"]
    assert figures["mean"] == pytest.approx(np.mean(values)) and figures["median"] == pytest.approx(np.median(values))
    assert figures["low"] <= figures["mean"] <= figures["high"]
    report = (tmp_path / "report.md").read_text()
    assert "faithful: failed on 2 clips" in report and "vocoder: not run, OSError: no weights" in report
    assert (tmp_path / "si_sdr_improvement.png").read_bytes().startswith(b"\x89PNG")
    # What failed is tried again; what was done is not.
    main([*arguments, "--systems", "input,faithful"])
    assert len(calls) == 4 and len(odd) == 6
    assert "failed on row" in capsys.readouterr().err


def test_tuning_takes_the_setting_with_the_best_si_sdr(
    data: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gate:
        settings = ({"share": 0.2}, {"share": 0.9}, {"share": 0.0})
        packages = ("numpy",)

        @staticmethod
        def run(recording: np.ndarray, sample_rate: int, share: float) -> np.ndarray:
            """Worse the further the share is from 0.9: a copy of itself later is added."""
            return recording + (0.9 - share) * np.roll(recording, 1000, axis=-1)

    monkeypatch.setattr(evaluation, "PEERS", {"gate": Gate})
    monkeypatch.setattr(evaluation, "SYSTEMS", ("gate",))
    monkeypatch.setitem(PEERS, "gate", Gate)  # type: ignore[arg-type]
    out = tmp_path / "peers.json"
    arguments = ["--manifest", str(manifest), "--data", str(data), "--out", str(tmp_path), "--limit", "4"]
    out.write_text('{"peers": {"other": {"settings": {}}}}')
    assert main([*arguments, "--systems", "gate", "--tune", str(out)]) == 0
    assert json.loads(out.read_text())["peers"]["other"] == {"settings": {}}, "what was tuned before must stay"
    gate = json.loads(out.read_text())["peers"]["gate"]
    assert gate["settings"] == {"share": 0.9}
    assert gate["trials"][1]["si_sdr_improvement"] == pytest.approx(0.0, abs=1e-6)
    assert gate["trials"][0]["si_sdr_improvement"] < 0 and gate["trials"][2]["si_sdr_improvement"] < 0


def test_bad_arguments_are_one_line(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--manifest", str(manifest), "--systems", "input,nosuch"]) == 1
    assert main(["--manifest", "nosuch.jsonl"]) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 2 and "unknown system nosuch" in errors[0] and "nosuch.jsonl" in errors[1]


def test_recordings_are_brought_below_full_scale_with_their_targets():
    rng = np.random.default_rng(0)
    waveforms = rng.standard_normal((3, 2, 1000)).astype(np.float32) * 3
    pair = RenderedPair(waveforms[None, 0], waveforms[1], waveforms[2], np.zeros((2, 10), np.float32), 44100)
    scaled = below_full_scale(pair)
    assert np.abs(scaled.recordings).max() == pytest.approx(0.5)
    gain = 0.5 / np.abs(waveforms[0]).max()
    np.testing.assert_allclose(scaled.clean, waveforms[1] * gain, rtol=1e-6)
    np.testing.assert_allclose(scaled.early, waveforms[2] * gain, rtol=1e-6)


def test_perceptual_figures_and_frechet_distances(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_benchmark, "SECONDS", 3.5)  # an embedding needs 3 s
    manifest = tmp_path / "test.jsonl"
    options = ["--data", str(data), "--split", "test", "--count", "16", "--out", str(manifest)]
    assert draw_benchmark.main(options) == 0
    arguments = ["--manifest", str(manifest), "--data", str(data), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--limit", "4", "--systems", "input,lowpass_control", "--perceptual", "--html"]) == 0
    folder = tmp_path / "out" / "clips"
    for row in read_manifest(manifest, limit=4):
        name = f"{row['row_id']:05d}"
        result = json.loads((folder / "input" / f"{name}.json").read_text())
        pair = below_full_scale(load_pair(row, roots(data)))
        recording, clean = (torch.from_numpy(waveform).double() for waveform in (pair.recordings[0], pair.clean))
        error = level_matched(recording, clean) - clean
        expected = 10 * torch.log10(clean.square().sum(-1) / error.square().sum(-1)).mean()
        assert result["sdr"] == pytest.approx(float(expected), abs=1e-4)
        parts = known_parts(row, roots(data))
        assert ("late_tail_db" in result) == (parts is not None) == bool(row["music_in_room"])
        assert "pesq" not in result  # noise does not speak
        assert load_file(folder / "clean" / f"{name}.safetensors")["musicnn"].shape == (1, 200)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    for name, windows in (("musicnn", 1), ("log_mel", 3)):
        found = summary["frechet"][name]["systems"]
        assert found["clean"]["closed"] == 1 and found["input"]["closed"] == 0
        assert found["input"]["windows"] == 4 * windows
        clips = [load_file(path)[name] for path in sorted((folder / "lowpass_control").glob("*.safetensors"))]
        expected = frechet_distance(load_reference(name), gaussian(clips))
        assert found["lowpass_control"]["value"] == pytest.approx(expected, rel=1e-6)
        matched = summary["frechet"][f"{name}_matched"]["systems"]
        clean = [load_file(path)[name] for path in sorted((folder / "clean").glob("*.safetensors"))]
        assert matched["clean"]["value"] == pytest.approx(0, abs=1e-6 * matched["input"]["value"])
        expected = frechet_distance(gaussian(clean), gaussian(clips))
        assert matched["lowpass_control"]["value"] == pytest.approx(expected, rel=1e-6)
        share = 1 - expected / frechet_distance(
            gaussian(clean),
            gaussian([load_file(path)[name] for path in sorted((folder / "input").glob("*.safetensors"))]),
        )
        assert matched["lowpass_control"]["closed"] == pytest.approx(share, rel=1e-6)
    report = (tmp_path / "out" / "report.md").read_text()
    assert "## Fréchet distance, musicnn" in report and "342 clips" in report and "## SRMR" in report
    assert "## PESQ" not in report
    page = (tmp_path / "out" / "report.html").read_text()
    assert "://" not in page.replace("http://www.w3.org", ""), "nothing may come from a network"
    sounds = [base64.b64decode(text) for text in re.findall(r"data:audio/ogg;base64,([^\"]+)", page)]
    assert len(sounds) == 12  # 4 clips of clean, input and control
    worst_first = [int(number) for number in re.findall(r"Clip (\d+):", page)]
    improvements = [
        json.loads((folder / "lowpass_control" / f"{clip:05d}.json").read_text())["si_sdr_improvement"]
        for clip in worst_first
    ]
    assert len(improvements) == 4 and improvements == sorted(improvements)
    heard, rate = soundfile.read(io.BytesIO(sounds[1]), dtype="float32")  # the input of the first clip
    row = next(row for row in read_manifest(manifest) if row["row_id"] == worst_first[0])
    recording = resample(below_full_scale(load_pair(row, roots(data))).recordings[0], SAMPLE_RATE, rate).T
    assert heard.shape == recording.shape
    assert 10 * np.log10(np.square(recording).sum() / np.square(heard - recording).sum()) > 8  # Opus of noise


def test_several_processes_write_what_one_does(data: Path, manifest: Path, tmp_path: Path) -> None:
    arguments = ["--manifest", str(manifest), "--data", str(data), "--limit", "4", "--systems", "lowpass_control"]
    assert main([*arguments, "--out", str(tmp_path / "two"), "--workers", "2"]) == 0
    assert main([*arguments, "--out", str(tmp_path / "one")]) == 0
    two, one = (read_clips(tmp_path / name, "lowpass_control") for name in ("two", "one"))
    assert len(two) == 4 and set(one) == set(two)
    costs = {"real_time_factor", "cpu_factor", "peak_memory_mb"}
    for clip, row in one.items():
        assert set(row) == set(two[clip])
        for name in set(row) - costs:  # with another number of threads, sums round otherwise
            expected = pytest.approx(row[name], rel=1e-5, abs=1e-5) if isinstance(row[name], float) else row[name]
            assert two[clip][name] == expected, name


def test_a_folder_of_restored_files_is_a_system(data: Path, manifest: Path, tmp_path: Path) -> None:
    arguments = ["--manifest", str(manifest), "--data", str(data), "--limit", "4"]
    assert main([*arguments, "--recordings", str(tmp_path / "recorded")]) == 0
    rows = read_manifest(manifest, limit=4)
    (tmp_path / "mine").mkdir()
    for row in rows[:3]:  # the fourth one is missing
        name = f"{row['row_id']:05d}"
        recording, rate = soundfile.read(tmp_path / "recorded" / f"{name}.flac", dtype="float32")
        clean = below_full_scale(load_pair(row, roots(data))).clean.T
        soundfile.write(tmp_path / "mine" / f"{name}.wav", (recording + clean) / 2, rate, subtype="FLOAT")
    out = tmp_path / "out"
    assert main([*arguments, "--systems", f"input,folder:mine={tmp_path / 'mine'}", "--out", str(out)]) == 1
    mine = read_clips(out, "mine")
    assert sorted(mine) == sorted(row["row_id"] for row in rows[:3])
    for row in rows[:3]:
        pair = below_full_scale(load_pair(row, roots(data)))
        half = torch.from_numpy((pair.recordings[0] + pair.clean) / 2)
        expected = si_sdr(half, torch.from_numpy(pair.clean)).mean()
        assert mine[row["row_id"]]["si_sdr"] == pytest.approx(float(expected), abs=1e-3)  # 24 bit
    failed = json.loads((out / "clips" / "mine" / f"{rows[3]['row_id']:05d}.json").read_text())
    assert f"no file for clip {rows[3]['row_id']:05d}" in failed["error"]


def test_names_of_folders_are_checked(tmp_path: Path) -> None:
    for name in ("folder:mine", f"folder:input={tmp_path}", f"folder:a/b={tmp_path}", "folder:mine=nowhere"):
        with pytest.raises(ValueError, match="is not"):
            read_folder(name)
    assert read_folder(f"folder:my_tool-2={tmp_path}").name == "my_tool-2"


def test_a_result_that_holds_more_than_is_asked_for_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "00001.json"
    asked = {"row": "r", "system": "s"}
    for identity, taken in [(asked, True), ({**asked, "further": "2"}, True), ({"row": "r"}, False)]:
        path.write_text(json.dumps({"identity": identity, "si_sdr": 1.0}))
        assert (evaluation.read_result(path, asked) is not None) == taken
    assert evaluation.read_result(path, {**asked, "further": "2"}) is None


def test_another_code_is_another_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = [tmp_path / "pipeline.py", tmp_path / "takes.py"]
    for file in files:
        file.write_text("pass\n")
    monkeypatch.setattr(systems, "remote_code_files", lambda: files)
    digests = []
    for content in ("pass\n", "pass  # as before\n", "pass\n"):
        files[1].write_text(content)
        systems.code_digest.cache_clear()
        digests.append(systems.code_digest())
    systems.code_digest.cache_clear()
    assert digests[0] == digests[2] != digests[1]


def test_another_vocoder_changes_what_it_synthesises_only(tmp_path: Path) -> None:
    for component in ("unet", "vocoder"):
        (tmp_path / component).mkdir()
        (tmp_path / component / "config.json").write_text("{}")
    (tmp_path / "model_index.json").write_text("{}")
    model = systems.Model(str(tmp_path))
    before = {name: systems.model_identity(model, name) for name in ("faithful", "griffin_lim", "vocoder", "blend")}
    (tmp_path / "vocoder" / "config.json").write_text('{"num_mels": 128}')
    after = {name: systems.model_identity(model, name) for name in before}
    assert [name for name in before if before[name] == after[name]] == ["faithful", "griffin_lim"]
    (tmp_path / "unet" / "config.json").write_text('{"in_channels": 13}')
    assert systems.model_identity(model, "faithful") != after["faithful"]


def test_copies_are_made_of_the_clean_clip(toy_model: Path) -> None:
    rate = 44_100
    times = np.arange(rate) / rate
    chord = sum(np.sin(2 * np.pi * pitch * times) for pitch in (220.0, 277.2, 329.6, 1318.5))
    clean = 0.1 * np.stack([chord, 0.5 * chord]).astype(np.float32)
    recording = np.zeros_like(clean)
    model = systems.Model(str(toy_model))
    copies = {name: systems.build_system(name, model).run(recording, clean, rate) for name in systems.COPIES}
    transform = systems.load_pipeline(model).transform
    mels = {
        name: transform.log_mel(transform.stft(normalised(copy))) for name, copy in (copies | {"clean": clean}).items()
    }
    assert all(copy.shape == clean.shape for copy in copies.values())
    errors = {name: float((mel - mels["clean"]).abs().mean()) for name, mel in mels.items()}
    assert errors["griffin_lim"] < 0.3  # nats
    assert errors["copy_synthesis"] > 1  # of random weights


def normalised(waveform: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(waveform / np.sqrt(np.square(waveform).mean()) / 14)
