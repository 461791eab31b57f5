"""The condition encoder by itself, on what it is to say of a recording, before the UNet learns to use it.

    python -m training.condition --config training/configs/tiny.yaml --scenes 6000 --out runs/condition

It wants more scenes than the UNet, and one that is only looked at costs a tenth of one that is restored. Their
spectrograms (90 kB each) stay in the folder: the same command goes on where it was stopped. At the end the folder
holds `condition_encoder`, and `train.py --init_from runs/condition` begins with it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm
from transformers import ASTForAudioClassification, get_cosine_schedule_with_warmup

from pipeline_aud2studio.conditioning import LABELS
from pipeline_aud2studio.features import PATCH
from pipeline_aud2studio.takes import level_gain, rms

from .build import build_condition_encoder, build_image, build_optimizer
from .checkpoints import atomic_folder
from .config import OptimizerConfig, TrainingConfig, load_config
from .data.examples import scaled_labels
from .data.material import Material
from .data.scenes import SceneRenderer
from .objective import label_loss

SCENES_TOGETHER = 50  # in one file
HELD_OUT = 0.05  # of the scenes, the last ones: not to learn from but to report
BATCH_SIZE, EPOCHS, LR, WEIGHT_DECAY = 64, 30, 4e-3, 0.05
CURVE_SPREAD_DB = 3.0  # of the equalisers that are drawn anew for every visit to a scene


def render(config: TrainingConfig, path: Path, rows: Sequence[int]) -> None:
    """Writes the spectrograms (scenes, frames, mel) of these rows, as the encoder sees them, and their labels."""
    torch.set_num_threads(1)
    image = build_image(config)
    fine, seconds = image.fine, config.chunk_frames * image.coarse.hop_length / config.audio.sample_rate
    scenes = SceneRenderer(Material.open(config.data.material), 1, config.seed, seconds)
    spectrograms, labels = [], []
    for row in rows:
        scene = scenes(row)
        recording = scene.recordings[0]
        channel = recording[np.random.default_rng([config.seed, row, 2]).integers(len(recording))]
        log_mel = fine.log_mel(fine.stft(torch.from_numpy(channel * np.float32(level_gain(rms(recording))))))
        averaged = ((log_mel - image.mel_mean) / image.mel_std).unflatten(-1, (-1, PATCH)).mean(-1)
        spectrograms.append(averaged.T.half())
        labels.append(scaled_labels(scene.labels))
    temporary = path.with_suffix(".part")
    save_file({"spectrograms": torch.stack(spectrograms), "labels": torch.stack(labels)}, temporary)
    temporary.replace(path)


def render_all(config: TrainingConfig, folder: Path, num_scenes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Renders the scenes that the folder lacks, and loads the spectrograms and labels of all."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, num_scenes, SCENES_TOGETHER)
    paths = [folder / f"seed{config.seed}-{start:06d}.safetensors" for start in starts]
    missing = [start for start, path in zip(starts, paths, strict=True) if not path.is_file()]
    bar = tqdm(total=len(paths), initial=len(paths) - len(missing), unit=f"{SCENES_TOGETHER} scenes")
    with bar, ProcessPoolExecutor(config.data.num_workers + 1) as pool:
        futures = [
            pool.submit(render, config, paths[start // SCENES_TOGETHER], range(start, start + SCENES_TOGETHER))
            for start in missing
        ]
        for future in futures:
            future.result()
            bar.update()
    parts = [load_file(path) for path in paths]
    return torch.cat([part["spectrograms"] for part in parts]), torch.cat([part["labels"] for part in parts])


def learn(
    encoder: ASTForAudioClassification, spectrograms: torch.Tensor, labels: torch.Tensor, config: TrainingConfig
) -> None:
    """Trains the encoder on all of these scenes."""
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = build_optimizer(OptimizerConfig(optimizer="muon", lr=LR, weight_decay=WEIGHT_DECAY), encoder)
    batches = len(labels) // BATCH_SIZE
    schedule = get_cosine_schedule_with_warmup(optimizer, batches, EPOCHS * batches)
    own = torch.ones(BATCH_SIZE, 1, dtype=torch.bool)
    frames, bands = spectrograms.shape[1:]
    encoder.train()
    for _ in (bar := tqdm(range(EPOCHS), unit="epoch")):
        losses = []
        for rows in torch.randperm(len(labels), generator=generator)[: batches * BATCH_SIZE].split(BATCH_SIZE):
            # Whatever the level and the equaliser, wherever the chunk begins: the labels are the same.
            curves = F.interpolate(torch.randn(BATCH_SIZE, 1, 8, generator=generator), bands, mode="linear")
            seen = spectrograms[rows].float() + CURVE_SPREAD_DB * math.log(10) / 20 / config.mel.std * curves
            seen = seen.roll(int(torch.randint(frames, (1,), generator=generator)), 1)
            # The backward pass of flash attention takes two thirds of a step on a CPU.
            with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                found = encoder(seen).logits
            loss = label_loss(found.float(), labels[rows], own)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        bar.set_postfix(loss=f"{np.mean(losses):.3f}")


@torch.no_grad()
def tabulate(encoder: ASTForAudioClassification, spectrograms: torch.Tensor, labels: torch.Tensor) -> pd.DataFrame:
    """Lists how far off the encoder is, in the scaled labels, beside always saying the median, and the correlation."""
    encoder.eval()
    found = torch.cat([encoder(part.float()).logits for part in spectrograms.split(BATCH_SIZE)])
    guessed, wanted = (pd.DataFrame(each.numpy(), columns=list(LABELS)) for each in (found, labels))
    return pd.DataFrame(
        {
            "error": (guessed - wanted).abs().mean(),
            "of a constant": (wanted - wanted.median()).abs().mean(),
            "correlation": guessed.corrwith(wanted),
        }
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Renders, trains, reports and writes the encoder, see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of `train.py`")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        if options.scenes < 2 * BATCH_SIZE:
            raise ValueError(f"--scenes {options.scenes}: at least {2 * BATCH_SIZE} are needed")
        config = load_config(options.config, options.set)
        spectrograms, labels = render_all(config, options.out / "scenes", options.scenes)
    except ValueError as error:
        print(f"training.condition: {error}", file=sys.stderr)
        return 2
    known = len(labels) - max(round(HELD_OUT * len(labels)), 1)
    torch.manual_seed(config.seed)
    encoder = build_condition_encoder(config)
    learn(encoder, spectrograms[:known], labels[:known], config)
    print(tabulate(encoder, spectrograms[known:], labels[known:]).to_markdown(floatfmt=".2f"))
    with atomic_folder(options.out / "condition_encoder") as temporary:
        encoder.save_pretrained(temporary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
