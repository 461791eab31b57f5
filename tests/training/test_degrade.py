"""What a row says is what the audio has: levels, ratios, decay, time, and the same bits every time."""

import json
from typing import Any

import numpy as np
import pytest
from scipy import signal

from training.degrade import CONDITIONS, OFF_DB, RANGES, draw, render, take_response
from training.device import Device
from training.jsonl import read_rows
from training.sources import NoiseBed, Roots, inside, read_music, read_responses, read_span

SAMPLE_RATE = 44_100
OFFSET_S, SECONDS = 1.5, 2.0


def drawn(corpus: Roots, condition: str, seed: int = 0, venue: int = 0, **options: Any) -> dict[str, Any]:
    music, rirs, noise = (
        [row for row in read_rows(path) if row["split"] == "train"]
        for path in (
            corpus.clean_music_dir / "inventory.jsonl",
            corpus.rir_dir / "index.jsonl",
            corpus.noise_dir / "index.jsonl",
        )
    )
    settings = {"offset_s": OFFSET_S, "seconds": SECONDS, "channels": 2, **options}
    return {
        "row_id": 0,
        "seed": seed,
        "split": "train",
        **draw(np.random.default_rng(seed), condition, music[0], rirs[venue], noise, **settings),
    }


def power_db(waveform: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(waveform, dtype=np.float64))))


def lag(recorded: np.ndarray, played: np.ndarray) -> float:
    """Delay in samples, whitened (GCC-PHAT) since music is not, refined by a parabola on a 16 times finer grid."""
    length = 2 * len(played)
    cross = np.fft.rfft(recorded, length) * np.conj(np.fft.rfft(played, length))
    fine = np.fft.irfft(cross / (np.abs(cross) + 1e-12), 16 * length)
    peak = int(np.argmax(fine))
    return (peak - 16 * length if peak > 8 * length else peak) / 16


@pytest.mark.parametrize("condition", CONDITIONS)
def test_same_row_same_bits(corpus: Roots, condition: str) -> None:
    row = drawn(corpus, condition, seed=3, num_takes=2)
    first = render(row, corpus)
    second = render(json.loads(json.dumps(row)), corpus)
    for name in ("recordings", "clean", "early"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("channels", [1, 2])
def test_shapes(corpus: Roots, condition: str, channels: int) -> None:
    pair = render(drawn(corpus, condition, num_takes=3, channels=channels), corpus)
    samples = round(SECONDS * SAMPLE_RATE)
    assert pair.recordings.shape == (3, channels, samples)
    assert pair.clean.shape == pair.early.shape == (channels, samples)
    assert {part.dtype for part in (pair.recordings, pair.clean, pair.early)} == {np.dtype(np.float32)}
    assert np.isfinite(pair.recordings).all()


def test_clean_is_the_file(corpus: Roots) -> None:
    row = drawn(corpus, "phone")
    expected = read_span(corpus.clean_music_dir / row["music_path"], OFFSET_S, SECONDS, SAMPLE_RATE)
    np.testing.assert_array_equal(render(row, corpus).clean, expected)


def test_clean_music_is_recorded_as_it_is(corpus: Roots) -> None:
    pair = render(drawn(corpus, "clean", num_takes=2), corpus)
    np.testing.assert_allclose(pair.recordings[0], pair.clean, atol=1e-6)
    np.testing.assert_array_equal(pair.early, pair.clean)


def test_an_audience_alone_stays_as_it_is_and_holds_no_music(corpus: Roots) -> None:
    row = drawn(corpus, "audience", num_takes=2)
    pair = render(row, corpus)
    np.testing.assert_array_equal(pair.clean, pair.recordings[0])
    np.testing.assert_allclose(pair.early, pair.clean, atol=1e-6)
    # As loud as beside the music, of which nothing is left: another piece gives the same but for its level.
    other = render({**row, "music_path": "train1.flac" if "0" in row["music_path"] else "train0.flac"}, corpus)
    for recorded, again in zip(pair.recordings, other.recordings, strict=True):
        likeness = np.vdot(recorded, again) / np.sqrt(np.vdot(recorded, recorded) * np.vdot(again, again))
        assert likeness == pytest.approx(1.0, abs=1e-5)
    beside = render({**row, "condition": "room_crowd"}, corpus)
    music = beside.recordings[0] - pair.recordings[0]
    assert power_db(music) - power_db(pair.recordings[0]) == pytest.approx(row["snr_db"][0], abs=0.05)


def test_crowd_is_at_the_recorded_snr(corpus: Roots) -> None:
    for seed in range(4):
        row = drawn(corpus, "crowd", seed=seed, num_takes=2)
        pair = render(row, corpus)
        for take, snr_db in enumerate(row["snr_db"]):
            level = 10 ** (-row["level_db"][take] / 20)
            recorded = level * pair.recordings[take]
            if row["misalignment_s"][take] == 0.0:
                assert power_db(pair.clean) - power_db(recorded - pair.clean) == pytest.approx(snr_db, abs=0.05)


def test_crowd_in_a_room_is_at_the_recorded_snr_to_the_reverberant_music(corpus: Roots) -> None:
    row = drawn(corpus, "room_crowd", seed=1)
    silent = row | {"bed_path": [], "bed_db": [], "bed_offset_s": []}
    music = render(silent, corpus).recordings[0]
    crowd = render(row, corpus).recordings[0] - music
    assert power_db(music) - power_db(crowd) == pytest.approx(row["snr_db"][0], abs=0.05)


def test_local_noises_are_at_their_recorded_levels(corpus: Roots) -> None:
    row = drawn(corpus, "crowd", seed=2) | {"bed_path": [], "bed_db": [], "bed_offset_s": []}
    clean = render(row, corpus)
    for kind in ("hum", "hiss", "wind", "handling"):
        noisy = render(row | {f"{kind}_path": [f"train_{kind}.flac"], f"{kind}_snr_db": [17.0]}, corpus)
        assert power_db(clean.clean) - power_db(noisy.recordings - clean.recordings) == pytest.approx(17.0, abs=0.05)


@pytest.mark.parametrize("venue", [0, 1])
def test_room_has_the_recorded_direct_to_reverberant_ratio(corpus: Roots, venue: int) -> None:
    """Measured on a click instead of music, by definition: energy to 2.5 ms over energy after it."""
    row = drawn(corpus, "room", seed=4, venue=venue, num_takes=2)
    responses = read_responses(corpus.rir_dir / row["rir_path"], SAMPLE_RATE)
    for take, drr_db in enumerate(row["drr_db"]):
        energy = np.square(take_response(row, responses, take), dtype=np.float64).sum(axis=0)
        assert 10 * np.log10(energy[:110].sum() / energy[110:].sum()) == pytest.approx(drr_db, abs=0.05)


def test_room_recording_is_the_convolution_with_that_response(corpus: Roots) -> None:
    row = drawn(corpus, "room", seed=5)
    pair = render(row, corpus)
    response = take_response(row, read_responses(corpus.rir_dir / row["rir_path"], SAMPLE_RATE), 0)
    lead_in = round(row["lead_in_s"] * SAMPLE_RATE)
    music = read_span(
        corpus.clean_music_dir / row["music_path"],
        OFFSET_S - row["lead_in_s"],
        SECONDS + row["lead_in_s"],
        SAMPLE_RATE,
    )
    for channel in range(2):
        wet = np.convolve(music[channel, : lead_in + 4000].astype(float), response[channel])
        np.testing.assert_allclose(pair.recordings[0, channel, :4000], wet[lead_in : lead_in + 4000], atol=1e-5)
        early = np.convolve(music[channel, : lead_in + 4000].astype(float), response[channel, :2205])
        np.testing.assert_allclose(pair.early[channel, :4000], early[lead_in : lead_in + 4000], atol=1e-5)


def test_decay_is_shortened_to_the_recorded_time(corpus: Roots) -> None:
    rows = [drawn(corpus, "room", seed=seed, ranges="train") for seed in range(30)]
    shortened = next(row for row in rows if row["decay_per_s"] > 1.0)
    responses = read_responses(corpus.rir_dir / shortened["rir_path"], SAMPLE_RATE)
    response = take_response(shortened | {"drr_db": [-10.0]}, responses, 0)[0]
    decay_db = 10 * np.log10(np.cumsum(np.square(response[::-1], dtype=np.float64))[::-1])
    decay_db -= decay_db[0]
    first, last = (int(np.argmax(decay_db < level)) for level in (-5.0, -25.0))
    assert 3.0 * (last - first) / SAMPLE_RATE == pytest.approx(shortened["rt60_s"], rel=0.05)


def test_target_has_the_level_and_place_of_the_direct_path(corpus: Roots) -> None:
    """With next to no reverberation the recording becomes the target, whatever the response's own level."""
    for venue in (0, 1):
        row = drawn(corpus, "room", seed=6, venue=venue) | {"drr_db": [60.0]}
        pair = render(row, corpus)
        assert power_db(pair.recordings[0] - pair.clean) < power_db(pair.clean) - 20
        gain = np.vdot(pair.clean, pair.recordings[0]) / np.vdot(pair.clean, pair.clean)
        assert 20 * np.log10(gain) == pytest.approx(0.0, abs=0.2)


@pytest.mark.parametrize("seed", range(6))
def test_target_is_aligned_after_the_whole_journey(corpus: Roots, seed: int) -> None:
    row = drawn(corpus, "phone", seed=seed, num_takes=1) | {"drr_db": [20.0], "snr_db": [40.0]}
    pair = render(row | {"wind_path": [""], "handling_path": [""], "hum_path": [""]}, corpus)
    for channel in range(2):
        assert abs(lag(pair.recordings[0, channel], pair.clean[channel])) < 0.5


def test_takes_are_aligned_up_to_the_recorded_misalignment(corpus: Roots) -> None:
    row = drawn(corpus, "room", seed=7, num_takes=3) | {
        "drr_db": [30.0] * 3,
        "misalignment_s": [0.0, 0.8e-3, -5.25 / SAMPLE_RATE],
    }
    pair = render(row, corpus)
    for take, misalignment_s in enumerate(row["misalignment_s"]):
        expected = misalignment_s * SAMPLE_RATE
        assert lag(pair.recordings[take, 0], pair.clean[0]) == pytest.approx(expected, abs=0.1)


def test_takes_share_the_performance_and_differ_in_place_and_device(corpus: Roots) -> None:
    row = drawn(corpus, "phone", seed=8, num_takes=4, venue=1)
    sides = list(zip(row["rir_left"], row["rir_right"], strict=True))
    assert len(set(sides)) == 4
    assert all(right == left + 1 and left % 2 == 0 for left, right in sides)
    assert row["misalignment_s"][0] == row["level_db"][0] == 0.0
    assert len({Device.from_row(row, take) for take in range(4)}) == 4
    assert len(set(row["drr_db"])) == len(set(row["snr_db"])) == 4


def test_crowd_is_partly_common_to_the_takes(corpus: Roots) -> None:
    row = drawn(corpus, "crowd", seed=9, num_takes=2, channels=1)
    row |= {"crowd_in_room": 0.0, "misalignment_s": [0.0, 0.0], "level_db": [0.0, 0.0], "snr_db": [0.0, 0.0]}
    for own, expected in ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0)):
        pair = render(row | {"crowd_own": own}, corpus)
        first, second = (pair.recordings - pair.clean)[:, 0]
        assert np.corrcoef(first, second)[0, 1] == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("name", RANGES)
def test_draws_fill_their_ranges(corpus: Roots, name: str) -> None:
    rows = [drawn(corpus, "room_crowd", seed=seed, ranges=name) for seed in range(300)]
    for key, (low, high) in (("snr_db", RANGES[name].snr_db), ("drr_db", RANGES[name].drr_db)):
        values = [value for row in rows for value in row[key]]
        assert low <= min(values) < low + 0.5
        assert high - 0.5 < max(values) <= high
        assert np.mean(values) == pytest.approx((low + high) / 2, abs=1.0)
    assert all(RANGES[name].rt60_s[0] <= row["rt60_s"] <= RANGES[name].rt60_s[1] for row in rows)


def test_conditions_hold_what_they_say(corpus: Roots) -> None:
    for seed in range(20):
        rows = {condition: drawn(corpus, condition, seed=seed) for condition in CONDITIONS}
        assert [rows[name]["music_in_room"] for name in CONDITIONS] == [0, 1, 1, 1]
        assert [bool(rows[name]["bed_path"]) for name in CONDITIONS] == [True, False, True, True]
        for name in ("crowd", "room", "room_crowd"):
            assert Device.from_row(rows[name], 0) == Device()
            assert rows[name]["crosstalk_db"] == rows[name]["spill_db"] == OFF_DB
            assert not rows[name]["pa_low_db"] and not rows[name]["pa_limit_hz"]
    phones = [drawn(corpus, "phone", seed=seed) for seed in range(60)]
    assert any(row["crosstalk_db"] > OFF_DB for row in phones)
    assert any(row["spill_db"] > OFF_DB for row in phones)
    for kind in ("hum", "hiss", "wind", "handling"):
        assert any(row[f"{kind}_path"][0] for row in phones)


def test_leaks_are_as_loud_and_as_late_as_recorded(corpus: Roots) -> None:
    row = drawn(corpus, "crowd") | {"bed_path": [], "bed_db": [], "bed_offset_s": []}
    clean = render(row, corpus).clean
    crossed = render(row | {"crosstalk_db": -20.0}, corpus).recordings[0]
    np.testing.assert_allclose(crossed, clean + 0.1 * clean[::-1], atol=1e-6)
    spilled = render(row | {"spill_db": -20.0, "spill_delay_s": 0.01}, corpus).recordings[0]
    np.testing.assert_allclose(spilled[:, 441:], clean[:, 441:] + 0.1 * clean[:, :-441], atol=1e-6)


def test_responses_are_normalised_whatever_the_file(corpus: Roots) -> None:
    """Upside down, too quiet and at another rate: the direct path still arrives at once, upright, with unit energy."""
    import soundfile

    original = read_responses(corpus.rir_dir / "train_hall.wav", SAMPLE_RATE)
    path = corpus.rir_dir / "other.wav"
    soundfile.write(path, -0.01 * original.T, SAMPLE_RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_responses(path, SAMPLE_RATE), original, atol=1e-5)
    resampled = read_responses(path, 48_000)
    energy = np.square(resampled[:, :120]).sum(axis=1)
    np.testing.assert_allclose(energy, 1.0, rtol=1e-5)
    assert np.all(np.abs(resampled).argmax(axis=1) == 0)
    assert np.all(resampled[:, 0] > 0)


def test_stems_are_summed(corpus: Roots) -> None:
    row = drawn(corpus, "crowd") | {"music_stems": ["train0.flac", "train1.flac"]}
    stems = [
        read_span(corpus.clean_music_dir / name, OFFSET_S - row["lead_in_s"], SECONDS + row["lead_in_s"], SAMPLE_RATE)
        for name in row["music_stems"]
    ]
    np.testing.assert_allclose(read_music(row, corpus), stems[0] + stems[1], atol=1e-7)
    np.testing.assert_allclose(read_music(row | {"channels": 1}, corpus)[0], (stems[0] + stems[1]).mean(0), atol=1e-7)


def test_another_sample_rate_is_the_same_music(corpus: Roots) -> None:
    path = corpus.clean_music_dir / "train0.flac"
    at_48k = read_span(path, 1.0, 1.0, 48_000)
    assert at_48k.shape == (2, 48_000)
    expected = signal.resample_poly(read_span(path, 0.5, 2.0, SAMPLE_RATE), 160, 147, axis=-1)[:, 24_000:72_000]
    inner = slice(2000, -2000)
    assert power_db((at_48k - expected)[:, inner]) < power_db(expected) - 30


def test_span_is_padded_past_both_ends(corpus: Roots) -> None:
    path = corpus.clean_music_dir / "train0.flac"
    span = read_span(path, -0.5, 6.0, SAMPLE_RATE)
    assert span.shape == (2, 6 * SAMPLE_RATE)
    assert not span[:, :22_050].any() and not span[:, -22_050:].any()
    np.testing.assert_array_equal(span[:, 22_050:44_100], read_span(path, 0.0, 0.5, SAMPLE_RATE))


@pytest.mark.parametrize("seconds", [0.7, 3.0, 30.0])
def test_noise_bed_has_any_length_unit_level_and_no_seam(corpus: Roots, seconds: float) -> None:
    samples = round(seconds * SAMPLE_RATE)
    bed = NoiseBed(corpus.noise_dir / "train_crowd.flac", 123.4, samples, SAMPLE_RATE)
    piece = bed.piece(0, 0.9)
    assert piece.shape == (samples,)
    assert power_db(bed.loop) == pytest.approx(0.0, abs=0.01)
    short_term = np.square(piece[: samples // 441 * 441]).reshape(-1, 441).mean(axis=1)
    assert short_term.min() > 0.5 and short_term.max() < 2.0


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.flac", "a/../../x.flac", "C:/x.flac", "a\\b.flac", ""])
def test_paths_stay_in_their_folder(corpus: Roots, path: str) -> None:
    with pytest.raises(ValueError, match="plain path"):
        inside(corpus.clean_music_dir, path)


def test_bad_draws_say_why(corpus: Roots) -> None:
    with pytest.raises(ValueError, match="unknown condition 'rain'"):
        drawn(corpus, "rain")
    with pytest.raises(ValueError, match="unknown ranges 'all'"):
        drawn(corpus, "room", ranges="all")
    with pytest.raises(ValueError, match="has 8 microphones, not 9"):
        drawn(corpus, "room", num_takes=9)
    with pytest.raises(ValueError, match="does not exist"):
        render(drawn(corpus, "room") | {"rir_path": "gone.wav"}, corpus)
