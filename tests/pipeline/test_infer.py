"""The command line from outside: exit status, what is said, and the files that it leaves."""

import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.image
import numpy as np
import pyloudnorm
import pytest
import soundfile
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from pipeline_aud2studio import Aud2StudioPipeline, command, files, infer
from pipeline_aud2studio.chunks import ArraySource
from pipeline_aud2studio.plot import spectrogram_db
from pipeline_aud2studio.precision import preferred_dtype

RATE = 44100


def recording(channels: int = 1, seconds: float = 0.6, rate: int = RATE, level: float = 0.1) -> np.ndarray:
    """Noise that comes and goes (channels, samples)."""
    times = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal((channels, len(times)))
    return (level * noise * (1.1 + np.sin(30 * times))).astype(np.float32)


@pytest.fixture
def cli(toy_model: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command with the toy model unless `--model` says otherwise: exit status, output, errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        words = [str(argument) for argument in arguments]
        if "--model" not in words:
            words += ["--model", str(toy_model)]
        capfd.readouterr()
        try:
            status = infer.main(words)
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.mark.parametrize(("channels", "rate", "name"), [(1, 8000, "o.wav"), (2, 44100, "o.flac"), (2, 96000, "o.wav")])
def test_output_has_the_inputs_rate_channels_length_tags_and_loudness(cli, tmp_path, channels, rate, name) -> None:
    waveform = recording(channels, 0.7123, rate)
    files.write(tmp_path / "i.wav", waveform, rate, "PCM_24", {"title": "Night", "artist": "Band", "date": "1987"})

    status, out, err = cli("--inputs", tmp_path / "i.wav", "--save", tmp_path / name, "--steps", 1)

    assert (status, out.splitlines()[0].startswith(f"{tmp_path / name}: 0.7 s in ")) == (0, True)
    restored = files.read(tmp_path / name)
    assert restored.waveform.shape == waveform.shape
    assert (restored.sample_rate, restored.subtype) == (rate, "PCM_24")
    assert restored.tags == {"title": "Night", "artist": "Band", "date": "1987"}
    meter = pyloudnorm.Meter(rate)
    before, after = (meter.integrated_loudness(w.T) for w in (waveform, restored.waveform))
    assert after == pytest.approx(before, abs=0.5)
    assert "Traceback" not in err


def test_the_command_is_the_pipeline(cli, toy_pipeline: Aud2StudioPipeline, tmp_path: Path) -> None:
    """Seed, steps, dryness and read-out reach the pipeline; the same command gives the same bits."""
    files.write(tmp_path / "i.wav", recording(), RATE, "FLOAT")
    call = ["--inputs", tmp_path / "i.wav", "--save", tmp_path / "o.wav", "--overwrite", "--steps", 3]
    call += ["--dtype", "float32"]
    for options, arguments in [
        ([], {}),
        (["--seed", 7, "--dryness", 0.5], {"seed": 7, "dryness": 0.5}),
        (["--reconstruction", "vocoder"], {"reconstruction": "vocoder"}),
    ]:
        assert cli(*call, *options)[0] == 0
        generator = torch.Generator().manual_seed(arguments.pop("seed", 0))
        expected = toy_pipeline(recording(), RATE, 3, generator=generator, **arguments).audios[0]
        np.testing.assert_allclose(files.read(tmp_path / "o.wav").waveform, expected, atol=1e-5)
    first = files.read(tmp_path / "o.wav").waveform
    assert cli(*call, "--reconstruction", "vocoder")[0] == 0
    assert np.array_equal(files.read(tmp_path / "o.wav").waveform, first)


@pytest.mark.slow
def test_processes_share_a_folder(toy_model: Path, tmp_path: Path) -> None:
    """Started as `accelerate launch` and torchrun do it, two processes restore what is missing once.

    One is done at once and has a failure to tell, for which the launcher may not end the other.
    """
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    (source / "0.wav").write_text("not audio")
    for number in range(1, 6):
        files.write(source / f"{number}.wav", recording(1, 3.0), RATE)
    for number in (2, 4):
        (target / f"{number}.wav").write_bytes(b"made before")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "pipeline_aud2studio.infer", "--inputs", source, "--save", target, "--model", toy_model]
    command += ["--report", tmp_path / "report.json", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "0.wav is not audio" in done.stderr and "1 of 1 recordings could not be restored" in done.stderr
    shares = [json.loads((tmp_path / f"report-{rank}.json").read_text()) for rank in range(2)]
    assert [[Path(entry["inputs"][0]).name for entry in share] for share in shares] == [
        ["0.wav"],
        ["1.wav", "3.wav", "5.wav"],
    ]
    assert {entry["status"] for entry in shares[1]} == {"restored"}
    assert sorted(path.name for path in target.iterdir()) == [f"{number}.wav" for number in range(1, 6)]
    assert {(target / f"{number}.wav").read_bytes() for number in (2, 4)} == {b"made before"}


@pytest.mark.slow
def test_a_hundred_files_one_of_them_broken(cli, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    for number in range(100):
        files.write(source / f"{number:02}.wav", recording(1, 0.1, 16000), 16000)
    (source / "42.wav").write_bytes((source / "42.wav").read_bytes()[:30])
    status, out, err = cli("--inputs", source, "--save", target, "--report", tmp_path / "report.json")
    assert (status, len(out.splitlines())) == (1, 99)
    assert err.splitlines()[-2].startswith(f"aud2studio: failed: {source / '42.wav'} ")
    assert err.splitlines()[-1] == "aud2studio: error: 1 of 100 recordings could not be restored"
    assert len(list(target.iterdir())) == 99 and not (target / "42.wav").exists()
    entries = json.loads((tmp_path / "report.json").read_text())
    failed = [Path(entry["inputs"][0]).name for entry in entries if entry["status"] == "failed"]
    assert (failed, len(entries)) == (["42.wav"], 100)


@pytest.mark.slow
def test_a_full_disk_loses_nothing(toy_model: Path, tmp_path: Path) -> None:
    """The system itself refuses to write more of the decoded recording: what was there stays, and nothing else."""
    files.write(tmp_path / "i.wav", recording(2, 12.0), RATE)
    before = (tmp_path / "i.wav").read_bytes()
    command = [sys.executable, "-m", "pipeline_aud2studio.infer", "--model", str(toy_model), "--inputs"]
    command += [str(tmp_path / "i.wav"), "--save"]
    decoded = 4 * 2 * 12 * RATE

    def run(output: str, limit: int) -> subprocess.CompletedProcess[str]:
        words = [*command, str(tmp_path / output)]
        bounded = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
        return subprocess.run(words, preexec_fn=bounded, capture_output=True, text=True)

    first = run("o.wav", limit=decoded // 2)
    assert first.returncode == 1 and "error: OSError: [Errno 27] File too large" in first.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["i.wav"]
    assert (tmp_path / "i.wav").read_bytes() == before


def test_a_file_that_is_no_report_is_kept(cli, tmp_path: Path) -> None:
    files.write(tmp_path / "i.wav", recording(), RATE)
    (tmp_path / "thesis.json").write_text('{"chapters": 9}')
    status, _, err = cli(
        "--inputs", tmp_path / "i.wav", "--save", tmp_path / "o.wav", "--report", tmp_path / "thesis.json"
    )
    assert (status, "is no report of this program" in err) == (2, True)
    assert (tmp_path / "thesis.json").read_text() == '{"chapters": 9}'


def test_several_takes_are_one_performance(cli, tmp_path: Path) -> None:
    """Another rate, length and channel count; aligned already, the first take decides what comes out."""
    files.write(tmp_path / "a.wav", recording(2), RATE)
    files.write(tmp_path / "b.flac", recording(1, 0.5, 48000), 48000)
    takes = [tmp_path / "a.wav", tmp_path / "b.flac"]
    assert cli("--inputs", *takes, "--aligned", "--save", tmp_path / "two.wav")[0] == 0
    assert cli("--inputs", tmp_path / "a.wav", "--save", tmp_path / "one.wav")[0] == 0
    two, one = (files.read(tmp_path / name).waveform for name in ("two.wav", "one.wav"))
    assert two.shape == one.shape == recording(2).shape
    assert np.abs(two - one).max() > 1e-3
    status, _, err = cli("--inputs", *[tmp_path / "a.wav"] * 5, "--aligned", "--save", tmp_path / "five.wav")
    assert (status, "1 to 4 takes" in err) == (2, True)


def test_a_folder_is_restored_file_by_file(cli, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    files.write(source / "a.wav", recording(), RATE, "PCM_16")
    soundfile.write(source / "b.mp3", recording(2).T, RATE)
    (source / "broken.flac").write_text("not audio")
    (source / "notes.txt").write_text("not even called audio")

    status, out, err = cli("--inputs", source, "--save", target)

    assert status == 1
    assert [line.split(":")[0] for line in out.splitlines()] == [str(target / "a.wav"), str(target / "b.flac")]
    assert [line for line in err.splitlines() if "error" in line] == [
        f"aud2studio: error: {source / 'broken.flac'} is not audio that can be decoded"
        " (Invalid data found when processing input)",
        "aud2studio: error: 1 of 3 recordings could not be restored",
    ]
    assert err.splitlines()[-2].startswith(f"aud2studio: failed: {source / 'broken.flac'} is not audio")
    assert sorted(path.name for path in target.iterdir()) == ["a.wav", "b.flac"]
    assert files.read(target / "b.flac").subtype == "PCM_24"
    assert files.read(target / "a.wav").subtype == "PCM_16"

    before = (target / "a.wav").stat().st_mtime_ns
    status, out, err = cli("--inputs", source, "--save", target, "--report", tmp_path / "report.json")
    assert (status, out, "2 of 3 recordings are restored already" in err) == (1, "", True)
    (source / "broken.flac").unlink()
    status, out, _ = cli("--inputs", source, "--save", target)
    assert (status, out, (target / "a.wav").stat().st_mtime_ns) == (0, "", before)
    assert cli("--inputs", source, "--save", target, "--overwrite", "--report", tmp_path / "report.json")[0] == 0
    entries = {Path(entry["inputs"][0]).name: entry for entry in json.loads((tmp_path / "report.json").read_text())}
    assert {name: entry["status"] for name, entry in entries.items()} == {
        "broken.flac": "failed",
        "a.wav": "restored",
        "b.mp3": "restored",
    }
    assert entries["a.wav"]["output"] == str(target / "a.wav") and entries["a.wav"]["audio_s"] == pytest.approx(0.6)
    assert "not audio that can be decoded" in entries["broken.flac"]["error"]
    files.write(source / "b.flac", recording(), RATE)
    status, _, err = cli("--inputs", source, "--save", target, "--overwrite")
    assert (status, "both be written" in err) == (2, True)


def test_silence_is_returned_with_a_notice_even_if_the_model_is_broken(cli, tmp_path: Path, monkeypatch) -> None:
    def broken(*_):
        raise ValueError("the model cannot be loaded")

    monkeypatch.setattr(infer, "load_pipeline", broken)
    files.write(tmp_path / "i.wav", np.zeros((2, 1000), np.float32), RATE)
    status, _, err = cli("--inputs", tmp_path / "i.wav", "--save", tmp_path / "o.wav")
    assert (status, err) == (0, f"aud2studio: notice: {tmp_path / 'i.wav'} is silent: it is returned as it is\n")
    assert np.array_equal(files.read(tmp_path / "o.wav").waveform, np.zeros((2, 1000)))


def test_an_excerpt_at_another_rate_and_depth(cli, tmp_path: Path) -> None:
    files.write(tmp_path / "i.wav", recording(1, 1.0), RATE, "PCM_16")
    options = ["--start", 0.25, "--end", 0.75, "--sample-rate", 48000, "--bit-depth", "float"]
    assert cli("--inputs", tmp_path / "i.wav", "--save", tmp_path / "o.wav", *options)[0] == 0
    restored = files.read(tmp_path / "o.wav")
    assert (restored.waveform.shape, restored.sample_rate, restored.subtype) == ((1, 24000), 48000, "FLOAT")


def test_tilt_and_limiter(cli, tmp_path: Path) -> None:
    files.write(tmp_path / "i.wav", recording(1, 0.6, level=0.25), RATE, "FLOAT")
    call = ["--inputs", tmp_path / "i.wav", "--overwrite", "--bit-depth", "float", "--save"]
    assert cli(*call, tmp_path / "plain.wav")[0] == 0
    assert cli(*call, tmp_path / "tilted.wav", "--tilt-db", 6)[0] == 0
    assert cli(*call, tmp_path / "limited.wav", "--limiter")[0] == 0
    plain, tilted, limited = (files.read(tmp_path / f"{n}.wav").waveform for n in ("plain", "tilted", "limited"))
    gain_db = 20 * np.log10(np.abs(np.fft.rfft(tilted)) / np.abs(np.fft.rfft(plain)))[0]
    hertz = np.fft.rfftfreq(plain.shape[1], 1 / RATE)
    change = np.median(gain_db[(hertz > 9000) & (hertz < 11000)]) - np.median(gain_db[(hertz > 950) & (hertz < 1050)])
    assert change == pytest.approx(3 * np.log(10) / np.log(20), abs=0.2)
    assert np.abs(limited).max() <= 10 ** (-1 / 20) < np.abs(plain).max()


def test_what_is_above_full_scale_is_kept_as_float_and_limited_in_integers(cli, tmp_path: Path) -> None:
    loud = recording(1, 3.0, level=0.05)
    loud[0, 10000:10004] = 1.0
    files.write(tmp_path / "i.wav", 1.3 * loud, RATE, "FLOAT")
    call = ["--inputs", tmp_path / "i.wav", "--dryness", 0, "--save"]
    assert cli(*call, tmp_path / "o.wav")[::2] == (0, "")
    np.testing.assert_allclose(files.read(tmp_path / "o.wav").waveform, 1.3 * loud, rtol=1e-5)
    status, _, err = cli(*call, tmp_path / "o.flac")
    assert status == 0 and err.count("notice: the limiter lowered peaks by up to") == err.count("\n") == 1
    limited = files.read(tmp_path / "o.flac").waveform
    assert 0.7 < np.abs(limited).max() <= 10 ** (-1 / 20)
    meter = pyloudnorm.Meter(RATE)
    expected = meter.integrated_loudness(1.3 * loud.T)
    assert meter.integrated_loudness(limited.T) == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize("lufs", [-50, -30, -14, -8, -5])
def test_the_loudness_is_kept_from_minus_50_to_minus_5_lufs(cli, tmp_path: Path, lufs: float) -> None:
    """As loud as they get, with the peaks of a master: rounded off where they would not fit."""
    waveform, meter = recording(2, 3.0), pyloudnorm.Meter(RATE)
    waveform *= np.float32(10 ** ((lufs - meter.integrated_loudness(waveform.T)) / 20))
    waveform = np.tanh(1.5 * waveform) / 1.5 if lufs > -20 else waveform
    waveform *= np.float32(10 ** ((lufs - meter.integrated_loudness(waveform.T)) / 20))
    files.write(tmp_path / "i.wav", waveform, RATE, "FLOAT")
    for name in ("o.wav", "o.flac"):
        status, _, err = cli("--inputs", tmp_path / "i.wav", "--save", tmp_path / name)
        restored = files.read(tmp_path / name).waveform
        assert meter.integrated_loudness(restored.T) == pytest.approx(lufs, abs=0.5), err
        assert status == 0 and "raised by" not in err
        if lufs <= -30 or name == "o.wav":
            assert "notice" not in err


def test_plot_is_a_png_of_both(cli, tmp_path: Path) -> None:
    files.write(tmp_path / "i.wav", recording(2), RATE)
    call = ["--inputs", tmp_path / "i.wav", "--plot", tmp_path / "o.png", "--save"]
    assert cli(*call, tmp_path / "o.wav")[0] == 0
    picture = matplotlib.image.imread(tmp_path / "o.png")
    height, width = picture.shape[:2]
    assert (height, width) == (696, 1152)
    assert len(np.unique(picture[:, :, 0])) > 50
    status, _, err = cli(*call, tmp_path / "other.wav")
    assert (status, "o.png exists already" in err) == (2, True)


def test_spectrogram_of_a_sine_is_0_db_at_its_place() -> None:
    sine = np.sin(2 * np.pi * 4410 * np.arange(3 * RATE) / RATE)[None].astype(np.float32)
    times, frequencies, levels = spectrogram_db(ArraySource(sine), RATE)
    assert levels.max() == pytest.approx(0, abs=0.3)
    assert abs(frequencies[levels[:, 5].argmax()] - 4410) < RATE / 2048
    assert levels.shape == (len(frequencies), len(times))
    assert times[-1] < 3
    assert spectrogram_db(ArraySource(sine[:, :100]), RATE)[2].shape == (1025, 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ddpm", DDPMScheduler),
        ("ddim", DDIMScheduler),
        ("dpm++", DPMSolverMultistepScheduler),
        ("unipc", UniPCMultistepScheduler),
    ],
)
def test_scheduler_swaps_and_keeps_the_checkpoints_betas(toy_model, toy_pipeline, name, expected) -> None:
    pipeline = infer.load_pipeline(str(toy_model), "cpu", "auto", name)
    assert type(pipeline.scheduler) is expected
    for key in ("beta_schedule", "prediction_type", "rescale_betas_zero_snr", "timestep_spacing"):
        assert pipeline.scheduler.config[key] == toy_pipeline.scheduler.config[key]
    assert not pipeline.scheduler.config.get("clip_sample", False)


def test_vocoder_stays_in_float32(toy_model: Path) -> None:
    pipeline = infer.load_pipeline(str(toy_model), "cpu", "bfloat16", None)
    assert [str(part.dtype) for part in (pipeline.unet, pipeline.vocoder)] == ["torch.bfloat16", "torch.float32"]


@pytest.mark.parametrize("capability", ["avx512_bf16", "amx_bf16", None])
def test_the_default_precision_is_what_the_cpu_multiplies_in(toy_model: Path, monkeypatch, capability) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, capability: True}, raising=False)
    pipeline = infer.load_pipeline(str(toy_model), "cpu", "auto", None)
    expected = torch.float32 if capability is None else torch.bfloat16
    assert (pipeline.unet.dtype, pipeline.condition_encoder.dtype) == (expected, expected)
    assert pipeline.vocoder.dtype == torch.float32
    assert infer.load_pipeline(str(toy_model), "cpu", "float32", None).unet.dtype == torch.float32


def test_a_torch_that_does_not_know_the_cpu_gets_float32(monkeypatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert preferred_dtype("cpu") == preferred_dtype("mps") == torch.float32
    assert preferred_dtype("cuda:1") == torch.bfloat16


def damaged_model(toy_model: Path, folder: Path) -> Path:
    shutil.copytree(toy_model, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return folder


def test_what_cannot_be_used_is_one_line_and_status_2(cli, toy_model: Path, tmp_path: Path) -> None:
    good = tmp_path / "i.wav"
    files.write(good, recording(), RATE)
    files.write(tmp_path / "there.wav", recording(), RATE)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.mp3").write_text("not audio")
    (tmp_path / "no_music").mkdir()
    (tmp_path / "no_model").mkdir()
    soundfile.write(tmp_path / "six.wav", np.zeros((100, 6)), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full((100, 1), np.nan), RATE, subtype="FLOAT")
    broken = damaged_model(toy_model, tmp_path / "broken")
    save = ["--save", tmp_path / "o.wav"]
    cases: list[tuple[list[object], str]] = [
        (["--inputs", tmp_path / "missing.wav", *save], "missing.wav does not exist"),
        (["--inputs", tmp_path / "text.mp3", *save], "is not audio"),
        (["--inputs", tmp_path / "empty.wav", *save], "is empty"),
        (["--inputs", tmp_path / "six.wav", *save], "has 6 channels: pass --downmix"),
        (["--inputs", tmp_path / "nan.wav", *save], "NaN or infinite"),
        (["--inputs", tmp_path / "no_music", *save], "holds no audio files"),
        (["--inputs", tmp_path, good, *save], "one folder or several files"),
        (["--inputs", tmp_path, *save], "is not a folder"),
        (save, "the following arguments are required: --inputs"),
        (["--inputs", good], "the following arguments are required: --save"),
        (["--inputs", good, "--save", tmp_path / "there.wav"], "exists already: pass --overwrite"),
        (["--inputs", good, "--save", good, "--overwrite"], "is an input"),
        (["--inputs", good, "--save", tmp_path / "none" / "o.wav"], "does not exist: create it"),
        (["--inputs", good, "--save", tmp_path / "o.mp3"], "has to end in .wav or .flac"),
        (["--inputs", good, "--save", tmp_path], "is a folder"),
        (["--inputs", good, *save, "--scheduler", "euler"], "invalid choice: 'euler' (choose from"),
        (["--inputs", good, *save, "--steps", 0], "--steps: has to be within 1 and 1000, got 0"),
        (["--inputs", good, *save, "--steps", 1001], "within 1 and 1000"),
        (["--inputs", good, *save, "--steps", "many"], "expected a number, got 'many'"),
        (["--inputs", good, *save, "--dryness", "nan"], "--dryness: has to be within 0 and 1"),
        (["--inputs", good, *save, "--dryness", 0.5, "--reconstruction", "vocoder"], "mixes in phase"),
        (["--inputs", good, *save, "--start", 2, "--end", 1], "--end has to be after --start"),
        (["--inputs", good, *save, "--start", 100], "ends before the start"),
        (["--inputs", good, *save, "--plot", tmp_path / "o.jpg"], "has to end in .png"),
        (["--inputs", good, "--save", tmp_path / "o.flac", "--bit-depth", "float"], "save a .wav"),
        (["--inputs", good, *save, "--model", tmp_path / "no_model"], "it has no model_index.json"),
        (["--inputs", good, *save, "--model", tmp_path / "nowhere"], "neither a model folder nor"),
        (["--inputs", good, *save, "--model", broken], "broken cannot be loaded"),
        (["--inputs", good, *save, "--sample-rate", 4000], "within 8000 and 192000"),
    ]
    for arguments, message in cases:
        status, out, err = cli(*arguments)
        assert (status, out) == (2, ""), (arguments, err)
        assert err.startswith("aud2studio: error: "), err
        assert err.count("\n") == 1, err
        assert message in err
    assert not (tmp_path / "o.wav").exists()


def test_a_missing_device_is_named(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    files.write(tmp_path / "i.wav", recording(), RATE)
    status, _, err = cli("--inputs", tmp_path / "i.wav", "--save", tmp_path / "o.wav", "--device", "cuda")
    assert (status, err) == (2, "aud2studio: error: --device cuda is not there: use cpu\n")


def test_a_failure_on_the_way_is_status_1(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    files.write(tmp_path / "i.wav", recording(), RATE)
    call = ["--inputs", tmp_path / "i.wav", "--save", tmp_path / "o.wav"]
    with monkeypatch.context() as patch:
        patch.setattr(Aud2StudioPipeline, "stream", fail)
        status, _, err = cli(*call)
    assert (status, err) == (1, "aud2studio: error: RuntimeError: CUDA out of memory. Tried to allocate\n")

    def full_disk(*_: object) -> None:
        raise soundfile.LibsndfileError(2, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(soundfile.SoundFile, "write", full_disk)
        status, _, err = cli(*call)
    assert (status, err.splitlines()[-1].startswith("aud2studio: error: OSError: ")) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["i.wav"]


def test_bext_and_cue_points_are_carried_over_or_named(cli, tmp_path: Path) -> None:
    bext = b"bext" + struct.pack("<I", 602) + b"Radio Nowhere".ljust(602, b"\0")
    cue = b"cue " + struct.pack("<I", 28) + struct.pack("<III4sIII", 1, 1, 4410, b"data", 0, 0, 4410)
    files.write_blocks(tmp_path / "i.wav", [recording()], 1, recording().shape[1], RATE, "PCM_16", {}, [bext, cue])
    call = ["--inputs", tmp_path / "i.wav", "--reconstruction", "prediction", "--save"]
    assert cli(*call, tmp_path / "o.wav")[::2] == (0, "")
    content = (tmp_path / "o.wav").read_bytes()
    assert bext in content and cue in content and struct.unpack("<I", content[4:8])[0] == len(content) - 8
    np.testing.assert_allclose(files.read(tmp_path / "o.wav").waveform.shape, recording().shape)
    for name, extra in (("o.flac", []), ("late.wav", ["--start", 0.1])):
        status, _, err = cli(*call, tmp_path / name, *extra)
        assert status == 0
        assert "will not have: the BWF description (bext), the cue points" in err


def test_a_bar_is_drawn_on_a_terminal_only_and_a_log_gets_lines(cli, tmp_path: Path, monkeypatch) -> None:
    files.write(tmp_path / "i.wav", recording(1, 2.0), RATE)
    call = ["--inputs", tmp_path / "i.wav", "--overwrite", "--save", tmp_path / "o.wav"]
    assert cli(*call)[2] == ""
    monkeypatch.setattr(command, "LOG_S", 0.0)
    lines = cli(*call)[2].splitlines()
    assert lines and all(line.startswith("aud2studio: restoring: ") and " chunks, " in line for line in lines)
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True, raising=False)
    assert "restoring: " in cli(*call)[2] and "\r" in cli(*call)[2]
