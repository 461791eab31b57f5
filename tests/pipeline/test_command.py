"""The command as a process of its own: pipes, interruption, networks that are not there, folders, threads."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hostile import encoded, music

from pipeline_aud2studio import Aud2StudioPipeline, files, infer, loading

RATE = 44100
COMMAND = [sys.executable, "-m", "pipeline_aud2studio.command"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# Run before everything else by Python itself: whoever opens a connection or looks up a name is written down.
WATCH = """
import os, socket, sys
def seen(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        with open(os.environ["SEEN"], "a") as file:
            file.write(f"{event} {arguments}\\n")
        raise OSError("no network in this test")
sys.addaudithook(seen)
"""


@pytest.mark.slow
def test_standard_input_to_standard_output(toy_model: Path) -> None:
    words = ["--inputs", "-", "--save", "-", "--model", str(toy_model)]
    done = subprocess.run([*COMMAND, *words], input=encoded(music(2), "flac16"), env=ENVIRONMENT, capture_output=True)
    assert done.returncode == 0, done.stderr
    waveform, rate = soundfile.read(io.BytesIO(done.stdout), always_2d=True)
    assert (waveform.shape, rate) == (music(2).T.shape, RATE)
    assert b"standard output.wav: 0.5 s in" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.15, 1.0, 4.0])
def test_ctrl_c_at_any_time_is_one_line_and_leaves_nothing(tmp_path: Path, after_s: float) -> None:
    block = np.tile(music(2), (1, 240))
    files.write(tmp_path / "i.wav", block, RATE)
    words = ["--inputs", str(tmp_path / "i.wav"), "--save", str(tmp_path / "o.wav")]
    process = subprocess.Popen([*COMMAND, *words], env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, err = process.communicate(timeout=20)
    if after_s >= 1:  # before that Python itself may not have begun
        assert (process.returncode, err.strip()) == (130, b"aud2studio: error: interrupted")
        assert time.monotonic() - started < 10
    assert [path.name for path in tmp_path.iterdir()] == ["i.wav"]


@pytest.mark.slow
def test_the_whole_command_opens_no_connection(tmp_path: Path, toy_model: Path) -> None:
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    (tmp_path / "home").mkdir()
    files.write(tmp_path / "i.wav", music(), RATE)
    environment = {
        **{name: value for name, value in ENVIRONMENT.items() if not name.startswith("HF_")},
        "SEEN": str(tmp_path / "seen"),
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "watch"), os.environ.get("PYTHONPATH", "")]),
    }
    words = ["--inputs", str(tmp_path / "i.wav"), "--save", str(tmp_path / "o.wav"), "--model", str(toy_model)]
    done = subprocess.run([*COMMAND, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "seen").exists(), (tmp_path / "seen").read_text()
    script = "import pipeline_aud2studio, onnxruntime"
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    left = [path for path in (tmp_path / "home").rglob("*") if "deviceid" in path.name.lower()]
    assert not left


def test_a_model_that_is_not_in_the_cache_fails_at_once_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whether the network refuses or, worse, never answers."""
    files.write(tmp_path / "i.wav", music(), RATE)

    def refused(*_: object, **__: object) -> None:
        raise OSError("no network in this test")

    def silent(*_: object, **__: object) -> None:
        time.sleep(30)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for answer in (refused, silent):
        monkeypatch.setattr(socket, "getaddrinfo", answer)
        started = time.monotonic()
        with pytest.raises(ValueError, match="is not in the cache and the Hub cannot be reached"):
            loading.load_pipeline("nobody/nothing-of-this-name", "cpu", "auto", None)
        assert time.monotonic() - started < 3
    words = ["--inputs", str(tmp_path / "i.wav"), "--save", str(tmp_path / "o.wav"), "--model", "nobody/nothing"]
    assert infer.main(words) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "cannot be reached: connect, or pass the path of a model folder" in err


def test_folders_are_walked_and_every_failure_is_told(
    tmp_path: Path, toy_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in", tmp_path / "in" / "restored"
    odd = os.fsdecode(b"caf\xe9.wav")
    for name in ("a.wav", "1987/night/b.wav", f"1987/{odd}", ".hidden/c.wav"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        files.write(source / name, music(), RATE)
    target.mkdir()
    (source / "1987" / "broken.mp3").write_text("not audio")
    files.write(source / "z.wav", music(), RATE)
    whole = infer.restore_job

    def fails(job: infer.Job, *arguments: object) -> infer.Restored:
        if job.inputs[0].name == "a.wav":
            raise RuntimeError("out of memory")
        return whole(job, *arguments)

    monkeypatch.setattr(infer, "restore_job", fails)
    words = ["--inputs", str(source), "--save", str(target), "--model", str(toy_model), "--report"]
    assert infer.main([*words, str(tmp_path / "report.json")]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines[-3] == f"aud2studio: failed: {source / 'a.wav'}: RuntimeError: out of memory"
    assert lines[-2].startswith(f"aud2studio: failed: {source / '1987' / 'broken.mp3'} is not audio")
    assert lines[-1] == "aud2studio: error: 2 of 5 recordings could not be restored"
    found = sorted(str(path.relative_to(target)) for path in target.rglob("*.wav"))
    assert found == sorted(["1987/night/b.wav", "1987/" + odd, "z.wav"])
    assert len(json.loads((tmp_path / "report.json").read_text())) == 5


def test_parts_of_one_recorder_are_joined_only_where_that_is_asked_for(
    tmp_path: Path, toy_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    whole = (0.1 * rng.standard_normal((1, 24 * RATE))).astype(np.float32)
    parts = np.split(whole, 2, axis=1)
    paths = [tmp_path / f"{number}.wav" for number in range(2)]
    for path, part in zip(paths, parts, strict=True):
        files.write(path, part, RATE)
    words = ["--inputs", *map(str, paths), "--save", str(tmp_path / "o.wav"), "--model", str(toy_model)]
    words += ["--reconstruction", "prediction"]
    assert infer.main(words) == 2
    err = capfd.readouterr().err
    assert "they seem to be several recordings: restore each, or parts of one as one piece with --join" in err
    assert infer.main([*words, "--join", "--dryness", "0"]) == 0
    np.testing.assert_allclose(files.read(tmp_path / "o.wav").waveform, whole, atol=2e-6)


def test_a_reference_that_no_other_recording_fits_is_restored_alone(
    tmp_path: Path, toy_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    paths = [tmp_path / "front.wav", tmp_path / "another night.wav"]
    for path in paths:
        files.write(path, (0.1 * rng.standard_normal((1, 12 * RATE))).astype(np.float32), RATE)
    words = ["--save", str(tmp_path / "o.wav"), "--model", str(toy_model), "--dryness", "0"]
    assert infer.main([*words, "--inputs", *map(str, paths), "--reference", "2"]) == 0
    err = capfd.readouterr().err
    assert "fewer than two recordings can be aligned: front.wav" in err
    assert err.count("another night.wav is restored alone") == 1
    np.testing.assert_allclose(files.read(tmp_path / "o.wav").waveform, files.read(paths[1]).waveform, atol=2e-6)


@pytest.mark.parametrize("reconstruction", ["faithful", "vocoder", "blend", "prediction"])
def test_four_threads_share_a_pipeline(toy_pipeline: Aud2StudioPipeline, reconstruction: str) -> None:
    takes = [np.roll(music(1, RATE), 100 * number, axis=1) for number in range(4)]
    barrier = threading.Barrier(4)

    def restored(take: np.ndarray, is_alone: bool = True) -> np.ndarray:
        if not is_alone:
            barrier.wait()
        generator = torch.Generator().manual_seed(0)
        return toy_pipeline(take, RATE, 3, reconstruction, generator=generator).audios[0]

    expected = [restored(take) for take in takes]
    with ThreadPoolExecutor(4) as threads:
        found = [*threads.map(restored, takes, [False] * 4)]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
