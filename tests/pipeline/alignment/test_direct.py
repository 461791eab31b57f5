"""Several recordings agree on the direct sound where a pair is wrong; lines between clocks against formulas."""

import numpy as np
import pytest

from pipeline_aud2studio.alignment.clock import IDENTITY, Recording, Segment
from pipeline_aud2studio.alignment.direct import (
    _shared_windows,
    _widest_paths,
    agree,
    direct_delay,
    direct_pattern,
    direct_peak,
)

RATE = 44100
SECONDS = 40
ECHOES_MS = {  # of recorders in one room, with their amplitudes; those of 0 and 1 lie 2.5 ms apart, four times
    0: {0.0: 1.0, 5.0: 0.8, 11.0: 0.8, 14.7: 0.8, 23.1: 0.8},
    1: {0.0: 1.0, 7.5: 0.8, 13.5: 0.8, 17.2: 0.8, 25.6: 0.8},
    2: {0.0: 1.0, 3.3: 0.4},
    3: {0.0: 1.0, 9.1: 0.4},
}


def heard(echoes_ms: dict[float, float], seed: int, polarity: int = 1, crowd: float = 0.3) -> Recording:
    """White noise by way of some echoes, with a crowd of its own, which is so much louder than the direct sound."""
    music = np.random.default_rng(0).standard_normal(SECONDS * RATE)
    waveform = np.zeros_like(music)
    for delay_ms, amplitude in echoes_ms.items():
        delay = round(delay_ms * 1e-3 * RATE)
        waveform[delay:] += amplitude * music[: len(music) - delay]
    waveform += crowd * np.random.default_rng(seed).standard_normal(len(music))
    return Recording((0.1 * polarity * waveform).astype(np.float32), RATE, f"recording {seed}")


def late_by(delay_s: float) -> list[Segment]:
    """A clock that takes the recording's echo of that delay for the direct sound."""
    return [Segment(0.0, SECONDS, -delay_s, 0.0)]


@pytest.mark.slow
def test_three_recordings_know_better_than_a_pair() -> None:
    # Loud crowds fill the ripples up by which a pair's echoes are known.
    recordings = [heard(ECHOES_MS[number], number + 1, crowd=4.0) for number in (0, 1, 2)]
    windows = [(Segment(0.0, SECONDS, 0.0, 0.0), time_s) for time_s in range(4, SECONDS - 4, 4)]
    mistaken_s, _ = direct_delay(recordings[0], recordings[1], windows, RATE, 6.0, 0.05)
    assert mistaken_s == pytest.approx(2.5e-3, abs=2e-5), "else there is nothing to put right"
    clocks = [[IDENTITY], late_by(mistaken_s), late_by(0.0)]
    delays, polarities, heights = agree(recordings, clocks, [1, 1, 1], RATE)
    assert delays == pytest.approx([0.0, -2.5e-3, 0.0], abs=1e-5)
    assert polarities.tolist() == [1, 1, 1]
    assert heights[0] == np.inf and min(heights[1:]) > 6


@pytest.mark.parametrize("swapped", [False, True], ids=["the recording's", "the reference's"])
def test_the_spectra_show_whose_echo_is_louder_than_the_direct_sound(swapped: bool) -> None:
    loud, plain = heard({0.0: 1.0, 2.6: 1.4}, 1, crowd=2.0), heard(ECHOES_MS[2], 2, crowd=2.0)
    pair = (loud, plain) if swapped else (plain, loud)
    windows = [(Segment(0.0, SECONDS, 0.0, 0.0), time_s) for time_s in range(4, SECONDS - 4, 4)]
    pattern = direct_pattern(*pair, windows, RATE, 6.0, 0.05)
    echo_s = -2.6e-3 if swapped else 2.6e-3
    highest = int(np.argmax(np.abs(pattern.values))) - len(pattern.values) // 2
    assert highest / RATE == pytest.approx(echo_s, abs=2e-5), "else there is nothing to put right"
    assert pattern.echo(echo_s, 0.0) > 4 and pattern.echo(0.0, echo_s) < -4
    delay_s, height = direct_peak(pattern)
    assert delay_s == pytest.approx(0.0, abs=2e-6) and height > 6


@pytest.mark.slow
def test_an_inverted_recording_that_was_taken_for_another() -> None:
    recordings = [heard(ECHOES_MS[2], 1), heard(ECHOES_MS[3], 2, polarity=-1), heard({0.0: 1.0, 6.2: 0.3}, 3)]
    delays, polarities, _ = agree(recordings, [[IDENTITY], late_by(9.1e-3), late_by(0.0)], [1, 1, 1], RATE)
    assert delays == pytest.approx([0.0, -9.1e-3, 0.0], abs=2e-5)
    assert polarities.tolist() == [1, -1, 1]


@pytest.mark.slow
def test_of_two_arrivals_that_are_heard_as_well_the_earlier_one_counts() -> None:
    recordings = [heard({0.0: 1.0, 2.6: 1.05}, 1), heard(ECHOES_MS[2], 2), heard(ECHOES_MS[3], 3)]
    # The reference's echo was taken for its direct sound: all others seem to come too early.
    clocks = [[IDENTITY], late_by(-2.6e-3), late_by(-2.6e-3)]
    delays, _, _ = agree(recordings, clocks, [1, 1, 1], RATE)
    assert delays == pytest.approx([0.0, 2.6e-3, 2.6e-3], abs=2e-5)


@pytest.mark.slow
def test_recordings_that_share_no_time_leave_each_other_alone() -> None:
    recordings = [heard(ECHOES_MS[number], number + 1) for number in (0, 2, 3)]
    clocks = [[IDENTITY], [Segment(0.0, SECONDS, 3600.0, 0.0)], [Segment(0.0, SECONDS, -3600.0, 0.0)]]
    delays, _, heights = agree(recordings, clocks, [1, 1, 1], RATE)
    assert delays.tolist() == [0.0, 0.0, 0.0] and heights[1:].tolist() == [0.0, 0.0]


def test_lines_between_two_recordings_that_are_not_the_reference() -> None:
    recordings = [Recording(np.ones(RATE * 60, np.float32), RATE, "") for _ in range(3)]
    bent_offset_s = 20 / 0.99985 - 3.0 - 20 / 1.0001  # where the clock of the last one becomes faster, after 20 s
    bent = Segment(20.0, 60.0, bent_offset_s, 100.0)
    clocks = [
        [IDENTITY],
        [Segment(0.0, 60.0, 7.0, 200.0)],
        [Segment(0.0, 20.0, -3.0, -150.0), bent],
    ]
    shared_s, windows = _shared_windows(recordings, clocks, 1, 2)
    assert shared_s == pytest.approx(bent_offset_s + 60 / 1.0001 - 7.0)
    assert len(windows) == int(shared_s / 6)
    for segment, time_s in windows:
        times_s = time_s + np.array([-3.0, 0.0, 3.0])
        reference_s = times_s / 0.99985 - 3.0 if time_s <= 20 else times_s / 1.0001 + bent_offset_s
        np.testing.assert_allclose(segment.to_reference(times_s), (reference_s - 7.0) * 1.0002, atol=1e-9)


def test_the_best_chain_is_as_good_as_its_weakest_pair() -> None:
    widths = np.zeros((4, 4))
    for (first, second), width in {(0, 1): 2.0, (0, 2): 9.0, (1, 2): 22.0, (1, 3): 5.0}.items():
        widths[first, second] = widths[second, first] = width
    assert _widest_paths(widths).tolist() == [np.inf, 9.0, 9.0, 5.0]
