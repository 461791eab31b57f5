import pytest
import torch

from training.grow_vocoder import grown_state
from training.vocoder_config import VocoderConfig
from training.vocoder_objective import build_vocoder


def vocoder(rates: list[int], channels: int, seed: int, **model):
    torch.manual_seed(seed)
    values = {
        "mel": {"n_mels": 8, "n_fft": 64, "hop_length": 16},
        "model": {"upsample_rates": rates, "upsample_initial_channel": channels, **model},
        "loss": {"mel_resolutions": [[64, 16, 8]]},
        "discriminator": {"resolutions": [[64, 16, 64]]},
    }
    return build_vocoder(VocoderConfig.model_validate(values)).eval()


@torch.no_grad()
def waveform(model) -> torch.Tensor:
    return model(torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(5)) * 2.5 - 5).sample


@pytest.mark.parametrize("further", [0, 1, 2])
@pytest.mark.parametrize(
    "model",
    [{}, {"resblock_kernel_sizes": [3, 7], "resblock_dilation_sizes": [[1, 3], [1, 3]]}],
)
def test_a_vocoder_with_stages_before_its_first_begins_with_the_same_function(further, model):
    small = vocoder([4, 4], 16, 0, **model)
    large = vocoder([1] * further + [4, 4], 16 * 2**further, 1, **model)
    large.load_state_dict(grown_state(large, small))
    expected = waveform(small)
    assert expected.std() > 0.01
    torch.testing.assert_close(waveform(large), expected, rtol=1e-5, atol=1e-6)


def test_every_new_parameter_learns():
    small, large = vocoder([4, 4], 16, 0), vocoder([1, 4, 4], 32, 1)
    large.load_state_dict(grown_state(large, small))
    before = {name: value.clone() for name, value in large.state_dict().items()}
    optimizer = torch.optim.SGD(large.parameters(), lr=1.0)
    for _ in range(2):  # in the first step what is before the zeros gets no gradient
        optimizer.zero_grad()
        large(torch.randn(2, 8, 20)).sample.square().mean().backward()
        optimizer.step()
    same = [name for name, value in large.state_dict().items() if torch.equal(value, before[name])]
    assert [name for name in same if not name.endswith("filter")] == []


@pytest.mark.parametrize(
    ("rates", "channels", "model", "message"),
    [
        ([4, 1, 4], 32, {}, "only stages of rate 1"),
        ([2, 8], 16, {}, "only stages of rate 1"),
        ([1, 4, 4], 64, {}, "another shape"),
        ([1, 4, 4], 32, {"resblock_kernel_sizes": [5]}, "another shape"),
        ([1, 4, 4], 32, {"resblock_dilation_sizes": [[1, 3, 5, 7]]}, "is missing"),
        ([1, 4, 4], 32, {"resblock_dilation_sizes": [[1, 3]]}, "no place for"),
    ],
)
def test_what_cannot_begin_with_the_same_function_is_refused(rates, channels, model, message):
    with pytest.raises(ValueError, match=message):
        grown_state(vocoder(rates, channels, 1, **model), vocoder([4, 4], 16, 0))
