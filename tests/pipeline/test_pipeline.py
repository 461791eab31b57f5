"""The pipeline with tiny random weights: everything but the quality of the restoration."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    MMAudioVocoder,
    UniPCMultistepScheduler,
)
from torch import nn

from pipeline_aud2studio import Aud2StudioPipeline
from pipeline_aud2studio.features import PATCH, BandImage, image_channels
from pipeline_aud2studio.takes import assign_slots

RATE = 44100


def recording(channels: int = 1, seconds: float = 1.5, seed: int = 0, sampling_rate: int = RATE) -> np.ndarray:
    """Something like music: decaying tones and a little noise, (channels, samples)."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * sampling_rate)) / sampling_rate
    waveform = 0.01 * rng.standard_normal((channels, len(time)))
    for channel in waveform:
        for frequency in rng.uniform(80, 4000, 6):
            channel += 0.05 * np.sin(2 * np.pi * frequency * time + rng.uniform(0, 6)) * np.exp(-(time % 0.5) * 4)
    return waveform.astype(np.float32)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def identity_pipeline(toy_pipeline: Aud2StudioPipeline) -> Aud2StudioPipeline:
    """A UNet that finds nothing to take away: gate and interference are zero, and so is the mel's correction."""
    head = toy_pipeline.unet.conv_out
    saved = [parameter.detach().clone() for parameter in head.parameters()]
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(head.bias[PATCH**2 :], -30.0)
    yield toy_pipeline
    for parameter, value in zip(head.parameters(), saved, strict=True):
        parameter.data.copy_(value)


@pytest.mark.parametrize("sampling_rate", [8000, 44100, 48000, 192000])
def test_an_untrained_head_returns_the_input(identity_pipeline, sampling_rate):
    """All of the chain but the UNet: levels, resampling, STFT, chunks, gains, overlap-add, loudness."""
    narrow = recording(2, 1.2, sampling_rate=6000)  # below the transition band of every resampler but at the edges
    audio = scipy.signal.resample(narrow, round(1.2 * sampling_rate), axis=1).astype(np.float32)
    restored = identity_pipeline(audio, sampling_rate).audios[0]
    assert restored.shape == audio.shape and restored.dtype == np.float32
    error = np.sum((restored - audio) ** 2) / np.sum(audio**2)
    assert 10 * np.log10(error) < -40


@pytest.mark.parametrize("seconds", [0.00003, 0.001, 0.02, 0.5, 3.0])
@pytest.mark.parametrize("reconstruction", ["faithful", "vocoder", "blend"])
def test_any_length_comes_out_to_the_sample(toy_pipeline, seconds, reconstruction):
    audio = recording(1, seconds)
    assert toy_pipeline(audio, RATE, 2, reconstruction).audios.shape == (1, *audio.shape)


def test_forms_of_audio(toy_pipeline):
    audio = recording(2, 0.7)
    one = toy_pipeline(audio, RATE, generator=seeded()).audios
    assert one.shape == (1, 2, audio.shape[1])
    mono = toy_pipeline(audio[0], RATE, generator=seeded()).audios
    assert mono.shape == (1, 1, audio.shape[1])
    as_torch = toy_pipeline(torch.from_numpy(audio), RATE, generator=seeded(), output_type="pt").audios
    assert isinstance(as_torch, torch.Tensor)
    np.testing.assert_array_equal(as_torch.numpy(), one)
    as_tuple = toy_pipeline(audio, RATE, generator=seeded(), return_dict=False)
    np.testing.assert_array_equal(as_tuple[0], one)
    takes = toy_pipeline([audio, audio[:1], 0.1 * audio], RATE).audios
    assert takes.shape == one.shape


@pytest.mark.parametrize("reconstruction", ["faithful", "vocoder", "blend"])
def test_the_seed_decides_to_the_bit(toy_pipeline, reconstruction):
    audio = recording(1, 1.0)
    first, again, other = (toy_pipeline(audio, RATE, 2, reconstruction, generator=seeded(s)).audios for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-6


def test_batch_items_do_not_depend_on_their_neighbours(toy_pipeline):
    audio = np.stack([recording(1, 0.8, seed) for seed in range(2)])
    batch = toy_pipeline(audio, RATE, generator=seeded()).audios
    alone = toy_pipeline(audio[:1], RATE, generator=seeded()).audios
    np.testing.assert_allclose(batch[0], alone[0], atol=1e-6)


@pytest.mark.parametrize("reconstruction", ["faithful", "vocoder", "blend"])
def test_chunk_batch_size_changes_nothing(toy_pipeline, reconstruction):
    audio = recording(2, 3.0)
    results = [
        toy_pipeline(audio, RATE, 2, reconstruction, generator=seeded(), batch_size=size).audios for size in (1, 3, 16)
    ]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-4)


def test_equal_channels_stay_equal_and_opposite_ones_opposite(toy_pipeline):
    mono = recording(1, 1.0)
    for reconstruction in ("faithful", "blend"):
        restored = toy_pipeline(np.concatenate([mono, mono]), RATE, 2, reconstruction, generator=seeded()).audios[0]
        np.testing.assert_allclose(restored[0], restored[1], atol=1e-6)
    opposite = toy_pipeline(np.concatenate([mono, -mono]), RATE, generator=seeded()).audios[0]
    assert np.sqrt(np.mean(opposite**2)) > 0.1 * np.sqrt(np.mean(mono**2))


def test_silence_is_returned_as_it_is(toy_pipeline):
    silence = np.zeros((2, 5000), np.float32)
    np.testing.assert_array_equal(toy_pipeline(silence, RATE).audios[0], silence)


def test_half_dry_lies_between_in_phase(toy_pipeline):
    audio = recording(1, 1.0)
    restored = toy_pipeline(audio, RATE, 2, "blend", generator=seeded()).audios[0]
    mixed = toy_pipeline(audio, RATE, 2, "blend", dryness=0.5, generator=seeded()).audios[0]
    average = (audio + restored) / 2
    scale = np.sum(mixed * average) / np.sum(average**2)  # the mix is brought back to the input's loudness
    np.testing.assert_allclose(mixed, scale * average, atol=1e-5)


@pytest.mark.parametrize(
    "scheduler", [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler]
)
def test_schedulers_swap(toy_pipeline, scheduler):
    shipped = toy_pipeline.scheduler
    try:
        toy_pipeline.scheduler = scheduler.from_config(shipped.config, clip_sample=False)
        audio = recording(1, 1.5)
        for steps in (1, 4):
            first, again = (toy_pipeline(audio, RATE, steps, "vocoder", generator=seeded()).audios for _ in range(2))
            np.testing.assert_array_equal(first, again)
    finally:
        toy_pipeline.scheduler = shipped


def test_sampling_follows_the_ddim_formula(toy_pipeline, monkeypatch):
    """A UNet that always predicts v for a known clean mel: two DDIM steps end at that mel, whatever the noise."""
    shipped, clean = toy_pipeline.scheduler, torch.linspace(-1, 1, 128)[:, None].expand(1, 1, 128, -1)
    scheduler = DDIMScheduler.from_config(shipped.config, clip_sample=False)
    alphas = scheduler.alphas_cumprod
    seen = []

    class PerfectUNet:
        dtype, config = torch.float32, toy_pipeline.unet.config

        def __call__(self, image, timestep, encoder_hidden_states, encoder_attention_mask):
            noisy = nn.functional.pixel_shuffle(image[:, : PATCH**2], PATCH)
            alpha = alphas[int(timestep)]
            wanted = clean[..., :1].expand_as(noisy)
            noise = (noisy - alpha.sqrt() * wanted) / (1 - alpha).sqrt()
            output = torch.zeros(len(image), image_channels(4)[1], *image.shape[2:])
            velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * wanted
            output[:, : PATCH**2] = nn.functional.pixel_unshuffle(velocity, PATCH)
            seen.append(int(timestep))
            return type("Output", (), {"sample": output})

    features = []
    real = BandImage.features
    monkeypatch.setattr(BandImage, "features", lambda *a, **k: features.append(real(*a, **k)) or features[-1])
    mels = []

    def silent(vocoder, parts, device, refine):
        assert refine is None
        mels.extend(mel for _, mel in parts)
        yield torch.zeros(len(mels[0]), sum(mel.shape[-1] for mel in mels) * 256)

    monkeypatch.setattr("pipeline_aud2studio.pipeline.vocode_parts", silent)
    monkeypatch.setattr(Aud2StudioPipeline, "unet", PerfectUNet(), raising=False)
    toy_pipeline.scheduler = scheduler
    unet = toy_pipeline.__dict__.pop("unet")
    try:
        toy_pipeline(recording(1, 0.5), RATE, 2, "vocoder")
    finally:
        toy_pipeline.unet, toy_pipeline.scheduler = unet, shipped
    assert seen == [999, 499]
    seen_frames = features[0].log_mel.shape[-1]
    wanted = toy_pipeline.image.corrected(clean[..., :1].expand(1, 1, 128, seen_frames), features[0])[:, 0]
    frames = mels[0].shape[-1]
    torch.testing.assert_close(mels[0], wanted[..., :frames].clamp_min(np.log(1e-5)), atol=1e-3, rtol=1e-3)


def test_faithful_needs_one_unet_call(toy_pipeline):
    calls = []
    handle = toy_pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    try:
        toy_pipeline(recording(1, 0.5), RATE, 50)
        assert len(calls) == 1
        toy_pipeline(recording(1, 0.5), RATE, 5, "vocoder")
        assert len(calls) == 1 + 5
    finally:
        handle.remove()


def test_callback_sees_every_step_and_may_change_the_latents(toy_pipeline):
    steps = []

    def callback(pipe, step, timestep, kwargs):
        steps.append((step, int(timestep)))
        return {"latents": torch.zeros_like(kwargs["latents"])}

    audio = recording(1, 0.5)
    changed = toy_pipeline(audio, RATE, 4, "vocoder", generator=seeded(), callback_on_step_end=callback).audios
    assert [step for step, _ in steps] == [0, 1, 2, 3] and steps[0][1] == 999
    plain = toy_pipeline(audio, RATE, 4, "vocoder", generator=seeded()).audios
    assert np.abs(changed - plain).max() > 1e-4


def test_given_latents_replace_the_drawn_noise(toy_pipeline):
    audio = recording(1, 1.0)
    frames = -(-audio.shape[1] // 256)
    latents = torch.randn(1, 1, 128, frames, generator=seeded(5))
    first, again = (
        toy_pipeline(audio, RATE, 1, "vocoder", latents=latents, generator=seeded(seed)).audios for seed in (1, 2)
    )
    np.testing.assert_array_equal(first, again)


def test_shifting_the_chunk_grid_changes_little(identity_pipeline):
    """Where the UNet says nothing the grid must not show at all; the shipped weights have a bound of their own."""
    audio = recording(1, 4.0)
    shift = 37 * 256
    whole = identity_pipeline(audio, RATE).audios[0]
    shifted = identity_pipeline(audio[:, shift:], RATE).audios[0]
    scale = np.sum(whole[:, shift:] * shifted) / np.sum(shifted**2)
    np.testing.assert_allclose(whole[:, shift + 2048 :], scale * shifted[:, 2048:], atol=1e-5)


def test_save_and_load(toy_pipeline, tmp_path: Path):
    toy_pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "Aud2StudioPipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["condition_encoder"] == ["transformers", "ASTForAudioClassification"]
    assert index["vocoder"] == ["diffusers", "MMAudioVocoder"]
    audio = recording(1, 1.0)
    expected = toy_pipeline(audio, RATE, generator=seeded()).audios
    for loader in (Aud2StudioPipeline, DiffusionPipeline):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is Aud2StudioPipeline
        loaded.set_progress_bar_config(disable=True)
        np.testing.assert_allclose(loaded(audio, RATE, generator=seeded()).audios, expected, atol=1e-5)


def test_half_precision_of_the_unet_stays_close(toy_pipeline, tmp_path: Path):
    toy_pipeline.save_pretrained(tmp_path)
    loaded = Aud2StudioPipeline.from_pretrained(tmp_path, dtype={"vocoder": torch.float32, "default": torch.bfloat16})
    loaded.set_progress_bar_config(disable=True)
    assert loaded.unet.dtype == torch.bfloat16 and loaded.vocoder.dtype == torch.float32
    audio = recording(1, 1.0)
    expected = toy_pipeline(audio, RATE, generator=seeded()).audios
    error = loaded(audio, RATE, generator=seeded()).audios - expected
    assert 10 * np.log10(np.sum(error**2) / np.sum(expected**2)) < -20


def test_another_vocoder_can_be_given(toy_pipeline, tmp_path: Path):
    toy_pipeline.save_pretrained(tmp_path)
    torch.manual_seed(3)
    other = MMAudioVocoder.from_config(toy_pipeline.vocoder.config)
    loaded = Aud2StudioPipeline.from_pretrained(tmp_path, vocoder=other)
    assert loaded.vocoder is other


def test_offloading_names_every_model_in_the_order_of_use(toy_pipeline):
    models = {name for name, part in toy_pipeline.components.items() if isinstance(part, nn.Module)}
    assert set(Aud2StudioPipeline.model_cpu_offload_seq.split("->")) == models
    calls = []
    handles = [
        toy_pipeline.components[name].register_forward_pre_hook(lambda *_, name=name: calls.append(name))
        for name in models
    ]
    try:
        toy_pipeline(recording(1, 0.5), RATE, 1, "vocoder")
    finally:
        for handle in handles:
            handle.remove()
    assert "->".join(dict.fromkeys(calls)) == Aud2StudioPipeline.model_cpu_offload_seq


@pytest.mark.parametrize("reconstruction", ["faithful", "vocoder"])
def test_offloading_changes_nothing(toy_pipeline, reconstruction):
    """The hooks of a GPU, with a CPU as the device that they move the models to."""
    audio = recording(2, 2.0)
    expected = toy_pipeline(audio, RATE, 2, reconstruction, generator=seeded()).audios
    try:
        toy_pipeline.enable_model_cpu_offload(device="cpu")
        for _ in range(2):  # the hooks are set anew after a call
            found = toy_pipeline(audio, RATE, 2, reconstruction, generator=seeded()).audios
            np.testing.assert_array_equal(found, expected)
    finally:
        toy_pipeline.remove_all_hooks()


def test_autocast_is_for_the_networks_only(identity_pipeline):
    """Half precision in the spectra would be a distortion at about -50 dB."""
    audio = recording(1, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        restored = identity_pipeline(audio, RATE, generator=seeded()).audios[0]
    error = restored[:, 2048:-2048] - audio[:, 2048:-2048]
    assert 10 * np.log10(np.sum(error**2) / np.sum(audio**2)) < -80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampling_rate": 4000}, "sampling_rate"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 1001}, "num_inference_steps"),
        ({"reconstruction": "magic"}, "reconstruction"),
        ({"dryness": 1.5}, "dryness"),
        ({"dryness": 0.5, "reconstruction": "vocoder"}, "in phase"),
        ({"batch_size": 0}, "batch_size"),
        ({"output_type": "pil"}, "output_type"),
        ({"callback_on_step_end_tensor_inputs": ["image"]}, "callback_on_step_end_tensor_inputs"),
        ({"latents": torch.zeros(1, 1, 64, 130)}, r"\(rows, 1, 128, frames\), got \(1, 1, 64, 130\)"),
        ({"latents": torch.zeros(2, 1, 128, 130)}, "a row for each channel, 1, got 2"),
    ],
)
def test_bad_arguments_are_named(toy_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        toy_pipeline(recording(), **{"sampling_rate": RATE, **arguments})


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("sampling_rate", "44100", "an integer, got '44100' of type str"),
        ("sampling_rate", 44100.5, "an integer, got 44100.5 of type float"),
        ("sampling_rate", None, "an integer, got None of type NoneType"),
        ("num_inference_steps", "5", "an integer"),
        ("num_inference_steps", True, "an integer, got True of type bool"),
        ("batch_size", 2.0, "an integer"),
        ("batch_size", [2], "an integer"),
        ("dryness", "1", "a number, got '1' of type str"),
        ("dryness", None, "a number"),
        ("strength", 1j, "a number"),
        ("reconstruction", 3, "a string"),
        ("reconstruction", np.array(["faithful", "blend"]), "a string"),
        ("output_type", 3, "a string"),
        ("generator", 3, "a `torch.Generator` or None, got 3 of type int"),
        ("generator", [torch.Generator()], "a `torch.Generator` or None"),
        ("latents", np.zeros((1, 1, 128, 130)), "a `torch.Tensor` or None"),
        ("callback_on_step_end", 5, "callable or None, got 5 of type int"),
        ("callback_on_step_end_tensor_inputs", None, "a list"),
        ("callback_on_step_end_tensor_inputs", "latents", "a list"),
        ("callback_on_step_end_tensor_inputs", [["latents"]], "a list"),
    ],
)
def test_arguments_of_a_wrong_type_are_named(toy_pipeline, name, value, wanted):
    with pytest.raises(ValueError, match=f"^`{name}` has to be {wanted}.*\\.$"):
        toy_pipeline(recording(), **{"sampling_rate": RATE, name: value})


def test_numbers_may_be_numpys(toy_pipeline):
    audio = recording(1, 0.3)
    arguments = {"sampling_rate": np.int64(RATE), "num_inference_steps": np.int32(1), "dryness": np.float32(1)}
    found = toy_pipeline(audio, **arguments, generator=seeded()).audios
    np.testing.assert_array_equal(found, toy_pipeline(audio, RATE, 1, generator=seeded()).audios)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros((3, 100), np.float32), "one or two"),
        (np.zeros((1, 0), np.float32), "no samples"),
        (np.zeros((0, 1, 100), np.float32), "empty batch"),
        (np.full((1, 100), np.nan, np.float32), "NaN"),
        (np.full((1, 100), np.inf, np.float32), "infinite"),
        (np.zeros((1, 100), np.int16), "floating point"),
        ([np.zeros((1, 100), np.float32)] * 5, "1 to 4 takes"),
        ([], "1 to 4 takes"),
        ("audience.wav", "read 'audience.wav' first"),
        (Path("audience.wav"), "not the path of a file"),
        (None, "a list of these, got NoneType"),
        (3, "a list of these, got int"),
        ({"audio": np.zeros(100, np.float32)}, "a list of these, got dict"),
        ([0.1, 0.2], "Every take of `audio` has to be a numpy array or a torch tensor, got float"),
        (["front.wav", "balcony.wav"], "Every take of `audio` has to be .*, got str"),
        (torch.zeros(1, 100, dtype=torch.int16), "floating point with full scale at 1.0, got torch.int16"),
        (torch.zeros(1, 100, dtype=torch.complex64), "floating point with full scale at 1.0, got torch.complex64"),
    ],
)
def test_bad_audio_is_explained(toy_pipeline, audio, message):
    with pytest.raises(ValueError, match=message):
        toy_pipeline(audio, RATE)


@pytest.mark.parametrize(
    ("num_channels", "slots"),
    [
        ([1], [[0]]),
        ([2], [[0, 1], [1, 0]]),
        ([1, 2], [[0, 1]]),
        ([2, 1], [[0, 1, 2], [1, 0, 2]]),
        ([2, 2, 2], [[0, 1, 2, 4], [1, 0, 3, 5]]),
        ([2, 1, 2, 1], [[0, 2, 3, 5], [1, 2, 4, 5]]),
    ],
)
def test_slots(num_channels, slots):
    assert assign_slots(num_channels, 4) == slots


def test_importing_the_package_makes_the_class_known_to_diffusers() -> None:
    """As README has it: `DiffusionPipeline.from_pretrained` finds the class that the model index names."""
    code = "import diffusers, pipeline_aud2studio; print(diffusers.Aud2StudioPipeline.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "Aud2StudioPipeline", done.stderr
