"""Late-tail ratio of mixtures whose parts are known."""

import numpy as np
import pytest
import soundfile
import torch
from scipy import signal

from training.late_tail import known_parts, late_tail_ratio
from training.sources import Roots

SAMPLE_RATE = 44_100


def noise(seed: int, seconds: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(2, round(seconds * SAMPLE_RATE), generator=generator, dtype=torch.float64)


def test_the_ratio_of_a_known_mixture() -> None:
    early, late, other = noise(0), noise(1), noise(2)
    whole = 10 * torch.log10(late.square().sum(-1) / early.square().sum(-1))
    torch.testing.assert_close(late_tail_ratio(early + late, early, late), whole, atol=0.05, rtol=0)
    # A tenth of the late part: 20 dB less, at whatever level, with another sound on top, and equalised.
    drier = early + 0.1 * late
    torch.testing.assert_close(late_tail_ratio(drier, early, late), whole - 20, atol=0.05, rtol=0)
    torch.testing.assert_close(late_tail_ratio(5 * drier, early, late), whole - 20, atol=0.05, rtol=0)
    with_noise = late_tail_ratio(early + 0.5 * late + 0.3 * other, early, late)
    torch.testing.assert_close(with_noise, whole - 20 * np.log10(2), atol=0.1, rtol=0)
    equalised = torch.from_numpy(signal.lfilter([1.0, 0.6], [1.0], drier.numpy()))
    torch.testing.assert_close(late_tail_ratio(equalised, early, late), whole - 20, atol=0.3, rtol=0)


def test_correlated_parts_are_told_apart() -> None:
    """A late part that contains a bit of the early one: least squares divide by what they share."""
    early, late = noise(0), noise(1)
    late = late + 0.3 * early
    estimate = 2 * early + 0.5 * late
    expected = 10 * torch.log10((0.5 * late).square().sum(-1) / (2 * early).square().sum(-1))
    torch.testing.assert_close(late_tail_ratio(estimate, early, late), expected, atol=0.01, rtol=0)


def row(**changes: object) -> dict[str, object]:
    off = {f"pa_{name}": 0.0 for name in ("low_db", "mid_db", "high_db", "cut_hz", "limit_hz")}
    at = {"pa_low_hz": 100.0, "pa_mid_hz": 1000.0, "pa_high_hz": 6000.0}
    return {
        "kind": "synthetic",
        "music_in_room": 1,
        "sample_rate": SAMPLE_RATE,
        "seconds": 1.0,
        "channels": 2,
        "music_path": "music.wav",
        "music_stems": [],
        "music_offset_s": 0.5,
        "lead_in_s": 0.5,
        "crosstalk_db": -120.0,
        "spill_db": -120.0,
        "spill_delay_s": 0.0,
        "rir_path": "room.wav",
        "rir_left": [0],
        "rir_right": [1],
        "drr_db": [0.0],
        "decay_per_s": 0.0,
        **off,
        **at,
        **changes,
    }


def test_known_parts_add_up_to_the_music_in_its_room(tmp_path) -> None:
    rng = np.random.default_rng(0)
    music = 0.1 * rng.standard_normal((2 * SAMPLE_RATE, 2))
    response = (
        rng.standard_normal((SAMPLE_RATE // 2, 2)) * np.exp(-14 * np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE)[:, None]
    )
    response[0] = 20.0
    soundfile.write(tmp_path / "music.wav", music, SAMPLE_RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "room.wav", response, SAMPLE_RATE, subtype="FLOAT")
    roots = Roots(tmp_path, tmp_path, tmp_path)
    parts = known_parts(row(), roots)
    assert parts is not None
    early, late = parts
    # The scaling of `take_response`, worked out again: direct 2.5 ms at unit energy, the rest at 0 dB against it.
    direct = round(0.0025 * SAMPLE_RATE)
    scaled = response.T / np.sqrt(np.square(response.T[:, :direct]).sum(1, keepdims=True))
    scaled[:, direct:] *= np.sqrt(np.square(scaled[:, :direct]).sum() / np.square(scaled[:, direct:]).sum())
    start = SAMPLE_RATE // 2
    expected = signal.fftconvolve(music.T[:, : 2 * SAMPLE_RATE], scaled, axes=-1)[:, start : start + SAMPLE_RATE]
    np.testing.assert_allclose(early + late, expected, atol=2e-3)  # the response is cut where it has faded by 60 dB
    boundary = round(0.05 * SAMPLE_RATE)
    only_early = signal.fftconvolve(music.T, scaled[:, :boundary], axes=-1)[:, start : start + SAMPLE_RATE]
    np.testing.assert_allclose(early, only_early, atol=1e-5)
    assert known_parts(row(music_in_room=0), roots) is None
    assert known_parts({"kind": "real"}, roots) is None


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="silent"):
        late_tail_ratio(noise(0), noise(0), torch.zeros_like(noise(0)))
    with pytest.raises(ValueError, match="differ in shape"):
        late_tail_ratio(noise(0)[:, :-1], noise(0), noise(1))
