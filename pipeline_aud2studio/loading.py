"""From the name of a model to a pipeline that is ready to run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command import PROGRAM, bar_settings, one_line

if TYPE_CHECKING:
    from .pipeline import Aud2StudioPipeline

# By their names in diffusers. They share one configuration: the checkpoint's.
SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB_TIMEOUT_S = 2.0  # to find out whether the Hub answers at all


def check_model(model: str, backend: str = "torch") -> None:
    """Raises a ValueError for what is no model folder of this backend, nor the name of a Hub repository."""
    folder = Path(model)
    is_onnx = (folder / "unet" / "model.onnx").is_file()
    if is_onnx and backend == "torch":
        raise ValueError(f"{folder} holds ONNX files: pass --backend onnx with it")
    if not is_onnx and backend == "onnx":
        raise ValueError(f"{folder} holds no ONNX files: write them with `{PROGRAM} export-onnx --out DIR`")
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"{folder} is not a model folder: it has no model_index.json")
    elif folder.exists() or not REPOSITORY.fullmatch(model):
        raise ValueError(f"{model} is neither a model folder nor a Hub repository such as organisation/name")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Names a folder to write, which becomes `out` if all went well.

    Raises:
        ValueError: `out` exists, or the folder around it does not.
    """
    if out.exists():
        raise ValueError(f"{out} exists already: choose another folder")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"the folder {out.absolute().parent} does not exist")
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        yield part
        os.rename(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def sample_rate_of(model: str) -> int:
    """Reads a model's sampling rate in Hz without loading it; 0 where it has still to be downloaded."""
    found: object = Path(model) / "model_index.json"
    if not Path(model).is_dir():
        import huggingface_hub

        found = huggingface_hub.try_to_load_from_cache(model, "model_index.json")
    if not isinstance(found, str | Path):
        return 0
    try:
        return int(json.loads(Path(found).read_text(encoding="utf-8"))["sample_rate"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0  # loading it will say what is wrong with it


def load_pipeline(model: str, device: str, dtype: str, scheduler: str | None) -> Aud2StudioPipeline:
    """The pipeline, ready to run.

    Raises:
        ValueError: the device is not there, or the model cannot be loaded.
    """
    import diffusers
    import torch
    import transformers

    from . import Aud2StudioPipeline
    from .precision import preferred_dtype

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, present in available.items() if present)
    elif not available[device.split(":")[0]]:
        raise ValueError(f"--device {device} is not there: use {', '.join(n for n, p in available.items() if p)}")

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    is_local = Path(model).is_dir() or not _hub_answers(model)
    try:
        # A vocoder in half precision is audibly worse, or silently NaN.
        chosen = preferred_dtype(device) if dtype == "auto" else getattr(torch, dtype)
        precision = {"vocoder": torch.float32, "default": chosen}
        # transformers would draw weights that a file lacks at random; diffusers refuses such a file itself.
        encoder, loading = transformers.ASTForAudioClassification.from_pretrained(
            model,
            subfolder="condition_encoder",
            dtype=precision["default"],
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=is_local,
        )
        if loading["missing_keys"]:
            raise ValueError(f"its condition_encoder lacks {sorted(loading['missing_keys'])[0]}")
        pipeline = Aud2StudioPipeline.from_pretrained(
            model, condition_encoder=encoder, dtype=precision, use_safetensors=True, local_files_only=is_local
        )
    except Exception as error:  # whatever a broken file or an unknown repository makes the libraries raise
        raise ValueError(_reason(model, error)) from error
    return _prepared(pipeline, scheduler).to(device)


def _hub_answers(repository: str) -> bool:
    """Whether the Hub can be reached within two seconds; the libraries' own retries take half a minute.

    Raises:
        ValueError: it cannot, and no copy of the repository is in the cache.
    """
    import huggingface_hub

    answers = []

    def ask() -> None:
        try:
            huggingface_hub.HfApi().model_info(repository, timeout=HUB_TIMEOUT_S)
        except (huggingface_hub.errors.HfHubHTTPError, ValueError):
            answers.append(True)  # a refusal is an answer
        except Exception:
            return
        answers.append(True)

    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        asking = threading.Thread(target=ask, daemon=True)  # looking up a name cannot be given a time limit
        asking.start()
        asking.join(HUB_TIMEOUT_S)
    if not answers and not isinstance(huggingface_hub.try_to_load_from_cache(repository, "model_index.json"), str):
        raise ValueError(
            f"the model {repository} is not in the cache and the Hub cannot be reached: connect, or pass the path of a"
            " model folder"
        )
    return bool(answers)


def load_onnx(model: Path, scheduler: str | None) -> Aud2StudioPipeline:
    """The pipeline of a folder of ONNX files, ready to run.

    Raises:
        ValueError: it cannot be loaded.
    """
    from .convert.onnx import load_onnx_pipeline

    try:
        pipeline = load_onnx_pipeline(model)
    except Exception as error:  # as above
        raise ValueError(_reason(model, error)) from error
    return _prepared(pipeline, scheduler)


def _prepared(pipeline: Aud2StudioPipeline, scheduler: str | None) -> Aud2StudioPipeline:
    """With the scheduler of that name, and the command line's progress bar."""
    import diffusers

    if scheduler is not None:
        pipeline.scheduler = swapped(pipeline.scheduler, getattr(diffusers, SCHEDULERS[scheduler]))
    pipeline.set_progress_bar_config(desc="restoring", unit="chunk", **bar_settings())
    return pipeline


def swapped(scheduler: Any, scheduler_class: Any) -> Any:
    """A scheduler of another class with the same configuration."""
    # The default of the older ones would clip log-mels, which are not bounded by 1.
    unclipped = {} if "Multistep" in scheduler_class.__name__ else {"clip_sample": False}
    return scheduler_class.from_config(scheduler.config, **unclipped)


def _reason(model: Path | str, error: Exception) -> str:
    reason = textwrap.shorten(one_line(error), 400, placeholder=" …")
    return f"the model {model} cannot be loaded: {reason}"
