"""`aud2studio inspect`: what the condition encoder hears of a recording: room, audience, bandwidth, voice."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import files, shipped_weights
from .audio import Waveform, resampled
from .takes import level_gain, rms

if TYPE_CHECKING:
    from .pipeline import Aud2StudioPipeline

WORDS = {  # upper bounds, and what a taper would call it
    "rt60_s": ((0.6, "dry"), (1.2, "a club"), (2.2, "a hall"), (math.inf, "an arena or a church")),
    "drr_db": ((-6.0, "far from the loudspeakers"), (2.0, "some way off"), (math.inf, "near the loudspeakers")),
    "snr_db": ((5.0, "a loud audience"), (15.0, "an audience"), (math.inf, "a quiet audience")),
    "bandwidth_hz": ((10000.0, "dull"), (15000.0, "a phone or a lossy file"), (math.inf, "full range")),
    "voice": ((0.35, "instruments"), (0.65, "perhaps a voice"), (math.inf, "a voice")),
}
CAUTION = "These are guesses of a small network: docs/results.md has their errors."
UNITS = {"rt60_s": "s", "drr_db": "dB", "snr_db": "dB", "bandwidth_hz": "Hz", "voice": ""}


def inspect(pipeline: Aud2StudioPipeline, waveform: Waveform) -> dict[str, float]:
    """Estimates what a recording was made in and with, as the median over its chunks of 8 s and its channels.

    Args:
        waveform: (channels, samples) at the pipeline's sampling rate.

    Returns:
        `rt60_s`, `drr_db`, `snr_db`, `bandwidth_hz`, and `voice`, the probability that somebody sings or speaks.
    """
    import torch

    from .conditioning import LABEL_MEANS, LABEL_SCALES
    from .features import PATCH

    transform, frames = pipeline.transform, pipeline.chunk_frames
    samples = frames * PATCH * transform.hop_length
    scaled = torch.from_numpy(waveform * np.float32(level_gain(rms(waveform))))
    shortage = -scaled.shape[-1] % samples
    # A last part that is short is heard again and again.
    padded = scaled[:, torch.arange(scaled.shape[-1] + shortage) % scaled.shape[-1]]
    found = []
    with torch.no_grad():
        for chunk in padded.split(samples, dim=-1):
            log_mel = (transform.log_mel(transform.stft(chunk)) - pipeline.config.mel_mean) / pipeline.config.mel_std
            spectrogram = log_mel.unflatten(-1, (frames, PATCH)).mean(-1).transpose(1, 2)
            encoder = pipeline.condition_encoder
            found.append(encoder(spectrogram.to(encoder.device, encoder.dtype)).logits.float().cpu())
    values = torch.cat(found).median(0).values * torch.tensor(LABEL_SCALES) + torch.tensor(LABEL_MEANS)
    log_rt60, drr_db, snr_db, log_bandwidth, voice = values.tolist()
    return {
        "rt60_s": math.exp(log_rt60),
        "drr_db": drr_db,
        "snr_db": snr_db,
        "bandwidth_hz": math.exp(log_bandwidth),
        "voice": 1 / (1 + math.exp(-voice)),
    }


def describe(facts: dict[str, float]) -> Iterator[str]:
    """Says what the facts of :func:`inspect` mean, a line each."""
    for name, value in facts.items():
        word = next(word for bound, word in WORDS[name] if value <= bound)
        number = f"{value:.0f}" if name == "bandwidth_hz" else f"{value:.1f}"
        yield f"{name:12} {number:>7} {UNITS[name]:3} {word}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a recording")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    model = "model folder or repository (default: the shipped one)"
    parser.add_argument("--model", metavar="PATH_OR_REPO", help=model)


def run(args: argparse.Namespace) -> None:
    """Prints the facts of a file.

    Raises:
        AudioError: The file cannot be read.
        ValueError: The model cannot be loaded.
    """
    from .loading import check_model, load_pipeline

    model = args.model or str(shipped_weights())
    check_model(model)
    with files.opened(args.file, None, None, True) as sound:
        rate, blocks = sound.sample_rate, list(sound.blocks)
    pipeline = load_pipeline(model, "auto", "auto", None)
    waveform = np.concatenate([*resampled(blocks, rate, pipeline.config.sample_rate)], axis=1)
    if not waveform.any():
        raise ValueError(f"{args.file} is silent: there is nothing to inspect")
    facts = inspect(pipeline, waveform)
    print(json.dumps(facts) if args.json else "\n".join([*describe(facts), CAUTION]))
