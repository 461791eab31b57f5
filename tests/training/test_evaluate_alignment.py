"""The alignment benchmark's judgement: errors against known clocks, the table and the plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from training.alignment_cases import SAMPLE_RATE, Library, Take, make_impostors
from training.device import Device
from training.evaluate_alignment import plot_errors, score, tabulate
from training.sources import Roots


def take(start_s: float, drift_ppm: float, polarity: int = 1) -> Take:
    return Take(start_s, 100.0, drift_ppm, polarity, 10.0, 44100, Device())


def estimate(offset_s: float, drift_ppm: float, accepted: bool = True) -> dict[str, Any]:
    segment = {"start_s": 0.0, "end_s": 100.0, "offset_s": offset_s, "drift_ppm": drift_ppm}
    return {"accepted": accepted, "confidence": 1.0, "polarity": -1, "processor_s": 2.0, "segments": [segment]}


def test_the_error_is_the_largest_over_the_shared_time() -> None:
    takes = [take(5.0, 0.0), take(25.0, 100.0, -1), take(25.0, 100.0)]
    right, wrong = score([estimate(20.0, 100.0), estimate(20.00005, 99.0)], takes)
    assert right["max_error_ms"] == pytest.approx(0.0, abs=1e-6) and right["polarity_right"]
    assert right["shared_s"] == pytest.approx(80.0)
    # 0.05 ms at first, and a millionth of 80 s more at last.
    assert wrong["max_error_ms"] == pytest.approx(0.13, abs=1e-4) and not wrong["polarity_right"]
    assert wrong["drift_error_ppm"] == pytest.approx(-1.0)


def test_every_method_is_measured_by_its_own_cases(tmp_path: Path) -> None:
    rows = score([estimate(0.0, 0.0), estimate(0.00005, 0.0), estimate(1.0, 0.0, False)], [take(0.0, 0.0)] * 4)
    cases = [
        {"takes": [0] * 4, "results": {"ours": rows, "peer": rows[2:]}},
        {"takes": [0] * 2, "results": {"ours": rows[:1]}},
    ]
    impostors = [{"results": {"ours": [{"accepted": accepted}]}} for accepted in (False, True)]

    lines = tabulate(cases, impostors).splitlines()

    assert lines[0].startswith("4 recordings in 2 cases, 2 pairs")
    assert lines[-2].startswith("| ours | 4, 2 | 75.0 | 50.0 | 100.0 | 66.7 | 0.0000 |")
    assert lines[-1].startswith("| peer | 1, 0 | 0.0 |  |  |  |")
    plot_errors(tmp_path / "errors.png", cases)
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")


def test_two_nights_have_different_crowds(tmp_path: Path) -> None:
    def tone(frequency_hz: float) -> str:
        seconds = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
        soundfile.write(
            tmp_path / f"{frequency_hz}.wav", 0.3 * np.sin(2 * np.pi * frequency_hz * seconds), SAMPLE_RATE
        )
        return f"{frequency_hz}.wav"

    soundfile.write(tmp_path / "room.wav", np.eye(64, 2), SAMPLE_RATE)
    library = Library(
        Roots(tmp_path, tmp_path, tmp_path),
        [{"path": tone(440.0)}, {"path": tone(550.0)}],
        [{"path": "room.wav", "num_mics": 2, "mic_channels": 1}],
        [{"path": tone(1000.0)}, {"path": tone(1700.0)}],
    )
    for seed in (0, 2):
        files, rates, _ = make_impostors(seed, library, (0.05, 0.06))
        for night, (waveform, rate) in enumerate(zip(files, rates, strict=True)):
            spectrum = np.abs(np.fft.rfft(waveform[0] * np.hanning(waveform.shape[1])))
            levels = [spectrum[round(hz * waveform.shape[1] / rate)] for hz in (1000.0, 1700.0)]
            assert levels[night] > 10 * levels[1 - night]
