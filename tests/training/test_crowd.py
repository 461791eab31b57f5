"""Crowd and noise beds: levels, rates and spectra against what they were made for."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import welch

from training.crowd import MAKERS, SAMPLE_RATE, applause, clap_times, levelled, main, make_bed, shout, speech, whistles
from training.jsonl import read_rows
from training.nuisances import coloured_noise, hum, slow_curve, wind


def test_claps_keep_their_rate() -> None:
    rng = np.random.default_rng(0)
    for rate_hz in (2.5, 4.0, 5.5):
        intervals = np.concatenate([np.diff(clap_times(rng, rate_hz, 60.0)) for _ in range(20)])
        # They slow down by 5 % on average, from none to 20 %, and nobody claps twice within 80 ms.
        assert 1 / intervals.mean() == pytest.approx(rate_hz, rel=0.1)
        assert 0.05 < intervals.std() / intervals.mean() < 0.15
        assert intervals.min() >= 0.08


def test_applause_is_bursts_that_a_crowd_smooths() -> None:
    """The crest factor of applause falls with the number of people; its sound lies between 0.4 and 6 kHz."""
    beds = [levelled(applause(np.random.default_rng(seed), 4 * SAMPLE_RATE)) for seed in range(6)]
    crests = [np.abs(bed).max() / np.sqrt(np.mean(np.square(bed))) for bed in beds]
    assert all(crest > 3.5 for crest in crests)
    frequency, density = welch(np.concatenate(beds, axis=1), SAMPLE_RATE, nperseg=4096)
    inside = (frequency > 400) & (frequency < 6000)
    assert density[:, inside].sum() > 0.6 * density.sum()


@pytest.mark.parametrize("kind", MAKERS)
def test_beds_are_levelled_finite_stereo(kind: str) -> None:
    bed = levelled(MAKERS[kind](np.random.default_rng(1), 2 * SAMPLE_RATE))
    assert bed.shape == (2, 2 * SAMPLE_RATE) and np.isfinite(bed).all()
    level_db, peak = 10 * np.log10(np.mean(np.square(bed))), np.abs(bed).max()
    assert level_db == pytest.approx(-23.0, abs=0.01) or (level_db < -23.0 and peak == pytest.approx(0.98))
    if kind in ("applause", "cheering", "babble", "whistles", "wind", "hiss"):
        assert abs(np.corrcoef(bed)[0, 1]) < 0.8


def test_beds_are_repeatable_and_different() -> None:
    (kind, first), (_, second), (_, other) = make_bed(2, seed=1), make_bed(2, seed=1), make_bed(12, seed=1)
    assert kind == "whistles" and 10 <= first.shape[1] / SAMPLE_RATE <= 20
    np.testing.assert_array_equal(first, second)
    assert first.shape != other.shape


def test_speech_has_pitch_syllables_and_pauses() -> None:
    talk = speech(np.random.default_rng(3), 8 * SAMPLE_RATE)
    envelope = np.sqrt(np.square(talk[: len(talk) // 441 * 441]).reshape(-1, 441).mean(axis=1))
    frequency, density = welch(envelope - envelope.mean(), 100.0, nperseg=256)
    assert 1.5 < frequency[np.argmax(density * (frequency > 1.5))] < 7.0
    assert np.mean(envelope < 0.1 * envelope.max()) > 0.05


def test_shouts_are_voices_and_whistles_are_tones() -> None:
    frequency, density = welch(shout(np.random.default_rng(0)), SAMPLE_RATE, nperseg=8192)
    assert 150 < frequency[np.argmax(density)] < 2000
    frequency, density = welch(whistles(np.random.default_rng(0), 5 * SAMPLE_RATE), SAMPLE_RATE, nperseg=8192)
    assert 800 < frequency[np.argmax(density.sum(axis=0))] < 5000


def test_hum_stands_on_the_mains_harmonics() -> None:
    bed = hum(np.random.default_rng(0), 10 * SAMPLE_RATE, SAMPLE_RATE)
    spectrum = np.abs(np.fft.rfft(bed[0] * np.hanning(bed.shape[1]))) ** 2
    frequency = np.fft.rfftfreq(bed.shape[1], 1 / SAMPLE_RATE)
    near = [np.abs(frequency % mains_hz - mains_hz / 2) > mains_hz / 2 - 2 for mains_hz in (50, 60)]
    assert max(spectrum[mask].sum() for mask in near) > 0.99 * spectrum.sum()


def test_coloured_noise_has_its_slope_and_wind_is_low() -> None:
    frequency, density = welch(coloured_noise(np.random.default_rng(0), (1, 20 * SAMPLE_RATE), SAMPLE_RATE, 3.0)[0])
    frequency *= SAMPLE_RATE
    octaves = [
        10 * np.log10(density[(frequency > low) & (frequency < 2 * low)].mean()) for low in (1e3, 2e3, 4e3, 8e3)
    ]
    np.testing.assert_allclose(np.diff(octaves), -3.0, atol=0.4)
    frequency, density = welch(wind(np.random.default_rng(0), 5 * SAMPLE_RATE, SAMPLE_RATE), SAMPLE_RATE, nperseg=8192)
    assert density[:, frequency < 500].sum() > 0.9 * density.sum()


def test_slow_curve_is_standard_normal() -> None:
    curves = np.stack([slow_curve(np.random.default_rng(seed), 2000, 1000, 5.0) for seed in range(400)])
    assert np.abs(curves.mean(axis=0)).max() < 0.25
    np.testing.assert_allclose(curves.std(axis=0), 1.0, atol=0.2)


def test_bank_index_and_resuming(tmp_path: Path) -> None:
    crowds = tmp_path / "crowds"
    crowds.mkdir()
    soundfile.write(crowds / "mine.wav", 0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE), SAMPLE_RATE)
    out = tmp_path / "noise"
    main(["--out", str(out), "--count", "1", "--measured", str(crowds)])
    first = next(out.glob("applause/*.flac"))
    written = first.stat().st_mtime_ns
    main(["--out", str(out), "--count", "1", "--measured", str(crowds)])
    assert first.stat().st_mtime_ns == written
    rows = read_rows(out / "index.jsonl")
    assert [row["kind"] for row in rows] == ["applause", "crowd"]
    for row in rows:
        information = soundfile.info(out / row["path"])
        assert information.channels == 2 and information.samplerate == row["sample_rate"] == SAMPLE_RATE
        assert row["seconds"] == pytest.approx(information.duration, abs=1e-3)


def test_empty_folder_is_a_plain_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "out"), "--count", "0", "--measured", str(tmp_path)])
    assert "holds no recorded crowds" in capsys.readouterr().err
