"""Several recordings of one performance, from the command line: aligned, ordered, and restored as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from concert import RATE, clock, heard, notes

from pipeline_aud2studio import files, infer
from pipeline_aud2studio.alignment.gather import decoded_bytes, follow, gather
from pipeline_aud2studio.files import AudioError
from pipeline_aud2studio.restore_file import Take, excerpt
from pipeline_aud2studio.takes import rms

TABLE = notes(21, 30.0)


def of_array(waveform: np.ndarray, tags: dict[str, str] | None = None) -> Take:
    """A take (channels, samples) that comes in blocks of odd sizes."""

    def blocks() -> Iterator[np.ndarray]:
        yield from np.array_split(waveform, [5, 7001, 90001], axis=1)

    return Take(RATE, len(waveform), waveform.shape[1], tags or {}, "PCM_16", blocks)


def samples(each: Take) -> np.ndarray:
    return np.concatenate([*each.blocks()], axis=1)


def take(offset_s: float, drift_ppm: float, seed: int, snr_db: float = 15.0, seconds: float = 15.0) -> Take:
    waveform = heard(clock(seconds, 8.0 + offset_s, drift_ppm), TABLE, seed, snr_db)
    return of_array(waveform[None], {"title": f"take {seed}"})


@pytest.fixture(scope="module")
def concert() -> list[Take]:
    """Five takes, the worst first and the best third, and what another band played."""
    other = heard(clock(15.0, 8.0, 0.0), notes(22, 30.0), 9)
    takes = [take(2.0, 40.0, 1, -2.0), take(-1.5, -60.0, 2, 4.0), take(0.0, 0.0, 3, 30.0, 12.0)]
    takes += [take(1.0, 25.0, 4, 12.0), take(-0.5, 0.0, 5, 8.0)]
    return [*takes, of_array(other[None])]


@pytest.mark.slow
def test_the_best_four_are_aligned_and_what_is_left_out_is_said(concert: list[Take], tmp_path: Path) -> None:
    names = ["a", "b", "c", "d", "e", "other"]
    said: list[str] = []
    with gather(concert, names, 4, None, False, said.append, tmp_path) as found:
        reference, takes = found.reference, found.takes
        waveforms = [samples(each) for each in takes]

    assert reference == 2 and takes[0].tags == {"title": "take 3"}
    np.testing.assert_array_equal(waveforms[0], samples(concert[2]))
    # By falling quality, which is their falling signal-to-noise ratio; the fifth is one too many to be seen.
    assert [each.tags["title"] for each in takes] == ["take 3", "take 4", "take 5", "take 2", "take 1"]
    assert [each.only_predicts for each in takes] == [False] * 4 + [True]
    assert {each.shape for each in waveforms} == {(1, 12 * RATE)}
    assert {(each.sample_rate, each.frames) for each in takes} == {(RATE, 12 * RATE)}
    assert said[0] == "a helps with the room only: recordings of better quality are there"
    assert said[1].startswith("other is left out: it does not seem to be of the same performance as c (confidence 0.0")
    assert said[2] == "c is the reference"
    # Aligned to a fraction of a sample: what is common to two takes is nearly all of what they are.
    first, second = (each[0, 2 * RATE : 10 * RATE] for each in waveforms[:2])
    lags = np.fft.irfft(np.fft.rfft(first, 2**18) * np.fft.rfft(second, 2**18).conj())
    assert abs(np.argmax(lags)) <= 1


@pytest.mark.slow
def test_the_order_of_the_inputs_does_not_matter(concert: list[Take], tmp_path: Path) -> None:
    names = ["a", "b", "c", "d", "e", "other"]
    order = [4, 5, 0, 3, 1, 2]
    shuffled, renamed = [concert[index] for index in order], [names[index] for index in order]
    with (
        gather(concert, names, 4, None, False, print, tmp_path) as expected,
        gather(shuffled, renamed, 4, None, False, print, tmp_path) as found,
    ):
        assert order[found.reference] == 2
        for one, other in zip(expected.takes, found.takes, strict=True):
            np.testing.assert_array_equal(samples(one), samples(other))


@pytest.mark.slow
def test_a_recording_whose_direct_sound_cannot_be_told_helps_with_the_room(
    concert: list[Take], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline_aud2studio.alignment.MIN_DIRECT_HEIGHT", 1e6)
    said: list[str] = []
    with gather([*concert[2:4], concert[5]], ["c", "d", "other"], 4, None, False, said.append, tmp_path) as found:
        assert [each.only_predicts for each in found.takes] == [False, True]
        first, second = (samples(each)[0, 2 * RATE : 10 * RATE] for each in found.takes)
    lags = np.fft.irfft(np.fft.rfft(first, 2**18) * np.fft.rfft(second, 2**18).conj())
    assert abs(np.argmax(lags)) <= 0.03 * RATE
    assert said[0].startswith("d helps with the room only: it is too short, noisy or reverberant")
    assert said[1].startswith("other is left out")


def test_too_few_are_an_error(concert: list[Take], tmp_path: Path) -> None:
    with (
        pytest.raises(AudioError, match="fewer than two recordings can be aligned: other does not seem to be of"),
        gather([concert[2], concert[5]], ["c", "other"], 4, None, False, print, tmp_path),
    ):
        pass


def test_parts_of_one_recorder_are_refused_beside_a_recording_that_fits(concert: list[Take], tmp_path: Path) -> None:
    names = ["STE-000.wav", "balcony.wav", "STE-001.wav"]
    with (
        pytest.raises(
            AudioError, match="STE-001.wav follows STE-000.wav and has no sound in common with it: .*--join"
        ),
        gather([concert[2], concert[3], concert[5]], names, 4, 0, False, print, tmp_path),
    ):
        pass


def test_which_recordings_follow_each_other() -> None:
    def timed(begins_s: float, date: bytes = b"2026-12-01") -> Take:
        body = bytes(320) + date + b"20-00-00" + round(begins_s * RATE).to_bytes(8, "little") + bytes(256)
        return replace(of_array(np.zeros((2, 10 * RATE), np.float32)), chunks=(b"bext" + bytes(4) + body,))

    plain = of_array(np.zeros((2, RATE), np.float32))
    for names, expected in [
        (("STE-000.wav", "STE-001.wav"), [(0, 1)]),
        (("2026-12-01 9.wav", "2026-12-01 10.wav"), [(0, 1)]),
        (("s2t1.wav", "s1t2.wav"), []),
        (("front.wav", "front2.wav"), []),
        (("STE-000.wav", "STE-002.wav"), []),
    ]:
        assert [*follow([plain, plain], names)] == expected, names
    assert [*follow([plain, replace(plain, sample_rate=48000)], ("a1.wav", "a2.wav"))] == []
    assert [*follow([timed(3610.5), timed(3600)], ("x.wav", "y.wav"))] == [(1, 0)]
    assert [*follow([timed(3600), timed(3605)], ("x.wav", "y.wav"))] == []
    assert [*follow([timed(3600), timed(3610.5, b"2026-12-02")], ("x.wav", "y.wav"))] == []


def test_the_disk_space_of_decoded_takes_is_what_they_are_written_with(concert: list[Take]) -> None:
    assert decoded_bytes(concert[1:3]) == 4 * (15 + 12) * RATE


@pytest.mark.parametrize(("start_s", "end_s"), [(0.2, 0.9), (None, 0.3), (0.5, None), (0.4, 99.0)])
def test_an_excerpt_of_a_take_is_what_a_slice_is(start_s: float | None, end_s: float | None) -> None:
    waveform = np.random.default_rng(0).standard_normal((2, RATE)).astype(np.float32)
    part = excerpt(of_array(waveform), Path("take.wav"), start_s, end_s)
    wanted = waveform[:, round((start_s or 0) * RATE) : None if end_s is None else round(end_s * RATE)]
    np.testing.assert_array_equal(samples(part), wanted)
    assert part.frames == wanted.shape[1]


@pytest.fixture
def cli(toy_model: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = infer.main([str(argument) for argument in arguments] + ["--model", str(toy_model)])
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.mark.slow
def test_the_command_aligns_and_restores_the_reference(cli, concert: list[Take], tmp_path: Path) -> None:
    paths = []
    for name, audio in zip("abc", concert[:3], strict=True):
        paths.append(tmp_path / f"{name}.wav")
        files.write(paths[-1], samples(audio), RATE, "PCM_16", audio.tags)

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


def test_zeros_before_a_take_begins_are_no_quiet_music() -> None:
    """A take that began late weighs as much as the same take cut to where it recorded."""
    music = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE + 0.1))[None].astype(np.float32)
    late = np.concatenate([np.zeros_like(music), music], axis=1)
    assert rms(late) == pytest.approx(rms(music), rel=1e-3)
    assert rms(music) == pytest.approx(0.5 / np.sqrt(2), rel=1e-3)
