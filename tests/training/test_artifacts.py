"""Indicators on sounds whose damage is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy import signal

from training.artifact_examples import main, worst
from training.artifacts import ARTIFACTS, INDICATORS, background_slope, indicators, kurtosis_growth, rates
from training.artifacts import _spectrum as spectrum
from training.html_report import keep_audio
from training.jsonl import write_rows
from training.report import write_json

pytest.importorskip("librosa", reason="onsets and chroma are librosa's: pip install .[eval]")

RATE = 44_100
SECONDS = 6
LIMITS = {indicator.key: indicator.limit for indicator in INDICATORS}


def plucked(seed: int = 0, every: float = 0.5, channels: int = 2) -> np.ndarray:
    """Notes of a major scale with a sharp attack, one every half second, with 12 ms of noise at their beginning."""
    rng = np.random.default_rng(seed)
    times = np.arange(RATE * SECONDS) / RATE
    music = np.zeros((channels, len(times)))
    for number, start in enumerate(np.arange(0.2, SECONDS - 0.3, every)):
        since = times - start
        hertz = 220 * 2 ** ([0, 2, 4, 5, 7, 9, 11][number % 7] / 12)
        note = sum(np.sin(2 * np.pi * k * hertz * since) / k for k in range(1, 9)) * np.exp(-3 * since) * (since >= 0)
        attack = rng.standard_normal(len(times)) * np.exp(-since.clip(0) / 0.004) * (since >= 0)
        music[number % channels] += 0.7 * note + 0.5 * attack
        music[(number + 1) % channels] += 0.3 * note
    return (0.1 * music).astype(np.float32)


def crowd(seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((2, RATE * SECONDS))
    return (0.02 * signal.lfilter([1, -0.5], [1], noise)).astype(np.float32)


def found(restored: np.ndarray, recording: np.ndarray, clean: np.ndarray, **options: Any) -> dict[str, float]:
    return indicators(restored.astype(np.float32), recording, clean, RATE, **{"crowd_only": True, **options})


def above(figures: dict[str, float]) -> set[str]:
    return {key for key, value in figures.items() if value > LIMITS[key]}


def test_neither_the_recording_nor_the_clean_music_has_artifacts() -> None:
    clean = plucked()
    recording = clean + crowd()
    untouched = found(recording, recording, clean)
    assert not above(untouched)
    exact = ("kurtosis", "onset_strength", "crest_db", "wobble_cents", "pumping", "onsets", "chroma")
    assert {untouched[f"artifact_{name}"] for name in exact} == {0.0}
    perfect = found(clean, recording, clean)
    assert above(perfect) <= {"artifact_kurtosis", "artifact_pumping"}  # silence has no kurtosis, and no level
    assert perfect["artifact_onsets"] == 0 and perfect["artifact_chroma"] < 0


def test_kurtosis_of_noise_and_of_what_subtraction_leaves_of_it() -> None:
    """The powers of Gaussian noise are distributed exponentially: kurtosis 4! / 2!^2 = 6; a gate raises it."""
    noise = spectrum(np.random.default_rng(0).standard_normal(RATE * 30), RATE)
    power = np.abs(noise[1:-1]) ** 2
    assert (power**4).mean() / (power**2).mean() ** 2 == pytest.approx(6, rel=0.1)
    silent = np.zeros_like(noise)
    assert kurtosis_growth(3 * noise, noise, silent) == pytest.approx(0, abs=1e-6)
    threshold = 2.0 * power.mean()
    left = np.where(np.abs(noise) ** 2 > threshold, noise, 0)
    # Above a threshold t (in means): moments of the exponential distribution from t on.
    t = 2.0

    def moment(n: int) -> float:
        return float(np.exp(-t) * sum(np.prod(range(n, n - k, -1)) * t ** (n - k) for k in range(n + 1)))

    expected = np.log(moment(4) / moment(2) ** 2 / 6)
    assert kurtosis_growth(left, noise, silent) == pytest.approx(expected, abs=0.05)


def test_slope_of_a_gain_that_follows_the_music() -> None:
    """The crowd's gain is that of a compressor with a known slope."""
    rng = np.random.default_rng(0)
    frames = 400
    level_db = 10 * np.sin(np.arange(frames) / 20)
    clean = np.zeros((1025, frames), dtype=complex)
    clean[100:110] = 10 ** (level_db / 20) * np.exp(2j * np.pi * rng.random((10, frames)))
    background = 0.1 * (rng.standard_normal((1025, frames)) + 1j * rng.standard_normal((1025, frames)))
    for slope in (0.0, 0.5, -0.3):
        restored = clean + background * 10 ** (slope * level_db / 20)
        assert background_slope(restored, clean + background, clean) == pytest.approx(slope, abs=0.02)


def test_each_damage_shows_in_its_own_indicator() -> None:
    clean = plucked()
    recording = clean + crowd()
    times = np.arange(RATE * SECONDS) / RATE

    smoothed = found(_softened(recording), recording, clean)
    assert "artifact_onset_strength" in above(smoothed)

    mono = recording.mean(axis=0, dtype=np.float64)
    peak = np.quantile(np.abs(mono), 0.999)
    clipped = np.clip(mono, -peak / 4, peak / 4)
    lost_db = 20 * np.log10(4) - 10 * np.log10(np.mean(mono**2) / np.mean(clipped**2))
    both = np.stack([clipped, clipped])
    assert found(both, recording, clean)["artifact_crest_db"] == pytest.approx(lost_db, abs=1e-3)

    # An echo 22 ms before every sound, as loud as it: what is there before an onset rises.
    early = np.roll(recording, -round(0.022 * RATE), axis=-1)
    assert "artifact_pre_echo_db" in above(found(recording + early, recording, clean))

    # A vibrato of 1 % at 4 Hz, 17 cents at most and 12 in the median of its modulus.
    depth = 0.01 / (2 * np.pi * 4)
    warped = np.stack([np.interp(times + depth * np.sin(2 * np.pi * 4 * times), times, x) for x in clean])
    wobble = found(warped, clean, clean)["artifact_wobble_cents"]
    assert wobble == pytest.approx(1200 * np.log2(1.01) / np.sqrt(2), rel=0.15)

    dull = signal.sosfiltfilt(signal.butter(4, 4000, fs=RATE, output="sos"), recording)
    assert above(found(dull, recording, clean)) >= {"artifact_highs_db"}

    side = np.stack([clean[0] - clean[1], clean[1] - clean[0]]) / 2
    narrow = found(clean - 0.5 * side, clean, clean)
    assert narrow["artifact_side_db"] == pytest.approx(20 * np.log10(2), abs=1e-4)
    assert above(narrow) == {"artifact_side_db"}


def _softened(waveform: np.ndarray) -> np.ndarray:
    """Gain that takes 60 ms to open at every attack."""
    envelope = np.abs(signal.sosfilt(signal.butter(1, 20, fs=RATE, output="sos"), np.abs(waveform).mean(axis=0)))
    slow = signal.lfilter([1 - np.exp(-1 / (0.06 * RATE))], [1, -np.exp(-1 / (0.06 * RATE))], envelope)
    return waveform * np.minimum(1, slow / np.maximum(envelope, 1e-6))


def test_invented_notes_are_found() -> None:
    """Twice as many notes as were played, half of them in a key of their own."""
    clean = plucked()
    invented = plucked(seed=3)
    shift = round(0.25 * RATE)
    off_key = np.stack([signal.resample_poly(channel, 16, 17) for channel in invented])[:, : clean.shape[-1]]
    other = np.pad(off_key, ((0, 0), (0, clean.shape[-1] - off_key.shape[-1])))
    restored = clean + np.roll(other, shift, axis=-1)
    figures = found(restored, clean, clean)
    assert above(figures) >= {"artifact_onsets", "artifact_chroma"}
    assert 0.3 < figures["artifact_onsets"] < 0.6


def test_mono_and_other_conditions_leave_figures_out() -> None:
    clean = plucked(channels=1)
    figures = found(clean, clean, clean, crowd_only=False)
    assert not {"artifact_side_db", "artifact_pumping"} & figures.keys()
    silent = np.zeros_like(clean)
    assert all(np.isfinite(value) for value in found(silent, clean, clean).values())


def test_rates_with_their_interval() -> None:
    """3 of 10 clips: Wilson's interval by hand (z = 1.96)."""
    rows = [{"artifact_side_db": 5.0 if number < 3 else 0.0} for number in range(10)] + [{"si_sdr": 1.0}]
    (figures,) = rates(rows).values()
    assert (figures["clips"], figures["rate"], figures["mean"]) == (10, 0.3, 1.5)
    z, n, p = 1.959964, 10, 0.3
    centre, half = (p + z**2 / (2 * n)), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (figures["low"], figures["high"]) == pytest.approx(
        ((centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)), abs=1e-6
    )


def test_every_artifact_has_an_indicator() -> None:
    assert {indicator.artifact for indicator in INDICATORS} == ARTIFACTS.keys()


def result(row_id: int, **figures: float) -> dict[str, Any]:
    return {"row_id": row_id, "condition": "crowd", "music_path": f"{row_id}.ogg", **figures}


def test_the_worst_clip_is_the_farthest_above_a_limit() -> None:
    rows = [result(n, artifact_crest_db=float(n), artifact_onset_strength=0.0) for n in range(5)]
    assert worst(rows, "transients")["row_id"] == 4
    rows[1]["artifact_onset_strength"] = 1.0  # in units of the spread farther above its limit than 4 dB are
    assert worst(rows, "transients")["row_id"] == 1
    assert worst(rows, "stereo") is None
    assert worst([result(0, artifact_side_db=2.9)], "stereo") is None  # not above its limit


def test_examples_are_cut_from_the_clips_that_were_kept(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "clips"
    for system, gain in (("input", 1.0), ("faithful", 0.5)):
        for number in range(2):
            times = np.arange(RATE * SECONDS) / RATE
            tone = gain * 0.5 * np.sin(2 * np.pi * 440 * (number + 1) * times)
            keep_audio(folder / system / f"{number:05d}.opus", np.stack([tone, tone]).astype(np.float32), RATE)
            write_json(folder / system / f"{number:05d}.json", result(number, artifact_side_db=5.0 * number))
    data = tmp_path / "data"
    (data / "clean").mkdir(parents=True)
    write_rows(
        data / "clean" / "inventory.jsonl", [{"path": "1.ogg", "artist": "A", "title": "T", "licence": "CC0-1.0"}]
    )
    options = ["--results", tmp_path / "results", "--data", data, "--weights", tmp_path / "weights"]
    assert main([*map(str, options)]) == 0
    examples = tmp_path / "weights" / "figures" / "artifacts"
    assert sorted(path.name for path in examples.iterdir()) == [
        "stereo.after.ogg", "stereo.before.ogg", "stereo.json", "stereo.png",
    ]  # fmt: skip
    about = json.loads((examples / "stereo.json").read_text())
    assert about == {"row_id": 1, "condition": "crowd", "music": "A T", "licence": "CC0-1.0"}
    levels = {}
    for name in ("before", "after"):
        waveform, rate = soundfile.read(examples / f"stereo.{name}.ogg")
        assert len(waveform) / rate == pytest.approx(4.0, abs=0.01)
        spectrum_of = np.abs(np.fft.rfft(waveform[:, 0]))
        assert np.argmax(spectrum_of) * rate / len(waveform) == pytest.approx(880, abs=1)
        levels[name] = waveform.std()
    assert levels["after"] / levels["before"] == pytest.approx(0.5, rel=0.05)


def test_examples_without_audio_or_results_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    (data / "clean").mkdir(parents=True)
    write_rows(data / "clean" / "inventory.jsonl", [])
    options = [*map(str, ["--results", tmp_path, "--data", data, "--weights", tmp_path / "weights"])]
    assert main(options) == 1
    assert "no results of faithful" in capsys.readouterr().err
    write_json(tmp_path / "clips" / "faithful" / "00000.json", result(0, artifact_side_db=9.0))
    assert main(options) == 1
    assert "--html" in capsys.readouterr().err
    assert not (tmp_path / "weights" / "figures" / "artifacts").exists()
