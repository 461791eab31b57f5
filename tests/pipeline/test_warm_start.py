"""`strength`: where the denoising begins, and that the faithful gains do not care."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import nn

from pipeline_aud2studio import Aud2StudioPipeline
from pipeline_aud2studio.loading import SCHEDULERS, swapped

RATE = 44100
KINDS = [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler]


def recording(channels: int = 1, seconds: float = 0.6) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (0.1 * rng.standard_normal((channels, round(seconds * RATE)))).astype(np.float32)


def run(pipeline: Aud2StudioPipeline, steps: int, reconstruction: str = "vocoder", **arguments) -> np.ndarray:
    generator = torch.Generator().manual_seed(1)
    return pipeline(recording(), RATE, steps, reconstruction, generator=generator, **arguments).audios


@contextmanager
def mute(layer: nn.Module) -> Iterator[None]:
    """A layer that gives zeros within the block."""
    saved = [parameter.detach().clone() for parameter in layer.parameters()]
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    try:
        yield
    finally:
        for parameter, value in zip(layer.parameters(), saved, strict=True):
            parameter.data.copy_(value)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def pipeline(request, toy_pipeline: Aud2StudioPipeline) -> Aud2StudioPipeline:
    """With every scheduler that the command line offers."""
    shipped = toy_pipeline.scheduler
    toy_pipeline.scheduler = swapped(shipped, request.param)
    yield toy_pipeline
    toy_pipeline.scheduler = shipped


def test_all_of_the_command_lines_schedulers_are_tested_here() -> None:
    assert {kind.__name__ for kind in KINDS} == {*SCHEDULERS.values()}


def test_half_the_strength_is_half_of_the_steps(pipeline) -> None:
    seen: list[int] = []

    def callback(pipe, step, timestep, kwargs):
        seen.append(int(timestep))
        return {}

    whole = run(pipeline, 4, callback_on_step_end=callback)
    all_steps, seen[:] = [*seen], []
    half = run(pipeline, 4, strength=0.5, callback_on_step_end=callback)
    assert len(all_steps) == 4 and seen == all_steps[2:]
    assert np.isfinite(half).all() and np.abs(half - whole).max() > 1e-5
    np.testing.assert_array_equal(run(pipeline, 4, strength=1.0), whole)
    np.testing.assert_array_equal(run(pipeline, 4, strength=0.5), half)


@pytest.mark.parametrize("strength", [1.0, 0.75, 0.25])
def test_a_warm_start_is_the_inputs_mel_with_noise(toy_pipeline, monkeypatch, strength: float) -> None:
    """A UNet that predicts v = 0 turns the latents by an angle in every DDIM step (Salimans and Ho, 2022, appendix D).

    With `alpha = cos(t)^2`: `x' = cos(t - t') x`. The input's own mel is a correction of zero: of the start there is
    nothing but `sin(t)` times the noise.
    """
    monkeypatch.setattr(toy_pipeline, "scheduler", swapped(toy_pipeline.scheduler, DDIMScheduler))
    noise = torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(2))
    found = []

    def callback(pipe, step, timestep, kwargs):
        found.append(kwargs["latents"])
        return {}

    with mute(toy_pipeline.unet.conv_out):
        run(toy_pipeline, 4, latents=noise, strength=strength, callback_on_step_end=callback)
    alphas = toy_pipeline.scheduler.alphas_cumprod.double()
    steps = [999, 749, 499, 249][4 - round(4 * strength) :]
    angles = [float(torch.arccos(alphas[step].sqrt())) for step in steps] + [0.0]
    expected = np.sin(angles[0]) * np.prod(np.cos(np.diff(angles)))
    assert len(found) == len(steps)
    torch.testing.assert_close(found[-1], (expected * noise).float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("reconstruction", "calls"), [("faithful", 1), ("vocoder", 2), ("blend", 3)])
def test_calls_of_the_unet(toy_pipeline, reconstruction: str, calls: int) -> None:
    """Of a warm start, blend needs one more: the gains are read from noise alone, where they were trained."""
    counted: list[int] = []
    handle = toy_pipeline.unet.register_forward_hook(lambda *_: counted.append(1))
    try:
        run(toy_pipeline, 4, reconstruction, strength=0.5)
    finally:
        handle.remove()
    assert len(counted) == calls


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_with_a_mute_vocoder_blend_is_faithful(toy_pipeline, strength: float) -> None:
    with mute(toy_pipeline.vocoder.conv_post):
        blend = run(toy_pipeline, 4, "blend", strength=strength)
    np.testing.assert_allclose(blend, run(toy_pipeline, 1, "faithful"), atol=1e-6)


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.5, 0.2])
def test_a_strength_that_leaves_no_step_is_refused(toy_pipeline, strength: float) -> None:
    with pytest.raises(ValueError, match=r"`strength` has to be within 0 and 1 and leave at least one .* \(4\)"):
        run(toy_pipeline, 4, strength=strength)
