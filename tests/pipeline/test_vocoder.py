"""BigVGAN-v2 in NVIDIA's layout loads into `diffusers.MMAudioVocoder` and gives what the papers describe."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bigvgan import BANDS, CHANNELS, DILATIONS, KERNELS, RATES, folded, generator, low_pass, nvidia_weights
from diffusers import MMAudioVocoder

from pipeline_aud2studio import Aud2StudioPipeline
from pipeline_aud2studio.infer import main


@pytest.fixture(scope="module")
def vocoder() -> MMAudioVocoder:
    model = MMAudioVocoder(
        num_mels=BANDS,
        upsample_initial_channel=CHANNELS,
        upsample_rates=RATES,
        upsample_kernel_sizes=tuple(2 * rate for rate in RATES),
        resblock_kernel_sizes=KERNELS,
        resblock_dilation_sizes=(DILATIONS,) * len(KERNELS),
    )
    model.load_state_dict(folded(nvidia_weights(seed=0)), strict=True)
    return model.double().eval()


def test_filters_are_kaiser_windowed_sincs(vocoder: MMAudioVocoder) -> None:
    fresh = MMAudioVocoder(
        upsample_initial_channel=8,
        upsample_rates=(2,),
        upsample_kernel_sizes=(4,),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1,),),
    )
    torch.testing.assert_close(fresh.activation_post.upsample.filter[0, 0].double(), low_pass(), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        fresh.activation_post.downsample.lowpass.filter[0, 0].double(), low_pass(), rtol=0, atol=1e-6
    )


def test_nvidia_layout_gives_bigvgan(vocoder: MMAudioVocoder) -> None:
    mel = -5 + 2.5 * torch.randn(2, BANDS, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = {name: value.double() for name, value in folded(nvidia_weights(seed=0)).items()}
    with torch.inference_mode():
        expected = generator(weights, mel)
        waveform = vocoder(mel).sample
    assert waveform.shape == (2, 1, 12 * 256)
    assert 0.05 < expected.std() < 1.0  # neither silent nor always at the limits, or the comparison would say nothing
    assert 0.5 < (expected.abs() < 1).double().mean() < 1
    torch.testing.assert_close(waveform, expected, rtol=0, atol=1e-5)


def test_weight_norm_folds_to_the_gain(vocoder: MMAudioVocoder) -> None:
    """Every output channel's norm (a transposed convolution's input channel's) is its `weight_g`."""
    weights = nvidia_weights(seed=0)
    state = vocoder.state_dict()
    for name in ("conv_pre", "ups.2.0", "resblocks.3.convs1.1", "conv_post"):
        norms = np.sqrt((state[f"{name}.weight"].numpy() ** 2).sum(axis=(1, 2)))
        np.testing.assert_allclose(norms, weights[f"{name}.weight_g"].flatten().numpy(), rtol=1e-5)


SETTINGS = {
    "sampling_rate": 44100,
    "n_fft": 1024,
    "win_size": 1024,
    "hop_size": 256,
    "num_mels": BANDS,
    "fmin": 0,
    "fmax": None,
    "upsample_rates": RATES,
    "upsample_kernel_sizes": [2 * rate for rate in RATES],
    "upsample_initial_channel": CHANNELS,
    "resblock": "1",
    "resblock_kernel_sizes": KERNELS,
    "resblock_dilation_sizes": [DILATIONS] * len(KERNELS),
    "activation": "snakebeta",
    "snake_logscale": True,
    "use_tanh_at_final": False,
    "use_bias_at_final": False,
}


def checkpoint(folder: Path, content: object = None, **changes: object) -> Path:
    """A folder as NVIDIA publishes them."""
    folder.mkdir()
    torch.save(content or {"generator": nvidia_weights(seed=3)}, folder / "bigvgan_generator.pt")
    (folder / "config.json").write_text(json.dumps({**SETTINGS, **changes}))
    return folder


@pytest.mark.parametrize("given", ["folder", "file"])
def test_nvidias_checkpoint_becomes_the_vocoder(given: str, toy_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(toy_model, tmp_path / "model")
    index = model / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"griffin_lim_iterations": 32}))
    path = checkpoint(tmp_path / "nvidia") / ("bigvgan_generator.pt" if given == "file" else "")
    arguments = ["import-bigvgan", "--checkpoint", str(path), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--model", str(model)]) == 0
    pipeline = Aud2StudioPipeline.from_pretrained(tmp_path / "out")
    assert pipeline.config.griffin_lim_iterations == 0
    mel = -5 + 2.5 * torch.randn(1, BANDS, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = {name: value.double() for name, value in folded(nvidia_weights(seed=3)).items()}
    with torch.inference_mode():
        expected = generator(weights, mel)
        waveform = pipeline.vocoder.double()(mel).sample
    torch.testing.assert_close(waveform, expected, rtol=0, atol=1e-5)
    before, after = (
        Aud2StudioPipeline.from_pretrained(folder).unet.state_dict() for folder in (toy_model, tmp_path / "out")
    )
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [path.name for path in (tmp_path / "out" / "vocoder").glob("*.bin")] == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampling_rate": 24000}, "sampling_rate is 24000, the model's sample_rate 44100"),
        ({"num_mels": 100}, "num_mels is 100, the model's n_mels 128"),
        ({"fmax": 12000}, "fmax is 12000, the model's fmax 22050"),
        ({"hop_size": 512}, "multiply to 256, but hop_size is 512"),
        ({"win_size": 800}, "win_size is 800"),
        ({"use_tanh_at_final": True}, "use_tanh_at_final is True"),
        ({"resblock": "2"}, "resblock is 2"),
        ({"upsample_initial_channel": 64}, "does not hold the generator of its configuration"),
    ],
)
def test_what_does_not_fit_is_named(
    changes: dict[str, object],
    words: str,
    toy_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = checkpoint(tmp_path / "nvidia", **changes)
    out = tmp_path / "out"
    assert main(["import-bigvgan", "--checkpoint", str(path), "--out", str(out), "--model", str(toy_model)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nvidia"]


class Exploit:
    """A pickle that would run code."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.witness,)


def test_code_in_a_checkpoint_does_not_run(
    toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint(tmp_path / "nvidia", content={"generator": Exploit(tmp_path / "witness")})
    out = tmp_path / "out"
    assert main(["import-bigvgan", "--checkpoint", str(path), "--out", str(out), "--model", str(toy_model)]) == 2
    assert "does not hold the generator" in capsys.readouterr().err
    assert not (tmp_path / "witness").exists() and not out.exists()


def test_nothing_is_replaced_and_nothing_is_looked_for_in_vain(
    toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, model = str(checkpoint(tmp_path / "nvidia")), ["--model", str(toy_model)]
    (tmp_path / "out").mkdir()
    assert main(["import-bigvgan", "--checkpoint", path, "--out", str(tmp_path / "out"), *model]) == 2
    assert main(["import-bigvgan", "--checkpoint", f"{path}/no.pt", "--out", str(tmp_path / "new"), *model]) == 2
    (tmp_path / "nvidia" / "config.json").unlink()
    assert main(["import-bigvgan", "--checkpoint", path, "--out", str(tmp_path / "new"), *model]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert ["exists already" in errors[0], "no.pt does not exist" in errors[1], "has to lie beside" in errors[2]] == [
        True
    ] * 3
