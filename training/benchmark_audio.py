"""Fingerprints of rendered clips: does the benchmark sound here as it did where its manifest was written?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from training.degrade import RenderedPair
from training.metrics import si_sdr

STATES = ("identical", "equivalent", "different", "unknown")  # from good to bad
TOLERANCE_DB = 0.1  # far less than the systems differ by, far more than library versions change


def describe(pair: RenderedPair) -> dict[str, Any]:
    """Checksum of the first recording in 16 bits, and levels that stay nearly the same where the bits do not."""
    recording = pair.recordings[0]
    rounded = np.rint(np.clip(recording, -1.0, 1.0) * 32767).astype("<i2")
    signals = [torch.tensor(waveform) for waveform in (recording, pair.clean)]
    return {
        "sha256": hashlib.sha256(rounded.tobytes()).hexdigest()[:16],
        "levels_db": [round(10 * float(torch.log10(signal.double().square().mean())), 3) for signal in signals],
        "si_sdr_db": round(float(si_sdr(*signals).mean()), 3),
    }


def compare(recorded: Mapping[str, Any] | None, here: Mapping[str, Any]) -> str:
    """How the audio rendered here relates to what the manifest recorded.

    Returns:
        `identical` (to 16 bits), `equivalent` (levels and SI-SDR within 0.1 dB), `different`, or `unknown`.
    """
    if recorded is None:
        return "unknown"
    if recorded["sha256"] == here["sha256"]:
        return "identical"
    pairs = zip([*recorded["levels_db"], recorded["si_sdr_db"]], [*here["levels_db"], here["si_sdr_db"]], strict=True)
    return "equivalent" if all(abs(one - other) <= TOLERANCE_DB for one, other in pairs) else "different"


def describe_takes(pair: RenderedPair) -> list[dict[str, Any]]:
    """`describe` of every recording of a performance."""
    takes = range(len(pair.recordings))
    return [describe(replace(pair, recordings=pair.recordings[take : take + 1])) for take in takes]


def compare_takes(recorded: Sequence[Mapping[str, Any]] | None, here: Sequence[Mapping[str, Any]]) -> str:
    """`compare` for the recordings of a performance: what is true of the one that differs most."""
    if recorded is None or len(recorded) != len(here):
        return "unknown"
    return max(map(compare, recorded, here), key=STATES.index)
