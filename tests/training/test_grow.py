import pytest
import torch
from diffusers import UNet2DConditionModel

from training.build import build_unet
from training.config import parse_config
from training.grow import grown_state


def unet(layers: int, attention: list[int], seed: int, **model) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    config = parse_config(
        {
            "audio": {"clip_seconds": 0.2},
            "mel": {"n_mels": 64},
            "model": {
                "block_out_channels": [8, 16, 24],
                "attention_resolutions": attention,
                "attention_head_dim": 8,
                "norm_num_groups": 4,
                "conditioning_dim": 16,
                "conditioning_heads": 2,
                "overlap_frames": 8,
                "layers_per_block": layers,
                **model,
            },
        }
    )
    made = build_unet(config).eval()
    torch.nn.init.normal_(made.conv_out.weight)  # an untrained one predicts nothing
    return made


def prediction(model: UNet2DConditionModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    image = torch.randn(2, model.config["in_channels"], 32, 16, generator=generator)
    tokens = torch.randn(2, 6, 16, generator=generator)
    with torch.no_grad():
        return model(image, torch.tensor([999, 40]), encoder_hidden_states=tokens).sample


@pytest.mark.parametrize(("before", "after"), [(1, 2), (1, 4), (2, 3), (2, 2)])
@pytest.mark.parametrize("attention", [[8], [2, 4, 8], []])
def test_a_deeper_model_begins_with_the_same_function(before, after, attention):
    shallow, deep = unet(before, attention, 0), unet(after, attention, 1)
    deep.load_state_dict(grown_state(deep, shallow))
    expected = prediction(shallow)
    assert expected.std() > 0.1
    torch.testing.assert_close(prediction(deep), expected, rtol=1e-5, atol=1e-6)


def test_every_new_layer_learns():
    shallow, deep = unet(1, [8], 0), unet(2, [8], 1)
    deep.load_state_dict(grown_state(deep, shallow))
    new = {name: value.clone() for name, value in deep.state_dict().items() if name not in shallow.state_dict()}
    optimizer = torch.optim.SGD(deep.parameters(), lr=0.1)
    for _ in range(2):  # in the first step the layers before the zeros get no gradient
        optimizer.zero_grad()
        deep(
            torch.randn(1, deep.config["in_channels"], 32, 16),
            torch.tensor([999]),
            encoder_hidden_states=torch.randn(1, 6, 16),
        ).sample.square().mean().backward()
        optimizer.step()
    after = deep.state_dict()
    still = [name for name, value in new.items() if torch.equal(value, after[name])]
    assert still == []


@pytest.mark.parametrize("other", [{"block_out_channels": [8, 16, 32]}, {"patch_size": 4}])
def test_what_does_not_fit_is_refused(other):
    with pytest.raises(ValueError, match="shape|place"):
        grown_state(unet(2, [], 0), unet(1, [], 0, **other))


def test_layers_are_not_taken_away():
    with pytest.raises(ValueError, match="from 2 to 1"):
        grown_state(unet(1, [8], 0), unet(2, [8], 0))
