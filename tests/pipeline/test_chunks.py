import numpy as np
import pytest
import scipy.stats
import torch

from pipeline_aud2studio import audio
from pipeline_aud2studio.chunks import ArraySource, CrossFader, Padded, Scaled, chunk_starts, frame_noise
from pipeline_aud2studio.takes import level_gain, rms
from pipeline_aud2studio.vocoding import vocode, vocode_parts


@pytest.mark.parametrize(
    ("num_frames", "starts"), [(1, [0]), (100, [0]), (101, [0, 80]), (180, [0, 80]), (181, [0, 80, 160]), (20, [0])]
)
def test_chunks_cover_every_frame_once_or_in_the_overlap(num_frames, starts):
    assert chunk_starts(num_frames, chunk_frames=100, overlap_frames=20) == starts


@pytest.mark.parametrize("num_frames", [5, 100, 101, 333, 1000])
@pytest.mark.parametrize("overlap_frames", [0, 20, 50])
def test_chunks_that_agree_come_out_unchanged(num_frames, overlap_frames):
    whole = torch.randn(3, num_frames + 200, generator=torch.Generator().manual_seed(0))
    fader = CrossFader(num_frames, 100, overlap_frames)
    parts = [
        (first, fader.add(first, whole[:, first : first + 100]))
        for first in chunk_starts(num_frames, 100, overlap_frames)
    ]
    ends = [first + part.shape[-1] for first, part in parts]
    assert [first for first, _ in parts] == [0, *ends[:-1]]
    torch.testing.assert_close(torch.cat([part for _, part in parts], dim=-1), whole[:, :num_frames])


def test_chunks_that_disagree_are_faded_by_a_raised_cosine():
    fader = CrossFader(180, 100, 20)
    fader.add(0, torch.zeros(1, 100))
    faded = fader.add(80, torch.ones(1, 100))[0, :20]
    phase = (torch.arange(20) + 0.5) / 20
    torch.testing.assert_close(faded, 0.5 - 0.5 * torch.cos(torch.pi * phase))


def test_overlap_beyond_half_a_chunk_is_refused():
    with pytest.raises(ValueError, match="overlap_frames"):
        CrossFader(1000, 100, 51)


def test_noise_is_a_function_of_the_absolute_frame():
    whole = frame_noise(seed=7, step=0, n_mels=16, first=0, num_frames=500)
    torch.testing.assert_close(frame_noise(7, 0, 16, 123, 200), whole[:, 123:323], rtol=0, atol=0)


def test_noise_is_white_and_normal_across_blocks_steps_and_seeds():
    draws = [frame_noise(seed, step, 32, 0, 256) for seed, step in [(0, 0), (0, 1), (1, 0), (2**62, 3)]]
    assert scipy.stats.kstest(torch.cat(draws).flatten().numpy(), "norm").pvalue > 0.01
    blocks = torch.stack([block.flatten() for draw in draws for block in draw.split(64, dim=1)])
    correlation = torch.corrcoef(blocks) - torch.eye(len(blocks))
    assert correlation.abs().max() < 5 / 2048**0.5


RATE = 44100


def noise(channels: int, samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((channels, samples)).astype(np.float32)


def test_windows_are_those_of_a_padded_array():
    hop, pad, num_frames = 16, 24, 7
    takes = [noise(2, 101), noise(1, 70, 1), noise(1, 300, 2)]  # the second ends early, the third goes on
    padded = Padded([ArraySource(take) for take in takes], num_frames, hop, pad)
    body = np.zeros((4, num_frames * hop), np.float32)
    body[:2, :101], body[2, :70], body[3, :101] = takes[0], takes[1][0], takes[2][0, :101]
    # Backwards and forwards again, beyond the end as often as it takes.
    expected = torch.from_numpy(np.pad(body, ((0, 0), (pad, 400)), mode="reflect"))
    for begin in range(0, 480, 5):
        for end in (begin + 1, begin + 33, begin + 60):
            if end <= expected.shape[1]:
                assert torch.equal(padded.window(begin, end), expected[:, begin:end]), (begin, end)


def test_scaled_is_a_factor():
    waveform = noise(2, 50)
    np.testing.assert_array_equal(Scaled(ArraySource(waveform), 0.25).read(3, 20), 0.25 * waveform[:, 3:20])


@pytest.mark.parametrize("reconstruction", ["faithful", "vocoder"])
def test_a_stream_is_the_call_before_it_gets_its_loudness(toy_pipeline, reconstruction):
    waveform = 0.1 * noise(2, 5 * RATE)
    called = toy_pipeline(waveform, RATE, 1, reconstruction, generator=torch.Generator().manual_seed(3)).audios[0]
    source = Scaled(ArraySource(waveform), level_gain(rms(waveform)))
    parts = [*toy_pipeline.stream([source], 1, reconstruction, torch.Generator().manual_seed(3))]
    assert len(parts) > 1 and max(part.shape[1] for part in parts) < 4 * RATE
    streamed = np.concatenate(parts, axis=1)
    assert streamed.shape == waveform.shape
    np.testing.assert_allclose(audio.match_loudness(streamed, waveform, RATE), called, atol=1e-6)


def test_vocoding_in_parts_is_vocoding_at_once(toy_pipeline):
    mel = -5 + 2 * torch.randn(2, 128, 1300, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = vocode(toy_pipeline.vocoder, mel, "cpu")
        for edges in ([1, 2, 600, 601, 1299], [500, 512, 544, 1100], [1300]):
            parts = zip([0, *edges], mel.tensor_split(edges, dim=-1), strict=True)
            assert torch.equal(torch.cat([*vocode_parts(toy_pipeline.vocoder, parts, "cpu")], -1), whole)
    assert whole.shape == (2, 1300 * 256)
