"""Late sound predicted: held against nara_wpe, against a room that is known, and in blocks against the whole."""

import numpy as np
import pytest
import scipy.signal
import torch
from nara_wpe.wpe import wpe

from pipeline_aud2studio.analysis import analyzed, chunks_of
from pipeline_aud2studio.chunks import ArraySource, Padded
from pipeline_aud2studio.features import BandImage
from pipeline_aud2studio.prediction import BLOCK_FRAMES, OVERLAP_FRAMES, power_of, predict_late, taps_for
from pipeline_aud2studio.spectral import BandTransform

RATE = 44100


def spectra(channels: int, bins: int, frames: int, seed: int = 0) -> torch.Tensor:
    """Noise whose level changes from frame to frame, complex128."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((channels, bins, frames)) + 1j * rng.standard_normal((channels, bins, frames))
    return torch.from_numpy(noise * np.exp(rng.standard_normal((1, bins, frames))))


@pytest.mark.parametrize(("channels", "taps", "delay"), [(1, 24, 3), (2, 10, 3), (3, 5, 2)])
def test_it_is_nara_wpe(channels: int, taps: int, delay: int) -> None:
    stft = spectra(channels, 40, 300)
    late = predict_late(stft, channels, taps, delay)
    wanted = wpe(
        stft.numpy().transpose(1, 0, 2), taps, delay, iterations=1, psd_context=1, statistics_mode="full"
    ).transpose(1, 0, 2)
    np.testing.assert_allclose((stft - late).numpy(), wanted, atol=1e-6 * np.abs(wanted).max())
    single = predict_late(stft.to(torch.complex64), channels, taps, delay)
    np.testing.assert_allclose(single.numpy(), late.numpy(), atol=1e-3 * float(late.abs().max()))


def test_only_the_targets_weigh_and_are_predicted() -> None:
    stft = spectra(3, 20, 200)
    late = predict_late(stft, 1, taps=4)
    louder = stft.clone()
    louder[1:] *= 4  # another level of the others changes no prediction, but for the regularisation
    torch.testing.assert_close(predict_late(louder, 1, taps=4), late, rtol=1e-3, atol=1e-4)


def test_frames_of_infinite_power_teach_nothing_and_are_predicted() -> None:
    stft = spectra(1, 10, 200)
    power = torch.full((10, 200), torch.inf, dtype=torch.float64)
    power[:, :150] = power_of(stft[..., :150])
    late = predict_late(stft, 1, taps=4, power=power)
    short = predict_late(stft[..., :150], 1, taps=4)
    torch.testing.assert_close(late[..., :150], short, rtol=1e-4, atol=1e-4)
    assert late[..., 150:].isfinite().all()


def test_history_predicts_across_the_beginning_of_a_block() -> None:
    stft = spectra(2, 10, 300)
    power = torch.ones(10, 300, dtype=torch.float64)
    whole = predict_late(stft, 2, taps=4, power=power)
    filters_of_all = predict_late(stft, 2, taps=4, power=power[:, 6:], history=6)
    # Six frames less to learn from change little; without the history the first frames would lack a past.
    torch.testing.assert_close(filters_of_all, whole[..., 6:], rtol=0.5, atol=0.5)


@pytest.mark.parametrize("wrong", [{"taps": 0}, {"delay": 0}, {"num_targets": 3}, {"history": 50}])
def test_numbers_that_do_not_fit_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="do not fit each other"):
        predict_late(spectra(2, 5, 50), **{"num_targets": 1, "taps": 2, **wrong})


def test_a_second_of_noise_is_not_predicted_away() -> None:
    rng = np.random.default_rng(0)
    stft = torch.from_numpy(rng.standard_normal((1, 40, 43)) + 1j * rng.standard_normal((1, 40, 43)))
    kept, kept_by_long_filters = (
        float((stft - predict_late(stft, 1, taps)).abs().square().sum() / stft.abs().square().sum())
        for taps in (None, 24)
    )
    assert kept > 0.8
    assert kept_by_long_filters < 0.65
    assert (taps_for(1, 43), taps_for(2, 43), taps_for(2, 1024)) == (4, 2, 20)


def in_a_room(seconds: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise of changing level through two responses of 0.8 s, and through their first 50 ms, each (2, samples)."""
    rng = np.random.default_rng(seed)
    samples = round(seconds * RATE)
    level = np.repeat(np.exp(rng.normal(0, 1.5, samples // 4000 + 1)), 4000)[:samples]
    dry = scipy.signal.lfilter([1], [1, -0.9], rng.standard_normal(samples)) * level
    times = np.arange(round(0.9 * RATE)) / RATE
    responses = rng.standard_normal((2, len(times))) * np.exp(-6.9 / 0.8 * times) * 0.03
    responses[:, 0] = 1
    early = responses.copy()
    early[:, round(0.05 * RATE) :] = 0
    sound, wanted = (scipy.signal.oaconvolve(dry[None], each, axes=-1)[:, :samples] for each in (responses, early))
    scale = 0.1 / np.sqrt(np.mean(sound**2))
    return (scale * sound).astype(np.float32), (scale * wanted).astype(np.float32)


def si_sdr(estimate: np.ndarray, target: np.ndarray) -> float:
    projection = (estimate * target).sum() / (target**2).sum() * target
    return float(10 * np.log10((projection**2).sum() / ((estimate - projection) ** 2).sum()))


def test_a_room_gets_drier_without_a_network(toy_pipeline) -> None:
    sound, early = in_a_room(24.0)
    restored = toy_pipeline(sound, RATE, reconstruction="prediction").audios[0]
    assert restored.shape == sound.shape
    assert si_sdr(restored, early) > si_sdr(sound, early) + 5


@pytest.mark.slow
def test_blocks_are_the_whole_but_for_their_filters(toy_pipeline) -> None:
    """Spectra and powers do not show where a block begins; late sound is continuous there."""
    image: BandImage = toy_pipeline.image
    coarse = image.coarse
    num_frames = 2 * BLOCK_FRAMES + 100
    sound, _ = in_a_room(num_frames * 1024 / RATE)
    source = ArraySource(sound[:, : num_frames * 1024])
    padded = Padded([source], num_frames, coarse.hop_length, coarse.pad)
    stretches = [*analyzed(padded, image, [[0, 1], [1, 0]], num_frames, num_frames + 50)]
    assert [each.first for each in stretches] == [0, BLOCK_FRAMES - OVERLAP_FRAMES, num_frames - BLOCK_FRAMES]
    stft = torch.cat([each.stft for each in stretches], -1)[..., :num_frames]
    torch.testing.assert_close(
        stft, coarse.stft(torch.from_numpy(sound[:, : num_frames * 1024])), atol=1e-3, rtol=1e-3
    )
    features = stretches[0]
    for each in stretches[1:]:
        features = features.joined(each)
    whole = coarse.average(stft.abs().square())
    torch.testing.assert_close(features.features.powers[:, 0, :, :num_frames], whole, atol=1e-4, rtol=1e-3)
    late = features.late[..., :num_frames]
    steps = (late[..., 1:] - late[..., :-1]).abs().square().mean((0, 1))
    seams = [BLOCK_FRAMES - OVERLAP_FRAMES, num_frames - BLOCK_FRAMES]
    assert max(float(steps[seam - 1]) for seam in seams) < 4 * float(steps.median())

    chunks = [*chunks_of(iter(stretches), range(0, num_frames - 300, 300), 300)]
    for chunk in chunks:
        torch.testing.assert_close(chunk.late, features.late[..., chunk.first : chunk.first + 300])
        assert chunk.features.log_mel.shape[-1] == 4 * 300


def test_the_frames_of_both_resolutions_agree() -> None:
    """A click in a column's middle is loudest in that column of the coarse and of the fine transform."""
    image = BandImage(BandTransform(), 2, -5.0, 2.0, 2.0)
    click = torch.zeros(1, 1024 * 20)
    click[0, 1024 * 7 + 512] = 1.0
    coarse = image.coarse.stft(click).abs().square().sum(1)[0]
    fine = image.fine.stft(click).abs().square().sum(1)[0]
    assert int(coarse.argmax()) == 7
    assert int(fine.argmax()) // 4 == 7


@pytest.mark.slow
def test_other_recordings_take_part_where_they_help_and_nowhere_else(toy_pipeline) -> None:
    """A second microphone of the room that is only roughly aligned helps; silence and another piece change nothing."""
    sound, early = in_a_room(24.0)
    late_by_20_ms = np.pad(sound[1:], ((0, 0), (882, 0)))[:, : sound.shape[1]]

    def restored(*others: np.ndarray) -> np.ndarray:
        takes = [ArraySource(take) for take in (sound[:1], *others)]
        return np.concatenate([*toy_pipeline.stream(takes, reconstruction="prediction", seen=1)], axis=-1)

    alone = restored()
    gained = {
        name: si_sdr(restored(other), early[:1]) - si_sdr(alone, early[:1])
        for name, other in {"aligned": sound[1:], "rough": late_by_20_ms, "foreign": in_a_room(24.0, 5)[0][:1]}.items()
    }
    assert gained["aligned"] > 2.5 and gained["rough"] > 1.5 and abs(gained["foreign"]) < 0.05, gained
    np.testing.assert_array_equal(restored(np.zeros_like(sound[:1])), alone)


def test_what_is_seen_has_to_be_there(toy_pipeline) -> None:
    take = ArraySource(in_a_room(1.0)[0])
    with pytest.raises(ValueError, match="can be seen, got 2 of 1"):
        next(toy_pipeline.stream([take], seen=2))
