"""Alignment against recordings whose clocks are known: music that is a formula can be sampled at any instant."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from concert import RATE, clock, heard, music, notes
from scipy.signal import oaconvolve

from pipeline_aud2studio import files, infer
from pipeline_aud2studio.alignment import Alignment, align
from pipeline_aud2studio.alignment.clock import Recording, Segment, blocks_on_reference_clock, read_on_reference_clock
from pipeline_aud2studio.alignment.coarse import (
    FRAME_RATE,
    Run,
    beat_chroma,
    beat_frames,
    best_path,
    estimate_quality,
    find_candidates,
    log_band_energies,
    onset_strength,
    segment_lengths,
)
from pipeline_aud2studio.alignment.direct import minimum_phase, power_cepstrum
from pipeline_aud2studio.alignment.fine import Windows, fit_courses, split_lines
from pipeline_aud2studio.alignment.timing import refine

EXACT_S = 2e-5


def largest_error_s(alignment: Alignment, offset_s: float, drift_ppm: float, span_s: tuple[float, float]) -> float:
    """Against the truth, over a span of the recording's clock."""
    times = np.linspace(*span_s, 20)
    errors = []
    for time_s in times:
        segment = next(part for part in alignment.segments if part.start_s <= time_s <= part.end_s)
        errors.append(float(segment.to_reference(time_s)) - (time_s / (1 + drift_ppm * 1e-6) + offset_s))
    return float(np.abs(errors).max())


def align_pair(reference: np.ndarray, recording: np.ndarray, sample_rate: float) -> Alignment:
    return align([reference, recording], sample_rate, reference=0).alignments[1]


def by_start(*tables: np.ndarray) -> np.ndarray:
    table = np.concatenate(tables)
    return table[np.argsort(table[:, 0])]


@pytest.mark.parametrize(
    ("offset_s", "drift_ppm", "polarity"), [(7.3456, 180.0, -1), (-11.2, -290.0, 1)], ids=["later", "earlier"]
)
def test_offset_drift_and_polarity_are_found(offset_s: float, drift_ppm: float, polarity: int) -> None:
    table = notes(0, 70.0)
    reference = heard(clock(45.0, 12.0, 0.0), table, seed=1)
    recording = polarity * heard(clock(40.0, 12.0 + offset_s, drift_ppm), table, seed=2)

    alignment = align_pair(reference, recording, RATE)

    assert alignment.accepted and alignment.confidence > 0.8
    assert alignment.polarity == polarity
    assert alignment.drift_ppm == pytest.approx(drift_ppm, abs=0.5)
    shared = (max(0.0, -offset_s), min(40.0, 45.0 - offset_s))
    assert largest_error_s(alignment, offset_s, drift_ppm, shared) < EXACT_S


@pytest.mark.slow
def test_recordings_of_different_rates_and_channels_are_aligned() -> None:
    table = notes(3, 50.0)
    reference = Recording(heard(clock(30.0, 0.0, 0.0, 22050), table, seed=1), 22050, "desk")
    left = heard(clock(30.0, 5.0, 90.0), table, seed=2)
    # A pair wired in anti-phase: its plain sum would be silence.
    stereo = Recording(np.stack([left, -left]), RATE, "phone")

    result = align([reference, stereo], reference=0)

    assert result.sample_rate == 22050 and result.num_samples == 30 * 22050
    assert largest_error_s(result.alignments[1], 5.0, 90.0, (0.0, 25.0)) < EXACT_S
    aligned = result.waveforms()[1]
    assert aligned.shape == (2, 30 * 22050)
    np.testing.assert_array_equal(aligned[0], -aligned[1])
    assert not aligned[:, : int(4.9 * 22050)].any()


@pytest.mark.slow
def test_jumps_are_found_and_placed() -> None:
    table = notes(4, 90.0)
    reference = heard(clock(85.0, 0.0, 0.0), table, seed=1)
    whole = heard(clock(85.0, 0.0, 120.0), table, seed=2)
    # A pause of 3.7 s, and later 12 ms that a full buffer has swallowed: too short for the coarse search.
    cuts = np.array([30.0, 33.7, 60.0, 60.012])
    first, paused, second, swallowed = (cuts * RATE).astype(int)
    recording = np.concatenate([whole[:first], whole[paused:second], whole[swallowed:]])

    alignment = align_pair(reference, recording, RATE)

    assert len(alignment.segments) == 3
    for segment, offset_s, middle_s in zip(alignment.segments, (0.0, 3.7, 3.712), (15.0, 43.0, 70.0), strict=True):
        truth_s = (middle_s + offset_s) / (1 + 120e-6)
        assert float(segment.to_reference(middle_s)) == pytest.approx(truth_s, abs=EXACT_S)
    jumps = alignment.report()["jumps"]
    assert [jump["at_s"] for jump in jumps] == pytest.approx([30.0, 60.0 - 3.7], abs=0.4)
    assert [jump["by_s"] for jump in jumps] == pytest.approx([3.7, 0.012], abs=2e-3)
    aligned = alignment.apply(recording, len(reference))
    assert aligned.shape == reference.shape
    gap = slice(int(30.8 * RATE), int(33.0 * RATE))
    assert not aligned[gap].any()


@pytest.mark.slow
def test_another_performance_is_refused_unless_forced() -> None:
    # The same notes by the same instruments, each 10 ms early or late.
    reference = heard(clock(40.0, 0.0, 0.0), notes(5, 40.0), seed=1)
    again = heard(clock(40.0, 0.0, 0.0), notes(5, 40.0, jitter_s=0.01, jitter_seed=6), seed=2)
    same = heard(clock(30.0, 4.0, -60.0), notes(5, 40.0), seed=3)

    with pytest.raises(ValueError, match="recording 1 does not seem to be of the same performance"):
        align_pair(reference, again, RATE)
    result = align([reference, again, same], RATE, reference=0, force=True)
    assert [alignment.accepted for alignment in result.alignments] == [True, True, True]
    assert result.alignments[1].confidence < 0.2 and result.alignments[2].confidence > 0.8


@pytest.mark.slow
def test_music_that_repeats_lies_where_the_voice_agrees() -> None:
    # A loop of 3.1 s fits at several lags. At some of them more windows overlap than at the right one, where all that
    # is sung agrees as well: the likeliest path was 3.1 s off.
    bar, voice = notes(32, 2.8), notes(132, 24.0)
    loop = [bar[bar[:, 0] < 2.8] + [3.1 * turn, 0.0, 0.0, 0.0] for turn in range(7)]
    table = by_start(*loop, voice[np.random.default_rng(32).random(len(voice)) < 0.1])
    reference = heard(clock(13.0, 0.0, 0.0), table, seed=1)
    recording = heard(clock(13.0, 4.3, 80.0), table, seed=2)

    alignment = align_pair(reference, recording, RATE)

    assert alignment.accepted
    assert largest_error_s(alignment, 4.3, 80.0, (0.0, 8.7)) < EXACT_S


@pytest.mark.slow
def test_a_passage_that_sounds_twice_is_no_jump() -> None:
    # In a pause of the music the same signal was near both, but 4.3 s earlier to the recording.
    music, signal = notes(51, 100.0), notes(52, 16.0)
    played = music[(music[:, 0] < 40.0) | (music[:, 0] > 62.0)]
    first, second = (
        Recording(heard(times_s, by_start(played, signal + [starts_s, 0.0, 0.0, 0.0]), seed), RATE)
        for times_s, starts_s, seed in ((clock(90.0, 0.0, 0.0), 44.3, 1), (clock(90.0, 5.0, 150.0), 40.0, 2))
    )
    runs = [Run(0.0, 30.0, 5.0, 0.0, 9.0), Run(36.0, 50.0, 9.3, 0.0, 9.0), Run(58.0, 90.0, 4.99, 0.0, 9.0)]

    match = refine(first, second, runs)

    assert match is not None and len(match.stretches) == 1
    for segment in match.segments:
        assert float(segment.to_reference(40.0)) == pytest.approx(40.0 / (1 + 150e-6) + 5.0, abs=0.03)


@pytest.mark.slow
def test_a_last_verse_that_one_recorder_missed_is_not_laid_on_the_one_before() -> None:
    verse, song = notes(53, 13.0), notes(54, 60.0)
    verses = [verse[verse[:, 0] < 12.0] + [60.0 + 12.0 * turn, 0.0, 0.0, 0.0] for turn in range(3)]
    table = by_start(song[song[:, 0] < 60.0], *verses)
    reference = Recording(heard(clock(84.0, 0.0, 0.0), table, seed=1), RATE)
    recording = Recording(heard(clock(91.0, 5.0, -60.0), table, seed=2), RATE)
    runs = [Run(0.0, 76.0, 5.0, 0.0, 9.0), Run(80.0, 91.0, -7.0, 0.0, 9.0)]

    match = refine(reference, recording, runs)

    assert match is not None and len(match.stretches) == 1
    assert match.stretches[0].course.end_s < 80.0
    for segment in match.segments:
        assert float(segment.to_reference(40.0)) == pytest.approx(40.0 / (1 - 60e-6) + 5.0, abs=0.03)


@pytest.mark.slow
def test_a_second_or_two_in_common_is_not_enough() -> None:
    table = notes(55, 60.0)
    reference = Recording(heard(clock(30.0, 0.0, 0.0), table, seed=1), RATE)
    late, later = (Recording(heard(clock(30.0, offset_s, 0.0), table, seed=2), RATE) for offset_s in (24.0, 28.0))

    match = refine(reference, late, [Run(0.0, 6.0, 24.0, 0.0, 9.0)])

    assert match is not None and match.confidence > 0.9
    assert refine(reference, later, [Run(0.0, 2.0, 28.0, 0.0, 9.0)]) is None


@pytest.mark.slow
def test_a_direct_sound_that_drowns_in_reverberation_is_not_guessed() -> None:
    table = notes(41, 16.0)

    def in_church(waveform: np.ndarray, seed: int, drr_db: float) -> np.ndarray:
        tail = np.random.default_rng(seed).standard_normal(3 * RATE) * np.exp(-6.9 * np.arange(3 * RATE) / (3 * RATE))
        tail *= 10 ** (-drr_db / 20) / np.linalg.norm(tail)
        tail[0] = 1.0
        return oaconvolve(waveform, tail)[: len(waveform)].astype(np.float32)

    near, far = heard(clock(12.0, 0.0, 0.0), table, seed=1), heard(clock(12.0, 0.7, 50.0), table, seed=2)
    clear = align([in_church(near, 3, -9.0), in_church(far, 4, -9.0)], RATE, reference=0).alignments[1]
    assert largest_error_s(clear, 0.7, 50.0, (0.0, 11.0)) < EXACT_S
    # Here all windows agree on a line, but nothing tells which of the echoes it leads through: it was 5 ms off.
    with pytest.raises(ValueError, match="to tell when the direct sound arrives"):
        align([in_church(near, 3, -15.0), in_church(far, 4, -15.0)], RATE, reference=0)


@pytest.mark.slow
def test_the_reference_is_the_best_recording_that_any_other_agrees_with() -> None:
    table = notes(7, 30.0)
    clear, dull = (heard(clock(25.0, 0.0, ppm), table, seed, snr) for ppm, seed, snr in ((0, 1, 25.0), (50, 2, 3.0)))
    other_night = 0.05 * music(clock(25.0, 0.0, 0.0), notes(8, 30.0))

    result = align([dull, other_night, clear], RATE)

    assert result.reference == 2
    qualities = [alignment.quality_db for alignment in result.alignments]
    assert qualities[1] > qualities[2] > qualities[0]
    assert not result.alignments[1].accepted


def test_what_cannot_be_aligned_is_said() -> None:
    table = notes(9, 12.0)
    sound = heard(clock(8.0, 0.0, 0.0), table, seed=1)
    silence = np.zeros(8 * RATE, dtype=np.float32)
    with pytest.raises(ValueError, match="at least two recordings, got 1"):
        align([sound], RATE)
    with pytest.raises(ValueError, match="recording 1 is silent"):
        align([sound, silence], RATE)
    with pytest.raises(ValueError, match="recording 1 is shorter than 3 s"):
        align([sound, sound[: 2 * RATE]], RATE)
    with pytest.raises(ValueError, match="recording 1 cannot be the reference: it is silent"):
        align([sound, silence], RATE, reference=1)
    with pytest.raises(ValueError, match="reference 2 does not exist"):
        align([sound, sound], RATE, reference=2)
    with pytest.raises(ValueError, match="needs its sample_rate"):
        align([sound, sound])
    with pytest.raises(ValueError, match="3 channels"):
        align([sound, np.zeros((3, RATE), dtype=np.float32)], RATE)
    with pytest.raises(ValueError, match="NaN or infinite"):
        align([sound, np.where(np.arange(len(sound)) == 5000, np.nan, sound)], RATE)
    with pytest.raises(ValueError, match="is not audio that can be decoded"):
        Recording(__file__)
    with pytest.raises(ValueError, match="does not exist"):
        Recording("nowhere.wav")


@pytest.mark.slow
def test_what_phones_write_is_read_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "phone.m4a"
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(44100 * 2) / 44100)).astype(np.float32)
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate = 44100
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    recording = Recording(path)
    assert (recording.sample_rate, recording.num_channels) == (44100, 1)
    assert recording.duration_s == pytest.approx(2.0, abs=0.05)
    expected = files.read(path).waveform
    np.testing.assert_allclose(recording.read(30000, 50000), expected[:, 30000:50000], atol=1e-6)


@pytest.mark.slow
def test_a_silent_recording_is_left_out_and_the_rest_goes_on() -> None:
    table = notes(10, 12.0)
    first, second = (heard(clock(10.0, start, 0.0), table, seed) for seed, start in ((1, 0.0), (2, 1.5)))
    result = align([first, np.zeros(RATE * 8, dtype=np.float32), second], RATE)
    assert sorted(result.accepted) == [0, 2]
    assert result.alignments[1].reason == "is silent"


def test_a_sinusoid_is_resampled_as_the_formula_has_it() -> None:
    rate, frequency = 44100, 3000.0
    segment = Segment(0.0, 30.0, offset_s=-0.123456789, drift_ppm=287.3)
    times = np.arange(30 * rate) / (rate * segment.rate) + segment.offset_s
    recording = Recording(np.sin(2 * np.pi * frequency * times), rate)

    start, stop = 5 * rate, 29 * rate
    resampled = read_on_reference_clock(recording, segment, start, stop, rate)[0]

    exact = np.sin(2 * np.pi * frequency * np.arange(start, stop) / rate)
    # 2e-5 of full scale is 1 ns of this sinusoid: 20000 times less than what alignment has to reach.
    assert np.abs(resampled - exact).max() < 2e-5


def test_blocks_meet_without_a_seam_and_cover_what_was_recorded() -> None:
    rate = 8000
    segments = (Segment(0.0, 3.0, 0.5, 150.0), Segment(3.0, 6.0, 1.0, 150.0))
    noise = np.fft.rfft(np.random.default_rng(0).standard_normal(6 * rate))
    noise[int(0.9 * len(noise)) :] = 0  # the filters' last tenth below half the sample rate is not flat
    recording = Recording(np.fft.irfft(noise, 6 * rate), rate)
    whole = np.concatenate(list(blocks_on_reference_clock(recording, segments, 8 * rate, rate)), axis=-1)
    pieces = np.concatenate(list(blocks_on_reference_clock(recording, segments, 8 * rate, rate, 0.7)), axis=-1)
    assert whole.shape == (1, 8 * rate)
    np.testing.assert_allclose(pieces, whole, atol=1e-4)
    recorded = whole[0] != 0
    for begin_s, end_s, there in ((0.0, 0.5, False), (0.5, 3.499, True), (3.501, 4.0, False), (4.0, 6.99, True)):
        assert recorded[int(begin_s * rate) + 1 : int(end_s * rate) - 1].mean() == pytest.approx(
            float(there), abs=1e-3
        )
    assert not recorded[7 * rate :].any()


@pytest.mark.slow
def test_apply_undoes_what_the_recorder_did() -> None:
    table = notes(11, 30.0)
    true = (0.05 * music(clock(20.0, 0.0, 0.0), table)).astype(np.float32)
    recorded = -(0.05 * music(clock(20.0, 2.5, 210.0), table)).astype(np.float32)
    aligned = align_pair(true, recorded, RATE).apply(recorded, len(true))
    shared = slice(3 * RATE, 20 * RATE)
    error = aligned[shared] - true[shared]
    assert 10 * np.log10(np.mean(true[shared] ** 2) / np.mean(error**2)) > 25.0


def test_an_echoes_phase_follows_from_its_magnitude() -> None:
    rate, size = 16000, 8192
    response = np.zeros(size)
    response[[0, 60, 170]] = 1.0, 0.5, -0.3
    spectrum = np.fft.rfft(response)
    phase = minimum_phase(power_cepstrum(np.abs(spectrum) ** 2, np.ones(len(spectrum), bool)), rate, (1e-4, 0.25))
    # The longest quefrencies are faded out, so the agreement is not perfect.
    np.testing.assert_allclose(phase, np.angle(spectrum), atol=0.02)


def test_lines_are_fitted_through_outliers_and_split_at_a_jump() -> None:
    rng = np.random.default_rng(0)
    times = np.linspace(0.0, 100.0, 60)
    lags = 3.0 + 4e-6 * times + np.where(times > 60.0, 0.005, 0.0) + 1e-5 * rng.standard_normal(60)
    lags[::5] = 3.0 + rng.uniform(-0.02, 0.02, 12)
    lines = split_lines(Windows(times, lags, np.ones(60)), 2.5e-4, slope=0.0, slope_reach=2e-5)
    assert [part.stop for part, _ in lines] in ([35, 60], [36, 60])  # window 35 is an outlier
    for (_, line), offset_s, middle_s in zip(lines, (3.0, 3.005), (30.0, 80.0), strict=True):
        assert line.slope == pytest.approx(4e-6, abs=1e-6)
        assert line.offset_s + line.slope * middle_s == pytest.approx(offset_s + 4e-6 * middle_s, abs=1e-5)


def test_a_clock_that_warms_up_gives_a_course_that_bends() -> None:
    rng = np.random.default_rng(6)
    times = np.linspace(5.0, 3595.0, 90)
    noise = 1e-5 * rng.standard_normal(90)
    # From +1 to -1 millionth in an hour: 0.9 ms between the middle and the ends.
    bow = 2.0 + 1e-6 * times - 2.8e-10 * times**2
    for truth, is_straight in ((2.0 + 3e-6 * times, True), (bow, False)):
        lags = truth + noise
        lags[::9] += rng.uniform(-0.02, 0.02, 10)
        windows = Windows(times, lags, np.ones(90))
        lines = split_lines(windows, 2.5e-4, slope=0.0, slope_reach=1e-5)
        ((part, course),) = fit_courses(windows, lines, 2.5e-4)
        assert part == slice(0, 90)
        assert (len(course.times_s) == 2) == is_straight
        assert np.abs(course.lags_at(times) - truth).max() < 4e-5
        segments = course.segments(0.0, 3600.0)
        assert (segments[0].start_s, segments[-1].end_s) == (0.0, 3600.0)
        for left, right in zip(segments, segments[1:], strict=False):
            assert float(left.to_reference(left.end_s)) == pytest.approx(
                float(right.to_reference(left.end_s)), abs=1e-9
            )


def test_the_coarse_search_follows_drift_and_jumps() -> None:
    rng = np.random.default_rng(1)
    reference = rng.standard_normal((6, int(600 * FRAME_RATE))).astype(np.float32)
    # The recording starts at 100 s, pauses for 50 s after 200 s, and runs 500 ppm fast; noise as strong as the music.
    times = np.arange(int(400 * FRAME_RATE)) / FRAME_RATE
    lags = 100.0 + np.where(times > 200.0, 50.0, 0.0) - 500e-6 * times
    frames = np.round((times + lags) * FRAME_RATE).astype(int)
    recording = reference[:, frames] + rng.standard_normal((6, len(times))).astype(np.float32)
    runs = best_path(find_candidates(reference, recording, *segment_lengths(reference, recording)))
    assert len(runs) == 2
    for run, offset_s in zip(runs, (100.0, 150.0), strict=True):
        middle_s = (run.start_s + run.end_s) / 2
        assert run.offset_s + run.slope * middle_s == pytest.approx(offset_s - 500e-6 * middle_s, abs=0.02)
        assert run.slope == pytest.approx(-500e-6, abs=1e-4)


def test_beats_are_found_where_they_are() -> None:
    rng = np.random.default_rng(2)
    clicks = np.zeros(20 * RATE, dtype=np.float32)
    beats_s = np.arange(0.4, 20.0, 0.6)
    for beat_s in beats_s:
        clicks[int(beat_s * RATE) :][:400] += rng.standard_normal(400) * np.exp(-np.arange(400) / 80)
    found_s = beat_frames(onset_strength(log_band_energies(Recording(clicks, RATE)))) / FRAME_RATE
    inner = found_s[(found_s > 2) & (found_s < 18)]
    assert np.median(np.diff(inner)) == pytest.approx(0.6, abs=0.021)
    assert np.abs(inner[:, None] - beats_s).min(axis=1).max() < 0.06


def test_chroma_shows_the_pitch_class_that_is_played() -> None:
    times = np.arange(24 * RATE) / RATE
    # A4, then C5 with twice its frequency: pitch classes 0 and 3 counted from A.
    low, high = np.sin(2 * np.pi * 440.0 * times), np.sin(2 * np.pi * 1046.5 * times)
    waveform = np.where(times < 12.0, low, high) + 1e-3 * np.random.default_rng(3).standard_normal(len(times))
    recording = Recording(waveform, RATE)
    chroma = beat_chroma(recording, onset_strength(log_band_energies(recording)))
    middle = int(12 * FRAME_RATE)
    difference = chroma[:, middle + 100 : middle + 400].mean(axis=1) - chroma[:, middle - 400 : middle - 100].mean(
        axis=1
    )
    assert int(np.argmax(difference)) == 3 and int(np.argmin(difference)) == 0


def test_quality_falls_with_noise_reverberation_and_lost_highs() -> None:
    rng = np.random.default_rng(4)
    dry = music(clock(15.0, 0.0, 0.0), notes(12, 15.0))
    tail = rng.standard_normal(RATE) * np.exp(-6.9 * np.arange(RATE) / RATE)
    wet = np.convolve(dry, tail)[: len(dry)]
    spectrum = np.fft.rfft(dry)
    spectrum[np.fft.rfftfreq(len(dry), 1 / RATE) > 2000.0] = 0
    noise = 0.1 * dry.std() * rng.standard_normal(len(dry))

    def quality(waveform: np.ndarray) -> float:
        return estimate_quality(log_band_energies(Recording(waveform + 1e-4 * noise, RATE)))

    clean = quality(dry)
    assert quality(dry + noise) < clean - 0.3
    assert quality(dry + 3 * noise) < quality(dry + noise) - 0.3
    assert quality(wet) < clean - 0.3
    assert quality(np.fft.irfft(spectrum, len(dry))) < clean - 0.3


@pytest.mark.slow
def test_memory_does_not_grow_with_the_files(tmp_path: Path) -> None:
    rate, minutes = 8000, 20
    rng = np.random.default_rng(5)
    paths = [tmp_path / f"{name}.wav" for name in ("first", "second")]
    block = 60 * rate
    with (
        soundfile.SoundFile(paths[0], "w", rate, 1, "PCM_16") as first,
        soundfile.SoundFile(paths[1], "w", rate, 1, "PCM_16") as second,
    ):
        for minute in range(minutes):
            levels = np.repeat(rng.gamma(0.5, 1.0, block // 800), 800)
            samples = 0.02 * levels * rng.standard_normal(block)
            first.write(samples)
            second.write(samples[10 * rate :] if minute == 0 else samples)

    tracemalloc.start()
    result = align(paths, reference=0)
    peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()

    assert result.alignments[1].offset_s == pytest.approx(10.0, abs=EXACT_S)
    # The samples of both files would be 154 MB.
    assert peak_mb < 100.0


def write_takes(folder: Path) -> list[Path]:
    table = notes(13, 30.0)
    takes = {"front": (0.0, 0.0, 1), "balcony": (3.25, -75.0, 2)}
    paths = []
    for name, (offset_s, drift_ppm, seed) in takes.items():
        paths.append(folder / f"{name}.flac")
        soundfile.write(paths[-1], heard(clock(20.0, offset_s, drift_ppm), table, seed), RATE)
    paths.append(folder / "other.flac")
    soundfile.write(paths[-1], heard(clock(20.0, 0.0, 0.0), notes(14, 30.0), 3), RATE)
    return paths


def run_command(*arguments: str) -> int:
    return infer.main(["align", *arguments])


@pytest.mark.slow
def test_the_command_writes_recordings_report_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_takes(tmp_path)
    inputs = [str(path) for path in paths]
    out, report, plot = tmp_path / "aligned", tmp_path / "report.json", tmp_path / "lags.png"
    arguments = ["--inputs", *inputs, "--save-dir", str(out), "--report", str(report), "--plot", str(plot)]

    assert run_command(*arguments, "--reference", "1") == 0

    said = capsys.readouterr().out.splitlines()
    assert said[0] == "front.flac: reference"
    assert said[1].startswith("balcony.flac: starts at +3.250")
    assert said[2].startswith("other.flac: left out, it ")
    assert sorted(path.name for path in out.iterdir()) == ["balcony.wav", "front.wav"]
    front, rate = soundfile.read(out / "front.wav", dtype="float32")
    balcony, _ = soundfile.read(out / "balcony.wav", dtype="float32")
    assert rate == RATE and len(front) == len(balcony) == 20 * RATE
    np.testing.assert_array_equal(front, soundfile.read(paths[0], dtype="float32")[0])
    content = json.loads(report.read_text())
    entry = content["recordings"][1]
    assert entry["offset_s"] == pytest.approx(3.25, abs=EXACT_S)
    assert entry["drift_ppm"] == pytest.approx(-75.0, abs=1.0)
    assert len(entry["windows"]) >= 5 and {"time_s", "lag_s", "residual_ms"} == set(entry["windows"][0])
    assert content["recordings"][2]["accepted"] is False
    assert plot.read_bytes().startswith(b"\x89PNG")

    assert run_command(*arguments) == 2
    assert "exists already: pass --overwrite" in capsys.readouterr().err


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(RATE), RATE)
    (tmp_path / "b.wav").write_bytes(path.read_bytes())
    one, two, out = str(path), str(tmp_path / "b.wav"), str(tmp_path / "out")
    for words, reason in [
        ([one, "--save-dir", out], "at least two"),
        ([one, one, "--save-dir", out, "--reference", "3"], "1 to 2"),
        ([one, one, "--save-dir", out], "both be written"),
        ([one, two, "--save-dir", str(tmp_path)], "is an input"),
        ([one, two, "--save-dir", out], "is shorter than 3 s"),
    ]:
        assert run_command("--inputs", *words) == 2
        assert reason in capsys.readouterr().err
