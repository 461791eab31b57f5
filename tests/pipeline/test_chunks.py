import pytest
import scipy.stats
import torch

from pipeline_aud2studio.chunks import CrossFader, chunk_starts, frame_noise


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
