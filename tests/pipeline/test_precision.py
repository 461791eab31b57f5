"""Networks that overflow in half precision, and weights that are damaged."""

import copy
import logging

import numpy as np
import pytest
import torch

from pipeline_aud2studio import Aud2StudioPipeline
from pipeline_aud2studio.precision import NonFiniteError
from pipeline_aud2studio.vocoding import vocode

RATE = 44_100


@pytest.fixture
def audio() -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal((1, RATE))).astype(np.float32)


@pytest.fixture
def pipeline(toy_pipeline: Aud2StudioPipeline) -> Aud2StudioPipeline:
    """A copy to be broken."""
    parts = {name: copy.deepcopy(part) for name, part in toy_pipeline.components.items()}
    settings = {key: value for key, value in toy_pipeline.config.items() if key not in parts and key[0] != "_"}
    copied = Aud2StudioPipeline(**parts, **settings)
    copied.set_progress_bar_config(disable=True)
    return copied


def restored(pipeline: Aud2StudioPipeline, audio: np.ndarray) -> np.ndarray:
    return np.asarray(pipeline(audio, RATE, generator=torch.Generator().manual_seed(0)).audios[0])


def test_an_overflow_is_named_and_computed_again(pipeline, audio, caplog) -> None:
    """The first layer's output is beyond 65504; group norms make it small again where float32 holds it."""
    with torch.no_grad():
        pipeline.unet.conv_in.weight.mul_(4e5)
    pipeline.unet.half()
    with caplog.at_level(logging.WARNING):
        result = restored(pipeline, audio)
    assert "unet in float16 is not finite at 0.0 s" in caplog.text
    assert pipeline.unet.dtype == torch.float16 and pipeline.condition_encoder.dtype == torch.float32
    np.testing.assert_array_equal(result, restored(pipeline.to(torch.float32), audio))


def test_half_precision_that_does_not_overflow_is_left_alone(pipeline, audio, caplog) -> None:
    pipeline.unet.half()
    with caplog.at_level(logging.WARNING):
        result = restored(pipeline, audio)
    assert "float32" not in caplog.text
    assert not np.array_equal(result, restored(pipeline.to(torch.float32), audio))


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_damaged_weights_are_an_error(pipeline, audio, precision) -> None:
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(torch.nan)
    pipeline.unet.to(precision)
    with pytest.raises(NonFiniteError, match="condition_encoder and unet is not finite at 0.0 s, in float32"):
        restored(pipeline, audio)
    assert pipeline.unet.dtype == precision


def test_the_vocoder_is_computed_again(pipeline, caplog) -> None:
    mel = torch.randn(1, 128, 40, generator=torch.Generator().manual_seed(0)) - 5
    with torch.no_grad():
        pipeline.vocoder.conv_pre.weight.mul_(1e4)
        pipeline.vocoder.half()
        with caplog.at_level(logging.WARNING):
            result = vocode(pipeline.vocoder, mel, "cpu")
        assert "vocoder in float16 is not finite from frame 0 on" in caplog.text
        assert torch.equal(result, vocode(pipeline.vocoder.float(), mel, "cpu"))
