"""`aud2studio import-bigvgan`: NVIDIA's BigVGAN-v2 weights become the vocoder of a model folder.

Lee et al., "BigVGAN: A Universal Neural Vocoder with Large-Scale Training" (ICLR 2023); the weights of version 2
(22, 24 and 44 kHz) are `bigvgan_generator.pt` and `config.json` in NVIDIA's repositories, MIT licence.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import shipped_weights
from ..loading import new_folder

GENERATOR, CONFIG = "bigvgan_generator.pt", "config.json"
INDEX = "model_index.json"
# Ours by NVIDIA's name; both have to be the same, or the vocoder hears noise.
FRONT_END = {
    "sample_rate": "sampling_rate",
    "n_fft": "n_fft",
    "hop_length": "hop_size",
    "n_mels": "num_mels",
    "fmin": "fmin",
    "fmax": "fmax",
}
# Numbers of a generator that both call the same.
SHAPE = ["num_mels", "upsample_initial_channel", "upsample_rates", "upsample_kernel_sizes"]
SHAPE += ["resblock_kernel_sizes", "resblock_dilation_sizes"]
# What version 2 is, and MMAudioVocoder has no option for.
VERSION_2 = {
    "resblock": "1",
    "activation": "snakebeta",
    "snake_logscale": True,
    "use_tanh_at_final": False,
    "use_bias_at_final": False,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    checkpoint = (
        f"{GENERATOR} with its {CONFIG} beside it, their folder, or a Hub repository such as"
        " nvidia/bigvgan_v2_44khz_128band_256x"
    )
    add("--checkpoint", required=True, metavar="PATH_OR_REPO", help=checkpoint)
    add("--out", required=True, type=Path, metavar="DIR", help="the model folder to write, for `--model DIR`")
    add("--model", type=Path, metavar="DIR", help="model folder whose vocoder is replaced (default: the shipped one)")


def run(args: argparse.Namespace) -> None:
    """Writes the model folder, whole or not at all.

    Raises:
        ValueError: the checkpoint is not BigVGAN-v2's, is damaged, or its front end is not the model's.
    """
    model = args.model or shipped_weights()
    if not (model / INDEX).is_file():
        raise ValueError(f"{model} is not a model folder: it has no {INDEX}")
    with new_folder(args.out) as part:
        generator, config = find_checkpoint(args.checkpoint)
        settings = read_config(config)
        index = json.loads((model / INDEX).read_text(encoding="utf-8"))
        check_front_end(settings, index)
        vocoder = load_generator(generator, settings)
        shutil.copytree(model, part, ignore=lambda folder, names: ["vocoder"] if Path(folder) == model else [])
        vocoder.save_pretrained(part / "vocoder")
        # What makes up for the tiny vocoder would blur this one.
        text = json.dumps(index | {"griffin_lim_iterations": 0}, indent=2, sort_keys=True)
        (part / INDEX).write_text(f"{text}\n", encoding="utf-8")
    millions = sum(parameter.numel() for parameter in vocoder.parameters()) / 1e6
    print(f"{args.out}: the model of {model.name} with a vocoder of {millions:.1f} M parameters")


def find_checkpoint(checkpoint: str) -> tuple[Path, Path]:
    """Finds weights and configuration of a file, a folder or a Hub repository."""
    path = Path(checkpoint)
    if path.is_dir():
        path = path / GENERATOR
    if path.exists():
        config = path.with_name(CONFIG)
        if not config.is_file():
            raise ValueError(f"{config} does not exist: NVIDIA's configuration has to lie beside the weights")
        return path, config
    if Path(checkpoint).is_dir() or checkpoint.count("/") != 1 or path.suffix:
        raise ValueError(f"{path} does not exist")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(checkpoint, GENERATOR)), Path(hf_hub_download(checkpoint, CONFIG))
    except Exception as error:  # no network, no such repository, no such file
        reason = str(error).splitlines()[0]
        raise ValueError(f"{checkpoint} is neither here nor can it be downloaded: {reason}") from error


def read_config(path: Path) -> dict[str, Any]:
    """NVIDIA's configuration of a generator of version 2."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        missing = [name for name in (*FRONT_END.values(), "upsample_rates") if name not in settings]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is not BigVGAN's configuration: {error}") from error
    if missing:
        raise ValueError(f"{path} is not BigVGAN's configuration: it has no {missing[0]}")
    for name, wanted in VERSION_2.items():
        # Version 1 has a tanh and a bias at the end and says nothing of them.
        found = settings.get(name, True if name.startswith("use_") else None)
        if found != wanted:
            raise ValueError(f"{path}: {name} is {found}, but in BigVGAN-v2 it is {wanted}: this is another version")
    if (product := math.prod(settings["upsample_rates"])) != settings["hop_size"]:
        raise ValueError(f"{path}: upsample_rates multiply to {product}, but hop_size is {settings['hop_size']}")
    return dict(settings)


def check_front_end(settings: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Raises a ValueError that names the first number in which two mel front ends differ."""
    nyquist = settings["sampling_rate"] / 2
    for ours, theirs in FRONT_END.items():
        wanted, found = model[ours], settings[theirs]
        if ours == "fmax":
            wanted, found = wanted or model["sample_rate"] / 2, found or nyquist
        if wanted != found:
            raise ValueError(
                f"the vocoder's {theirs} is {found}, the model's {ours} {wanted}: a vocoder of another front end"
                " would give noise; choose weights that fit, or the --model that they fit"
            )
    if (window := settings.get("win_size", settings["n_fft"])) != settings["n_fft"]:
        raise ValueError(f"the vocoder's win_size is {window}, the model's window as long as n_fft: {model['n_fft']}")


def load_generator(path: Path, settings: Mapping[str, Any]) -> Any:
    """The generator as an `MMAudioVocoder` in float32; the file is read as tensors only, no code in it runs.

    Raises:
        ValueError: the file cannot be read, holds something else than tensors, or does not fit the configuration.
    """
    import torch
    from diffusers import MMAudioVocoder

    try:
        weights = folded(torch.load(path, map_location="cpu", weights_only=True)["generator"])
        vocoder = MMAudioVocoder(**{name: _as_tuples(settings[name]) for name in SHAPE})
        vocoder.load_state_dict(weights, strict=True)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} does not hold the generator of its configuration: {reason}") from error
    if wrong := [name for name, value in vocoder.state_dict().items() if not torch.isfinite(value).all()]:
        raise ValueError(f"{path}: {wrong[0]} is not finite")
    return vocoder.eval()


def _as_tuples(value: Any) -> Any:
    """A list in JSON as a tuple, with those in it."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def folded(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weight normalisation undone: `weight_g * weight_v / |weight_v|`, the norm over all dimensions but the first."""
    result = {name: value for name, value in weights.items() if not name.endswith((".weight_g", ".weight_v"))}
    for name, direction in weights.items():
        if name.endswith(".weight_v"):
            norm = direction.flatten(1).norm(dim=1).reshape(-1, *[1] * (direction.dim() - 1))
            result[name.removesuffix("_v")] = weights[f"{name.removesuffix('v')}g"] * direction / norm
    return result
