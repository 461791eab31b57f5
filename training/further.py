"""What the benchmark measures when time is no object: perceptual metrics, artefacts, embeddings for Fréchet distances.

Several seconds a clip, so `training.evaluate` asks for `--perceptual`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from pipeline_aud2studio.audio import Waveform, resample
from training.artifacts import indicators
from training.degrade import RenderedPair
from training.frechet import EMBEDDINGS, OFFLINE, Vectors, compare_sets, embed, gaussian, load_reference
from training.late_tail import known_parts, late_tail_ratio
from training.metrics import level_change_lu, level_matched, sdr
from training.perceptual import pesq_on_speech, visqol, zimtohrli
from training.sources import Roots
from training.srmr import SAMPLE_RATE as SRMR_RATE
from training.srmr import srmr

CLEAN = "clean"  # the folder of the clean clips' embeddings
CEILING = "input"
VERSION = "2"  # changes when the figures would


class FurtherScores:
    """Scores a restored clip and keeps its embeddings.

    Args:
        folder: Of the results; embeddings go to `folder/SYSTEM/ROWID.safetensors`.
        roots: Where the rooms and the music are, from which the late reverberation of a clip is made again.
    """

    def __init__(self, folder: Path, roots: Roots) -> None:
        self.folder, self.roots = folder, roots
        self.missing: set[str] = set()  # packages that are not installed

    def __call__(
        self, system: str, row: Mapping[str, Any], pair: RenderedPair, restored: Waveform
    ) -> dict[str, float]:
        """Figures of one restored clip (channels, samples), averaged over its channels; those that exist for it.

        PESQ is there only where somebody speaks, the late tail only where the music is in a known room.
        """
        rate = pair.sample_rate
        estimate, clean = torch.tensor(restored), torch.tensor(pair.clean)
        scores = {"sdr": float(sdr(level_matched(estimate.double(), clean.double()), clean.double()).mean())}
        scores["srmr"] = float(np.mean([srmr(channel) for channel in resample(restored, rate, SRMR_RATE)]))
        parts = known_parts(row, self.roots)
        if parts is not None:
            early, late = map(torch.tensor, parts)
            scores["late_tail_db"] = float(late_tail_ratio(estimate, early, late).mean())
            before = float(late_tail_ratio(torch.tensor(pair.recordings[0]), early, late).mean())
            scores["artifact_late_tail_db"] = scores["late_tail_db"] - before
        speech = self._optional("pesq", lambda: pesq_on_speech(estimate, clean, rate))
        if speech:
            scores["pesq"] = float(np.mean(speech))
        listeners: dict[str, Callable[[], Any]] = {
            "visqol": lambda: visqol(estimate, clean, rate),
            "zimtohrli": lambda: zimtohrli(estimate, clean, rate).mean(),
        }
        for name, listener in listeners.items():
            if (value := self._optional(name, listener)) is not None:
                scores[name] = float(value)
        scores |= indicators(restored, pair.recordings[0], pair.clean, rate, crowd_only=row["condition"] == "crowd")
        scores["artifact_level_lu"] = abs(level_change_lu(estimate, torch.tensor(pair.recordings[0]), rate))
        self._keep(system, row, restored, rate)
        if not self._path(CLEAN, row).is_file():
            self._keep(CLEAN, row, pair.clean, rate)
        return scores

    def _optional(self, name: str, metric: Callable[[], Any]) -> Any:
        if name in self.missing:
            return None
        try:
            return metric()
        except ImportError:
            self.missing.add(name)
            return None

    def _path(self, system: str, row: Mapping[str, Any]) -> Path:
        return self.folder / system / f"{row['row_id']:05d}.safetensors"

    def _keep(self, system: str, row: Mapping[str, Any], waveform: Waveform, sample_rate: int) -> None:
        path = self._path(system, row)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        save_file({name: embed(waveform, sample_rate, name) for name in OFFLINE}, part)
        os.replace(part, path)

    def frechet(self, rows: Sequence[Mapping[str, Any]], systems: Sequence[str]) -> dict[str, Any]:
        """Fréchet distances of the systems that have embeddings of every row, by embedding and reference.

        The references are the training music and, as `NAME_matched`, the clean versions of the same clips. The first
        also sees what music was played, which can be more than what was done to it; of the second the floor is zero,
        which no other set of clean music reaches.

        Returns:
            By embedding: `title`, `reference`, `reference_clips`, `reference_windows`, and `systems`, see
            :func:`~training.frechet.compare_sets`; `clean` is the floor, `input` the ceiling.
        """
        complete = [s for s in (CLEAN, *systems) if all(self._path(s, row).is_file() for row in rows)]
        report: dict[str, Any] = {}
        for name in OFFLINE if len(complete) > 1 else ():
            sets: dict[str, list[Vectors]] = {
                system: [load_file(self._path(system, row))[name] for row in rows] for system in complete
            }
            references = {name: load_reference(name)}
            if CLEAN in sets:
                references[f"{name}_matched"] = gaussian(sets[CLEAN], "the clean versions of the same clips")
            for title, reference in references.items():
                report[title] = {
                    "title": EMBEDDINGS[name].title,
                    "reference": reference.title,
                    "reference_clips": reference.clips,
                    "reference_windows": reference.windows,
                    "systems": compare_sets(reference, sets, CLEAN, CEILING),
                }
        return report
