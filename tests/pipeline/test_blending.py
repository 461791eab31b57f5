"""The cross-over: the faithful spectrum where it has what is wanted, the vocoder's at the right level where not."""

from functools import partial

import numpy as np
import pytest
import scipy.signal
import torch

from pipeline_aud2studio.blending import blend, blended_parts, fine_parts, vocoder_weight
from pipeline_aud2studio.chunks import overlap_added
from pipeline_aud2studio.features import coarse_transform
from pipeline_aud2studio.spectral import BandTransform
from pipeline_aud2studio.vocoding import VOCODER_BLOCK, vocode, vocode_parts

RATE = 44100
TRANSFORM = BandTransform()


def music(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    """Coloured noise whose level swings, and decaying tones, in stereo (2, samples) up to 22 kHz."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    noise = scipy.signal.lfilter([1.0], [1.0, -0.8], rng.standard_normal((2, len(time))))
    noise *= 0.02 * (1 + 0.7 * np.sin(2 * np.pi * 3 * time))
    for frequency in rng.uniform(100, 15000, 12):
        noise += 0.01 * np.sin(2 * np.pi * frequency * time + rng.uniform(0, 6)) * np.exp(-(time % 0.5) * 4)
    return noise.astype(np.float32)


def spectrum(waveform: np.ndarray) -> torch.Tensor:
    return TRANSFORM.stft(torch.from_numpy(waveform))


def blended(faithful: torch.Tensor, vocoded: torch.Tensor, restored: torch.Tensor) -> torch.Tensor:
    weight = vocoder_weight(TRANSFORM.log_mel(faithful), restored)
    return blend(TRANSFORM, faithful, vocoded, restored, weight)


def levels_db(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies and long-term power of both channels (2, frequencies)."""
    frequencies, power = scipy.signal.welch(waveform, RATE, nperseg=2048)
    return frequencies, 10 * np.log10(power)


def waveform_of(stft: torch.Tensor, length: int) -> np.ndarray:
    return TRANSFORM.istft(stft, length).numpy()


def test_where_nothing_lacks_the_vocoder_is_not_heard_at_all() -> None:
    """Also where the restored mel is off by some decibels and the vocoder says something else."""
    faithful = spectrum(music())
    log_mel = TRANSFORM.log_mel(faithful)
    restored = log_mel + 0.3 * torch.randn(log_mel.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(blended(faithful, spectrum(music(seed=2)), restored), faithful)


@pytest.mark.parametrize("limit_hz", [8000, 12000])
@pytest.mark.parametrize("vocoder", ["exact", "other phases, too soft"])
def test_what_a_recording_lost_above_its_limit_comes_back(limit_hz: int, vocoder: str) -> None:
    clean = music()
    low_pass = scipy.signal.butter(12, limit_hz, fs=RATE, output="sos")
    narrow = scipy.signal.sosfiltfilt(low_pass, clean).astype(np.float32)
    synthesised = clean if vocoder == "exact" else 0.4 * music(seed=3)
    result = waveform_of(
        blended(spectrum(narrow), spectrum(synthesised), TRANSFORM.log_mel(spectrum(clean))), clean.shape[1]
    )
    frequencies, found = levels_db(result)
    wanted, before = levels_db(clean)[1], levels_db(narrow)[1]
    above = (frequencies > limit_hz) & (frequencies < 21_000)
    assert np.abs(found - wanted)[:, above].mean() < 3.0
    assert np.abs(before - wanted)[:, above].mean() > 30.0
    # No seam: nowhere around the limit is a hole or a bump.
    around = (frequencies > 0.85 * limit_hz) & (frequencies < 1.15 * limit_hz)
    smooth = scipy.signal.convolve((found - wanted)[:, around], np.full((1, 9), 1 / 9), mode="valid")
    assert smooth.max() < 3.0 and smooth.min() > -7.5
    # And what is below the limit is what it was, in level and in phase, in both channels.
    below = frequencies < 0.9 * limit_hz
    assert np.abs(found - before)[:, below].max() < 0.1
    kept = slice(0, round(0.9 * limit_hz * clean.shape[1] / RATE))
    spectra = [np.fft.rfft(each * scipy.signal.windows.hann(clean.shape[1])) for each in (result - narrow, narrow)]
    added, had = (np.square(np.abs(each[:, kept])).sum(-1) for each in spectra)
    assert (added < 1e-5 * had).all()


def test_an_attack_that_lost_its_highs_gets_them_back() -> None:
    """10 ms of noise every 300 ms, silence between: the silence beside does not decide for the attack."""
    rng = np.random.default_rng(4)
    clean = np.zeros((1, 2 * RATE), np.float32)
    for start in range(0, clean.shape[1], round(0.3 * RATE)):
        clean[0, start : start + 441] = 0.1 * rng.standard_normal(441)
    narrow = scipy.signal.sosfiltfilt(scipy.signal.butter(12, 8000, fs=RATE, output="sos"), clean).astype(np.float32)
    stft = spectrum(clean)
    result = waveform_of(blended(spectrum(narrow), stft, TRANSFORM.log_mel(stft)), clean.shape[1])
    frequencies, found = levels_db(result)
    above = (frequencies > 9000) & (frequencies < 21_000)
    assert np.abs(found - levels_db(clean)[1])[:, above].mean() < 1.0


@pytest.mark.parametrize("lack_db", [6.5, 12.0, 20.0])
def test_levels_add_up_without_a_comb(lack_db: float) -> None:
    """Where the vocoder is fully in, the sum has the restored level, whatever the phase between the two."""
    clean = music()
    stft = spectrum(clean)
    restored = TRANSFORM.log_mel(stft)
    faithful = 10 ** (-lack_db / 20) * stft
    deep = 0.0
    for late in (0, 11, 44, 90):  # in samples: combs with teeth 4 kHz, 1 kHz and 490 Hz apart
        vocoded = spectrum(np.roll(clean, late, axis=1))
        result = blend(TRANSFORM, faithful, vocoded, restored, torch.ones_like(restored))
        off_db = 20 / np.log(10) * (TRANSFORM.log_mel(result) - restored).mean(-1)  # (2, bands), of all frames
        assert off_db.abs().max() < 2.0
        plain_db = 20 / np.log(10) * (TRANSFORM.log_mel(faithful + vocoded) - restored).mean(-1)
        deep = max(deep, float(plain_db.abs().max()))
    assert deep > (2.0 if lack_db < 15 else 0.5), "a mere sum is off by more"


def test_energies_of_unrelated_sounds_add_up() -> None:
    clean, other, third = (spectrum(music(seed=seed)) for seed in (5, 6, 7))
    restored = TRANSFORM.log_mel(clean)
    faithful = 0.3 * other
    result = blend(TRANSFORM, faithful, third, restored, torch.ones_like(restored))
    energies = [float(each.abs().square().mean()) for each in (clean, faithful, result - faithful)]
    assert energies[1] + energies[2] == pytest.approx(energies[0], rel=0.1)


def test_a_single_band_does_not_switch_alone_and_an_edge_stays_where_it_is() -> None:
    faithful = torch.zeros(1, 128, 40)
    restored = faithful.clone()
    restored[:, 60] = 5.0
    assert vocoder_weight(faithful, restored).max() == 0
    restored[:, 90:] = 5.0
    weight = vocoder_weight(faithful, restored)
    assert weight[:, :90].max() == 0 and weight[:, 90:].min() == 1
    # 6 dB are too little, 12 enough, and half way between the weight is one half.
    for lack_db, expected in ((6.0, 0.0), (9.0, 0.5), (12.0, 1.0)):
        uniform = torch.full_like(faithful, lack_db * np.log(10) / 20)
        assert vocoder_weight(faithful, uniform).mean() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("num_frames", [2, 300, VOCODER_BLOCK, VOCODER_BLOCK + 1, 1200])
def test_streamed_is_whole(toy_pipeline, num_frames: int) -> None:
    vocoder, length = toy_pipeline.vocoder, num_frames * TRANSFORM.hop_length
    clean = music(num_frames * 256 / RATE, seed=8)[:, :length]
    faithful = spectrum(np.pad(clean, ((0, 0), (0, length - clean.shape[1]))))
    lack = 4 * torch.rand(2, 128, 1, generator=torch.Generator().manual_seed(0)) * torch.linspace(0, 1, num_frames)
    restored = TRANSFORM.log_mel(faithful) + lack.sort(1).values
    with torch.no_grad():
        waveform = vocode(vocoder, restored, "cpu")
        whole = blended(faithful, TRANSFORM.stft(waveform), restored)
    assert not torch.equal(whole, faithful)

    def parts(begin: int):
        starts = [*range(begin, num_frames, 130)]
        for start in starts:
            piece = slice(start, min(start + 130, num_frames))
            yield start, faithful[..., piece], restored[..., piece]

    with torch.no_grad():
        streamed = [*blended_parts(TRANSFORM, parts(0), partial(vocode_parts, vocoder, device="cpu"), num_frames)]
        assert [first for first, _ in streamed] == list(np.cumsum([0] + [x.shape[-1] for _, x in streamed])[:-1])
        together = torch.cat([part for _, part in streamed], dim=-1)
        torch.testing.assert_close(together, whole, atol=1e-4, rtol=1e-4)


def test_coarse_spectra_come_to_the_fine_ones() -> None:
    """Of what the coarse STFT says, the fine STFT is that of the waveform, whatever the parts."""
    coarse = coarse_transform(TRANSFORM)
    waveform = torch.from_numpy(music(1.5, seed=2))
    num_frames = coarse.num_frames(waveform.shape[1])
    waveform = torch.nn.functional.pad(waveform, (0, num_frames * coarse.hop_length - waveform.shape[1]))
    stft = coarse.stft(waveform)
    log_mel = torch.arange(4 * num_frames).expand(2, 128, -1).float()
    parts = [
        (first, stft[..., first : first + 20], log_mel[..., 4 * first : 4 * first + 80])
        for first in range(0, num_frames, 20)
    ]
    found = [*fine_parts(coarse, TRANSFORM, parts, 4 * num_frames)]
    assert [first for first, _, _ in found] == list(np.cumsum([0] + [part.shape[-1] for _, part, _ in found])[:-1])
    torch.testing.assert_close(torch.cat([mel for *_, mel in found], -1), log_mel)
    wanted = TRANSFORM.stft(waveform)
    torch.testing.assert_close(torch.cat([part for _, part, _ in found], -1), wanted, atol=1e-4, rtol=1e-4)


def test_spectra_in_parts_become_the_waveform_of_the_whole() -> None:
    waveform = music(1.0)
    stft = spectrum(waveform)
    parts = [(first, stft[..., first : first + 50]) for first in range(0, stft.shape[-1], 50)]
    pieces = [*overlap_added(TRANSFORM, parts, waveform.shape[1])]
    np.testing.assert_allclose(torch.cat(pieces, dim=-1), waveform, atol=1e-5)
