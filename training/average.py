"""Weights between those before a run and those after it.

    python -m training.average --before DIR --after runs/deep/pipeline --share 0.8 --out DIR

What a run on other data costs on the old kind comes back faster on the way to the old weights than what it gained is
lost (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"). The run has to have begun with the weights
before it; with more layers per block it began with the same function, and that is where the line starts.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from .checkpoints import atomic_folder
from .grow import grown_state

UNET, ENCODER = Path("unet/diffusion_pytorch_model.safetensors"), Path("condition_encoder/model.safetensors")
State = Mapping[str, torch.Tensor]


def averaged(before: State, after: State, share: float) -> dict[str, torch.Tensor]:
    """`share` of `after` and the rest of `before`, in the precision of `after`.

    Raises:
        ValueError: a tensor is in one of them only, or of another shape.
    """
    if unlike := [name for name in {**before, **after} if _shape(before, name) != _shape(after, name)]:
        raise ValueError(f"the weights are of different architectures: {sorted(unlike)[0]}")
    return {
        name: torch.lerp(before[name].float(), value.float(), share).to(value.dtype) for name, value in after.items()
    }


def _shape(state: State, name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


def average(before: Path, after: Path, share: float, out: Path) -> None:
    """Writes the pipeline folder `after` with averaged weights of UNet and condition encoder.

    Args:
        before, after: Pipeline folders.
        share: Of the weights after the run, 0 to 1.

    Raises:
        ValueError: the share is out of range, or the weights are of different architectures.
        OSError: there are no such folders.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share has to be within 0 and 1, got {share}")
    unets = [
        UNet2DConditionModel.from_pretrained(path / "unet", torch_dtype=torch.float32) for path in (before, after)
    ]
    states = {
        UNET: averaged(grown_state(unets[1], unets[0]), load_file(after / UNET), share),
        ENCODER: averaged(load_file(before / ENCODER), load_file(after / ENCODER), share),
    }
    with atomic_folder(out) as temporary:
        shutil.copytree(after, temporary, dirs_exist_ok=True)
        for path, state in states.items():
            save_file(state, temporary / path, metadata={"format": "pt"})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.average", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--before", type=Path, required=True, metavar="DIR", help="pipeline that the run began with")
    parser.add_argument("--after", type=Path, required=True, metavar="DIR", help="pipeline that the run ended with")
    parser.add_argument("--share", type=float, required=True, help="of the weights after the run, 0 to 1")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the averaged pipeline")
    options = parser.parse_args(argv)
    try:
        average(options.before, options.after, options.share, options.out)
    except (ValueError, OSError) as error:
        print(f"average: {error}", file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
