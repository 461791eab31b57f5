"""What holds of the pipeline's call whatever it is given, tried with Hypothesis' examples."""

import inspect
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline_aud2studio import Aud2StudioPipeline
from pipeline_aud2studio.audio import loudness_lufs

pytestmark = pytest.mark.slow

# The same examples every time; the fixture is only read.
TRIES = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def recordings(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """(channels, samples) of any level, rate and crookedness, and the rate."""
    rate = draw(st.sampled_from([8000, 11025, 22050, 44100, 48000, 96000]))
    channels, samples = draw(st.integers(1, 2)), draw(st.integers(1, 2 * rate // 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    waveform = rng.standard_normal((channels, samples)) * 10.0 ** draw(st.floats(-5, 0.5))
    waveform += draw(st.floats(-0.3, 0.3))
    if draw(st.booleans()):
        waveform[:, : draw(st.integers(0, samples))] = 0
    if draw(st.booleans()):
        waveform = np.clip(waveform, -0.9, 0.9)
    return waveform.astype(np.float32), rate


@TRIES
@given(recording=recordings(), steps=st.integers(1, 3), batch_size=st.integers(1, 5), seed=st.integers(0, 2**40))
def test_shape_loudness_and_input_are_kept(
    toy_pipeline: Aud2StudioPipeline, recording: tuple[np.ndarray, int], steps: int, batch_size: int, seed: int
) -> None:
    waveform, rate = recording
    before = waveform.copy()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        restored = toy_pipeline(
            waveform,
            rate,
            num_inference_steps=steps,
            batch_size=batch_size,
            generator=torch.Generator().manual_seed(seed),
        ).audios[0]
    np.testing.assert_array_equal(waveform, before)
    assert restored.shape == waveform.shape and restored.dtype == np.float32
    assert np.isfinite(restored).all()
    loudness = [loudness_lufs(w, rate) for w in (waveform, restored)]
    if np.isfinite(loudness).all() and not any("quieter" in str(warning.message) for warning in said):
        assert loudness[1] == pytest.approx(loudness[0], abs=0.5)


@TRIES
@given(recording=recordings(), dryness=st.one_of(st.just(0.0), st.floats(0, 1)))
def test_dryness_mixes_with_the_input(
    toy_pipeline: Aud2StudioPipeline, recording: tuple[np.ndarray, int], dryness: float
) -> None:
    """At 0 it is the input; in between, it is what the formula says of both ends, up to one gain."""
    waveform, rate = recording

    def restored(amount: float) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            generator = torch.Generator().manual_seed(0)
            return toy_pipeline(waveform, rate, dryness=amount, generator=generator, num_inference_steps=1).audios[0]

    mixed = restored(dryness).astype(np.float64).ravel()
    expected = (dryness * restored(1.0) + (1 - dryness) * waveform).astype(np.float64).ravel()
    gain = mixed @ expected / max(expected @ expected, 1e-30)
    # The rounding of float32, and a sum that may cancel.
    scale = np.abs(waveform).max() + np.abs(restored(1.0)).max()
    np.testing.assert_allclose(mixed, gain * expected, atol=max(1.0, gain) * 1e-5 * scale + 1e-12)


NUMBERS = st.one_of(st.integers(-(2**40), 2**40), st.floats(allow_nan=True, allow_infinity=True))
ANYTHING = st.recursive(
    st.one_of(NUMBERS, st.none(), st.booleans(), st.text(max_size=9), st.binary(max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)


@TRIES
@given(
    name=st.sampled_from(["sampling_rate", "num_inference_steps", "dryness", "batch_size", "strength"]),
    value=NUMBERS,
    audio=arrays.arrays(
        np.float32, arrays.array_shapes(min_dims=1, max_dims=4, max_side=5), elements=st.floats(-1, 1, width=32)
    ),
)
def test_any_argument_is_taken_or_refused_in_a_sentence(
    toy_pipeline: Aud2StudioPipeline, name: str, value: Any, audio: np.ndarray
) -> None:
    if name == "batch_size" or (name == "num_inference_steps" and isinstance(value, int)):
        value = value if isinstance(value, float) or value < 4 else 4  # what is in range must not take hours
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = toy_pipeline(audio, **{name: value}).audios
    except ValueError as error:
        assert len(str(error)) > 10
    else:
        assert np.isfinite(found).all()
        assert found.shape[-1] == audio.shape[-1]


@settings(TRIES, max_examples=300)
@given(
    name=st.sampled_from([*inspect.signature(Aud2StudioPipeline.check_inputs).parameters][1:] + ["audio"]),
    value=ANYTHING,
)
def test_an_argument_of_any_type_is_taken_or_refused_in_a_sentence(
    toy_pipeline: Aud2StudioPipeline, name: str, value: Any
) -> None:
    if name == "num_inference_steps" and isinstance(value, int) and value > 4:
        value = 4  # what is in range must not take hours
    try:
        toy_pipeline(**{"audio": np.full(50, 0.1, np.float32), name: value})
    except ValueError as error:
        assert "`" in str(error) and "\n" not in str(error)
