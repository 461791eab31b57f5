"""An interrupted run goes on to the bit where it stopped."""

import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipeline_aud2studio.files import AudioError
from pipeline_aud2studio.partial import Partial, identify, partial_path
from pipeline_aud2studio.restore_file import Settings, restore, take_of_file
from pipeline_aud2studio.source import ArraySource

RATE = 44100
IDENTITY = "5" * 64


def recording(channels: int, seconds: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((channels, round(seconds * RATE)))
    return (0.05 * noise).astype(np.float32)


@pytest.mark.parametrize("reconstruction", ["faithful", "vocoder", "blend"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_stream_goes_on_from_any_sample(toy_pipeline, reconstruction, channels):
    source = ArraySource(recording(channels, 5.0))

    def streamed(num_done: int) -> np.ndarray:
        blocks = toy_pipeline.stream([source], 2, reconstruction, torch.Generator().manual_seed(3), num_done=num_done)
        return np.concatenate([np.zeros((channels, 0), np.float32), *blocks], axis=1)

    whole = streamed(0)
    assert whole.shape[1] == source.num_samples
    for num_done in (1, 65_536, 131_072, 180_001, source.num_samples - 1, source.num_samples):
        np.testing.assert_array_equal(streamed(num_done), whole[:, num_done:])


def test_a_stream_that_goes_on_does_not_repeat_the_work(toy_pipeline, monkeypatch):
    source, calls = ArraySource(recording(1, 9.0)), []
    forward = toy_pipeline.unet.forward
    monkeypatch.setattr(
        toy_pipeline.unet, "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    )
    list(toy_pipeline.stream([source], batch_size=1))
    whole, calls[:] = len(calls), []
    list(toy_pipeline.stream([source], batch_size=1, num_done=source.num_samples // 2))
    assert whole / 2 - 1 <= len(calls) <= whole / 2 + 3


@pytest.mark.parametrize("num_done", [-1, 1001])
def test_what_was_not_there_cannot_be_done(toy_pipeline, num_done):
    with pytest.raises(ValueError, match="within 0 and 1000 samples"):
        list(toy_pipeline.stream([ArraySource(np.ones((1, 1000), np.float32))], num_done=num_done))


class _Interrupt(Exception):
    pass


@pytest.mark.parametrize(("reconstruction", "rate"), [("faithful", 44100), ("faithful", 48000), ("vocoder", 44100)])
def test_an_interrupted_restoration_ends_like_an_undisturbed_one(
    toy_pipeline, tmp_path, monkeypatch, reconstruction, rate
):
    source, partial = tmp_path / "i.wav", tmp_path / "o.wav.partial"
    soundfile.write(source, recording(2, 11.0).T, rate, subtype="FLOAT")
    settings, said = Settings(steps=1, reconstruction=reconstruction), []

    def restored(resume: bool) -> np.ndarray:
        take = take_of_file(source, None, None, downmix=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with restore([take], lambda: toy_pipeline, settings, tmp_path, said.append, partial, resume) as done:
                return np.concatenate([*done.result.blocks(done.gain)], axis=1)

    undisturbed = restored(resume=False)
    assert not partial.exists() and not said

    forward, left = toy_pipeline.unet.forward, [0]

    def failing(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise _Interrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(toy_pipeline.unet, "forward", failing)
    for resume, calls in ((False, 6), (True, 7)):  # interrupted twice
        left[0] = calls
        with pytest.raises(_Interrupt):
            restored(resume)
        assert partial.exists()
    monkeypatch.setattr(toy_pipeline.unet, "forward", forward)
    with pytest.raises(AudioError, match="pass --resume"):
        restored(resume=False)
    assert partial.exists()
    np.testing.assert_array_equal(restored(resume=True), undisturbed)
    assert not partial.exists()
    found = [float(text.split()[3]) for text in said]  # "goes on after … s"
    assert len(found) == 2 and 0 < found[0] < found[1] < 11


def test_other_options_or_another_input_begin_anew(toy_pipeline, tmp_path):
    one = identify(toy_pipeline, ["a"], 8, "faithful", 0)
    assert one == identify(toy_pipeline, ["a"], 8, "faithful", 0) and len(one) == 64
    with torch.no_grad():
        weight = next(toy_pipeline.unet.parameters())
        kept = weight.flatten()[0].item()
        weight.view(-1)[0] = kept + 1e-3
        others = [identify(toy_pipeline, ["a"], 8, "faithful", 0)]
        weight.view(-1)[0] = kept
    others += [identify(toy_pipeline, ["b"], 8, "faithful", 0), identify(toy_pipeline, ["a"], 8, "faithful", 1)]
    assert len({one, *others}) == 4

    path = tmp_path / "p"
    with pytest.raises(_Interrupt), Partial(path, IDENTITY, 2, False) as partial:
        partial.extend([np.ones((2, 10), np.float32)])
        raise _Interrupt
    with Partial(path, "6" * 64, 2, True) as partial:
        assert partial.is_stale and partial.found == partial.num_samples == 0
    assert not path.exists()


def test_a_sample_that_was_not_written_wholly_is_not_there(tmp_path):
    path, waveform = tmp_path / "p", recording(2, 0.5)
    with pytest.raises(_Interrupt), Partial(path, IDENTITY, 2, False) as partial:
        partial.extend(np.split(waveform, [7, 5000], axis=1))
        raise _Interrupt
    path.write_bytes(path.read_bytes()[:-21])  # 2 samples of two channels and a part of a third
    with Partial(path, IDENTITY, 2, True) as partial:
        assert partial.found == waveform.shape[1] - 3
        np.testing.assert_array_equal(np.concatenate([*partial.blocks()], axis=1), waveform[:, :-3])
        partial.extend([waveform[:, -3:]])
        np.testing.assert_array_equal(np.concatenate([*partial.blocks()], axis=1), waveform)


def test_two_processes_do_not_write_to_one_result(tmp_path):
    with Partial(tmp_path / "p", IDENTITY, 1, False), pytest.raises(AudioError, match="another process"):
        Partial(tmp_path / "p", IDENTITY, 1, True)


def test_a_killed_command_goes_on(toy_model: Path, tmp_path: Path):
    source, output, whole = (tmp_path / name for name in ("i.wav", "o.wav", "whole.wav"))
    soundfile.write(source, recording(2, 30.0).T, RATE)
    command = [sys.executable, "-m", "pipeline_aud2studio.infer", "--inputs", str(source), "--model", str(toy_model)]
    with subprocess.Popen([*command, "--save", str(output)], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (partial_path(output).exists() and partial_path(output).stat().st_size > 500_000):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not output.exists()

    refused = subprocess.run([*command, "--save", str(output)], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "--resume" in refused.stderr.splitlines()[-1]
    resumed = subprocess.run([*command, "--save", str(output), "--resume"], capture_output=True, text=True, check=True)
    assert "goes on after" in resumed.stderr
    subprocess.run([*command, "--save", str(whole)], capture_output=True, check=True)
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i.wav", "o.wav", "whole.wav"]
