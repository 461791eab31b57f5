"""The benchmark: its metrics against closed forms, its clips' alignment, its table, its page, its way to go on."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import signal

from training.data.material import HOLDOUT
from training.evaluation.benchmark import gains, main, report, run, score
from training.evaluation.clips import CONDITIONS, Clip, draw, filtered, load_clips, phone, render, render_all
from training.evaluation.metrics import balance_error, gap_excess
from training.evaluation.peers import PEERS, ceiling, lebart
from training.jsonl import read_rows

RATE = 44100
PHONE = {
    "highpass_hz": 100, "presence_hz": 3000, "presence_db": 4.0, "treble_db": -3.0, "lowpass_hz": 12000,
    "threshold_db": -30.0, "ratio": 3.0, "drive_db": -9.0, "codec": "aac", "kbps": 112,
}  # fmt: skip


def noise(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((1, round(seconds * RATE)))


def test_balance_error_is_the_spread_of_an_equaliser() -> None:
    """Half of the third octaves 6 dB up, half left: 3 dB about the mean."""
    waveform = torch.from_numpy(noise(10))
    size = waveform.shape[1]
    frequencies = np.fft.rfftfreq(size, 1 / RATE)
    edge = 1000 * 2 ** (-1 / 6) * 2 ** (-1 / 3) * 2 ** (1 / 6)  # between the 14th and the 15th of 27 bands
    gain = np.where(frequencies > edge, 10 ** (6 / 20), 1.0)
    equalised = torch.from_numpy(np.fft.irfft(gain * np.fft.rfft(waveform.numpy()), size))
    assert float(balance_error(equalised, waveform, RATE)) == pytest.approx(3.0, abs=0.25)
    assert float(balance_error(7 * waveform, waveform, RATE)) == pytest.approx(0.0, abs=1e-6)


def test_gap_excess_is_what_is_left_between_the_notes() -> None:
    """Bursts 40 dB above a bed: where the bed is 10 dB louder, so are the gaps."""
    bed = noise(8.0)
    bursts = np.where((np.arange(bed.shape[1]) // RATE) % 2 == 0, 1.0, 0.01) * noise(8.0, 1)
    target, louder = torch.from_numpy(bursts), torch.from_numpy(bursts + 0.01 * np.sqrt(9) * bed)
    assert float(gap_excess(target, target, RATE)) == 0.0
    assert float(gap_excess(louder, target, RATE)) == pytest.approx(10.0, abs=1.5)


def test_the_ceiling_knows_where_the_early_sound_is() -> None:
    """Two sounds in bands of their own: the best gain separates them."""
    early = signal.sosfiltfilt(signal.butter(8, 800, fs=RATE, output="sos"), noise())
    other = signal.sosfiltfilt(signal.butter(8, 3000, "high", fs=RATE, output="sos"), noise(seed=1))
    recording = (early + other).astype(np.float32)
    restored = ceiling(recording, early.astype(np.float32))
    left = np.sum((restored - early) ** 2) / np.sum(other**2)
    assert 10 * np.log10(left) < -20


def test_lebart_takes_a_tail_down_and_keeps_its_place() -> None:
    burst = noise(3.0)
    burst[:, RATE // 2 :] *= np.exp(-np.arange(burst.shape[1] - RATE // 2) / RATE * 6.9 / 2.0)
    restored = lebart(burst.astype(np.float32))
    assert restored.shape == burst.shape
    before, after = (np.square(each[:, 2 * RATE :]).mean() for each in (burst, restored))
    assert 10 * np.log10(after / before) < -2
    start = slice(0, RATE // 4)
    lags = signal.correlate(restored[0, start], burst[0, start])
    assert int(np.argmax(lags)) == RATE // 4 - 1


@pytest.mark.parametrize("name", ["noisereduce", "nara_wpe", "spectral_subtraction"])
def test_peers_keep_shape_and_place(name: str) -> None:
    recording = np.concatenate([noise(1.5), noise(1.5, 1)]).astype(np.float32)
    restored = PEERS[name](recording)
    assert restored.shape == recording.shape and restored.dtype == np.float32
    lags = signal.correlate(restored[0], recording[0])
    assert abs(int(np.argmax(np.abs(lags))) - (recording.shape[1] - 1)) == 0


def test_the_phone_is_late_by_nothing_and_its_target_shares_its_gain() -> None:
    sound = noise(4.0)
    sound[:, 2 * RATE :] *= 0.05
    early = 0.5 * sound
    recording, wanted = phone(sound.astype(np.float32), early.astype(np.float32), PHONE)
    assert recording.shape == wanted.shape == sound.shape
    lags = signal.correlate(recording[0, :RATE], wanted[0, :RATE])
    assert int(np.argmax(lags)) == RATE - 1
    quiet, loud = slice(3 * RATE, 4 * RATE), slice(RATE, 2 * RATE)
    steps = [20 * np.log10(each[0, loud].std() / each[0, quiet].std()) for each in (recording, wanted)]
    assert steps[0] < 25 and steps[1] == pytest.approx(steps[0], abs=1.0)  # 26 dB before the compressor


def test_ffmpegs_filters_are_what_they_are_called() -> None:
    waveform = noise(2.0).astype(np.float32)
    found = filtered([waveform], "lowpass=f=1000:p=2")
    frequencies, density = signal.welch(found[0], RATE, nperseg=4096)
    _, before = signal.welch(waveform[0], RATE, nperseg=4096)
    at = np.argmin(np.abs(frequencies - 1000))
    assert 10 * np.log10(density[at] / before[at]) == pytest.approx(-3.0, abs=1.0)


@pytest.fixture(scope="module")
def folders(corpus, acoustics: Path, voices: Path) -> tuple[Path, Path, Path]:
    return corpus, acoustics, voices


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One clip a condition, of 2 s, with the corpus' own splits."""
    monkeypatch.setattr("training.evaluation.clips.CONDITIONS", dict.fromkeys(CONDITIONS, (1, 1)))
    monkeypatch.setattr("training.evaluation.clips.SECONDS", 2.0)
    monkeypatch.setattr("training.evaluation.clips.LEAD_IN_S", 0.5)
    monkeypatch.setitem(HOLDOUT["music_packages"], "test", ["validation"])


def test_clips_are_drawn_from_the_test_split_alone(folders, short) -> None:
    rows = draw("test", *folders)
    assert [row["condition"] for row in rows] == list(CONDITIONS)
    assert {file for row in rows for file in row["source"]} <= {"validation0.flac", "validation1.flac"}
    assert {row["rir"] for row in rows if "rir" in row} == {"rir/arena.wav"}
    assert {row["crowd"].split("_")[0] for row in rows if "crowd" in row} == {"crowd/test"}
    assert rows == draw("test", *folders)


@pytest.mark.slow
def test_clips_are_aligned_to_the_sample(folders, short) -> None:
    for row in draw("test", *folders):
        parts = render(row, *folders)
        assert {part.shape for part in parts.values()} == {(row["channels"], 2 * RATE)}
        if row["condition"] in ("clean", "audience alone"):
            np.testing.assert_allclose(parts["recording"], parts["early"], atol=1e-6)
        if "room" in row["condition"]:
            early, dry = (np.diff(parts[name][0], 4) for name in ("early", "dry"))  # highs tell samples apart
            assert int(np.argmax(signal.correlate(early, dry))) == len(dry) - 1


@pytest.mark.slow
def test_the_command_goes_on_reports_and_shows(folders, short, toy_model: Path, tmp_path: Path, capsys) -> None:
    clips = tmp_path / "clips"
    render_all(draw("test", *folders), folders, clips)
    words = ["--clips", str(clips), "--out", str(tmp_path / "out"), "--weights", str(toy_model), "--page", "--keep"]
    assert main([*words, "--systems", "faithful,prediction,ceiling"]) == 0
    text = capsys.readouterr().out
    assert "Clean music in" in text and "| prediction" in text
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert len(lines) == 4 * len(CONDITIONS)
    assert main([*words, "--systems", "faithful,prediction,ceiling"]) == 0
    assert (tmp_path / "out" / "results.jsonl").read_text().splitlines() == lines
    page = (tmp_path / "out" / "page.html").read_text()
    assert page.count("<audio") == 3 * page.count("<img") > 0 and "://" not in page
    assert len(list((tmp_path / "out" / "kept" / "reference").iterdir())) == len(CONDITIONS)
    assert len((tmp_path / "out" / "runs.log").read_text().splitlines()) == 2
    assert main(["--clips", str(tmp_path / "nothing"), "--out", str(tmp_path)]) == 1
    assert "training.evaluation.clips" in capsys.readouterr().err
    assert main([*words, "--systems", "miracle"]) == 1


def test_gains_leave_uncorrelated_recordings_out() -> None:
    rows = []
    for name, before in (("a", 5.0), ("b", -25.0)):
        for system, more in (("input", 0.0), ("faithful", 3.0)):
            figures = {"early": before + more, "dry": before, "lsd": 10 - more, "balance": 3.0, "gaps": 5 - more}
            row = {"name": name, "system": system, "condition": "room mono", "voice": name == "b", "rtf": 0.1}
            rows.append(row | figures)
    table = gains(pd.DataFrame(rows))
    assert table[table.system == "faithful"].early_gain.tolist() == [3.0, 3.0]
    assert table[table.name == "b"].counts.tolist() == [False, False]
    assert "['b']" in report(pd.DataFrame(rows))


def test_a_result_of_another_shape_is_refused(folders, short, tmp_path: Path, monkeypatch) -> None:
    render_all(draw("test", *folders)[:1], folders, tmp_path)
    (clip,) = load_clips(tmp_path)
    assert isinstance(clip, Clip) and read_rows(tmp_path / "clips.jsonl")[0] == clip.row
    with pytest.raises(ValueError, match="shape"):
        score(clip.recording[:, 1:], clip)
    figures = score(clip.recording, clip)
    assert json.dumps(figures) and figures["early"] < 40
    monkeypatch.setattr("training.evaluation.benchmark.embed", lambda *_: np.ones((2, 3), np.float32))
    frame = run([clip], ["input"], "", tmp_path / "out", with_perceptual=True)
    assert {"mr_stft", "srmr", "embedding"} <= set(frame.columns)
