"""Several recordings of one performance, from the command line: aligned, ordered, and restored as one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from concert import RATE, clock, heard, notes

from pipeline_aud2studio import files, infer
from pipeline_aud2studio.files import Audio, AudioError
from pipeline_aud2studio.gather import gather
from pipeline_aud2studio.takes import rms

TABLE = notes(21, 30.0)


def take(offset_s: float, drift_ppm: float, seed: int, snr_db: float = 15.0, seconds: float = 15.0) -> Audio:
    waveform = heard(clock(seconds, 8.0 + offset_s, drift_ppm), TABLE, seed, snr_db)
    return Audio(waveform[None], RATE, {"title": f"take {seed}"}, "PCM_16")


@pytest.fixture(scope="module")
def concert() -> list[Audio]:
    """Five takes, the worst first and the best third, and what another band played."""
    other = heard(clock(15.0, 8.0, 0.0), notes(22, 30.0), 9)
    takes = [take(2.0, 40.0, 1, -2.0), take(-1.5, -60.0, 2, 4.0), take(0.0, 0.0, 3, 30.0, 12.0)]
    takes += [take(1.0, 25.0, 4, 12.0), take(-0.5, 0.0, 5, 8.0)]
    return [*takes, Audio(other[None], RATE)]


def test_the_best_four_are_aligned_and_what_is_left_out_is_said(concert: list[Audio]) -> None:
    names = ["a", "b", "c", "d", "e", "other"]
    said: list[str] = []
    found = gather(concert, names, 4, None, False, said.append)
    reference, takes = found.reference, found.takes

    assert reference == 2 and takes[0].tags == {"title": "take 3"}
    np.testing.assert_array_equal(takes[0].waveform, concert[2].waveform)
    # By falling quality, which is their falling signal-to-noise ratio; the fifth is one too many.
    assert [each.tags["title"] for each in takes] == ["take 3", "take 4", "take 5", "take 2"]
    assert {(each.waveform.shape, each.sample_rate) for each in takes} == {((1, 12 * RATE), RATE)}
    assert said[0] == "a is left out: 4 recordings of better quality are there"
    assert said[1] == "other is left out: it has no overlap with c that could be found"
    assert said[2] == "c is the reference"
    # Aligned to a fraction of a sample: what is common to two takes is nearly all of what they are.
    first, second = (each.waveform[0, 2 * RATE : 10 * RATE] for each in takes[:2])
    lags = np.fft.irfft(np.fft.rfft(first, 2**18) * np.fft.rfft(second, 2**18).conj())
    assert abs(np.argmax(lags)) <= 1


def test_the_order_of_the_inputs_does_not_matter(concert: list[Audio]) -> None:
    names = ["a", "b", "c", "d", "e", "other"]
    order = [4, 5, 0, 3, 1, 2]
    expected = gather(concert, names, 4, None, False, print).takes
    shuffled = [concert[index] for index in order]
    found = gather(shuffled, [names[index] for index in order], 4, None, False, print)
    number, takes = found.reference, found.takes
    assert order[number] == 2
    for one, other in zip(expected, takes, strict=True):
        np.testing.assert_array_equal(one.waveform, other.waveform)


def test_too_few_are_an_error(concert: list[Audio]) -> None:
    with pytest.raises(AudioError, match="fewer than two recordings can be aligned: other has no overlap with c"):
        gather([concert[2], concert[5]], ["c", "other"], 4, None, False, print)


@pytest.fixture
def cli(toy_model: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = infer.main([str(argument) for argument in arguments] + ["--model", str(toy_model)])
        out, err = capfd.readouterr()
        return status, out, err

    return run


def test_the_command_aligns_and_restores_the_reference(cli, concert: list[Audio], tmp_path: Path) -> None:
    paths = []
    for name, audio in zip("abc", concert[:3], strict=True):
        paths.append(tmp_path / f"{name}.wav")
        files.write(paths[-1], audio.waveform, RATE, "PCM_16", audio.tags)

    status, out, err = cli("--inputs", *paths, "--save", tmp_path / "best.wav", "--start", 3, "--end", 5)
    assert status == 0, err
    assert "c.wav is the reference" in err
    restored = files.read(tmp_path / "best.wav")
    assert restored.waveform.shape == (1, 2 * RATE) and restored.tags == {"title": "take 3"}

    second = tmp_path / "second.wav"
    status, _, err = cli("--inputs", *paths, "--save", second, "--reference", 2, "--start", 3, "--end", 5)
    assert status == 0, err
    assert files.read(second).tags == {"title": "take 2"}

    for extra, message in [
        (["--reference", 4], "the number of an input, 1 to 3"),
        (["--reference", 1, "--aligned"], "the first input is the reference"),
        (["--start", 100], "ends before the start"),
    ]:
        status, _, err = cli("--inputs", *paths, "--save", tmp_path / "o.wav", *extra)
        assert (status, message in err) == (2, True), err


def test_align_is_a_command_of_its_own(tmp_path: Path, concert: list[Audio], capfd) -> None:
    paths = [tmp_path / "b.wav", tmp_path / "c.wav"]
    for path, audio in zip(paths, concert[1:3], strict=True):
        files.write(path, audio.waveform, RATE, "PCM_16")
    words = ["align", "--inputs", *map(str, paths), "--save-dir", str(tmp_path / "aligned")]
    assert infer.main(words) == 0
    said = capfd.readouterr().out.splitlines()
    assert said[0].startswith("b.wav: starts at -1.49999") and said[1] == "c.wav: reference"
    assert soundfile.info(tmp_path / "aligned" / "b.wav").frames == 12 * RATE
    assert infer.main(words) == 2
    assert "exists already: pass --overwrite" in capfd.readouterr().err


def test_zeros_before_a_take_begins_are_no_quiet_music() -> None:
    """A take that began late weighs as much as the same take cut to where it recorded."""
    music = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE + 0.1))[None].astype(np.float32)
    late = np.concatenate([np.zeros_like(music), music], axis=1)
    assert rms(late) == pytest.approx(rms(music), rel=1e-3)
    assert rms(music) == pytest.approx(0.5 / np.sqrt(2), rel=1e-3)
