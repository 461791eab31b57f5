"""A listening study in miniature."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml
from scipy import signal


def write_study(folder: Path, seconds: float = 1.0, **changes: Any) -> Path:
    """Three excerpts and two systems of 1.2 s, each system at a level of its own."""
    rng = np.random.default_rng(0)
    for name, gain in {"clean": 0.1, "restored": 0.03, "recording": 0.3}.items():
        (folder / name).mkdir(parents=True)
        for excerpt in ("one", "two", "warm-up"):
            noise = gain * signal.lfilter([1], [1, -0.9], rng.standard_normal((round(1.2 * 44_100), 2)), axis=0)
            soundfile.write(folder / name / f"{excerpt}.flac", np.clip(0.3 * noise, -1, 1), 44_100)
    content: dict[str, Any] = {
        "title": "Which is closer?",
        "seed": 3,
        "seconds": seconds,
        "reference": "clean",
        "systems": {"restored": "restored", "recording": "recording"},
        "excerpts": ["one", "two"],
        "training": "warm-up",
        "preference": ["restored", "recording"],
        "genres": {"one": "rock"},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return path
