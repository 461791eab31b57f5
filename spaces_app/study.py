"""A listening study: what it compares, its excerpts at one loudness, and the order in which each listener meets them.

MUSHRA after ITU-R BS.1534-3: open and hidden reference, a low anchor at 3.5 kHz, several systems at once.
"""

from __future__ import annotations

import hashlib
import json
import random
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy import signal
from tqdm.auto import tqdm

from pipeline_aud2studio import files
from pipeline_aud2studio.audio import Waveform, loudness_lufs, peak_gain, resample
from pipeline_aud2studio.files import atomic_folder

REFERENCE, ANCHOR = "reference", "anchor"  # names of conditions that every study has
ANCHOR_HZ = 3500.0
RATE = 48_000
STUDY_FILE = "study.json"
CONTROLS = ("ceiling", "input")  # of the benchmark's systems, those that are no restoration

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class _Described(BaseModel):
    """What a study's YAML and the built study both say."""

    title: str  # heads the page
    seed: int = 0  # of every order
    excerpts: Annotated[list[Name], Field(min_length=1)]  # the files' names without their suffix
    training: Name  # an excerpt to get used to the page, which is not rated
    preference: tuple[Name, Name] | None = None  # two systems that a second part compares in pairs
    genres: dict[Name, str] = {}  # by excerpt


class StudyConfig(_Described):
    """A study's YAML."""

    model_config = ConfigDict(extra="forbid")

    seconds: Annotated[float, Field(gt=0, le=60)] = 15.0  # of an excerpt; a shorter file is used as a whole
    reference: Path  # folder of the clean originals, one file for each excerpt
    systems: Annotated[dict[Name, Path], Field(min_length=1, max_length=8)]  # folder of each one's results


def read_config(path: Path) -> StudyConfig:
    """A study's description; folders are relative to the file.

    Raises:
        ValueError: naming the key that is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = StudyConfig.model_validate(content)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(f"{path}: {key}: {first['msg']}") from error
    if reserved := {REFERENCE, ANCHOR} & config.systems.keys():
        raise ValueError(f"{path}: systems: {sorted(reserved)[0]} is a condition that every study has already")
    if unknown := set(config.preference or ()) - config.systems.keys():
        raise ValueError(f"{path}: preference: {sorted(unknown)[0]} is not among the systems")
    if len({*config.excerpts, config.training}) <= len(config.excerpts):
        raise ValueError(f"{path}: excerpts: one is there twice, or is that for training")
    folders = {name: path.parent / folder for name, folder in config.systems.items()}
    return config.model_copy(update={"reference": path.parent / config.reference, "systems": folders})


def draft(results: Path, count: int, seed: int, title: str) -> dict[str, Any]:
    """Draws clips of the benchmark for a study, over all conditions alike: the content of its YAML.

    Args:
        results: Folder of the benchmark, run with `--keep`.

    Raises:
        ValueError: if there is too little in the folder.
    """
    kept = results / "kept"
    systems = sorted(path.name for path in kept.iterdir() if path.name != REFERENCE) if kept.is_dir() else []
    if not systems or not (kept / REFERENCE).is_dir():
        raise ValueError(f"{kept} holds no audio: run the benchmark with --keep")
    conditions: dict[str, list[str]] = {}
    for line in (results / "results.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["system"] == systems[0] and row["name"] not in conditions.setdefault(row["condition"], []):
            conditions[row["condition"]].append(row["name"])
    for number, group in enumerate(conditions.values()):
        random.Random(f"{seed}:{number}").shuffle(group)
    turns = max((len(group) for group in conditions.values()), default=0)
    order = [group[turn] for turn in range(turns) for group in conditions.values() if turn < len(group)]
    if len(order) < count + 1:
        raise ValueError(f"{results} has {len(order)} clips, {count} and one for training are wanted")
    own = next((name for name in systems if name not in CONTROLS), None)
    return {
        "title": title,
        "seed": seed,
        "seconds": 15.0,
        "reference": str(kept / REFERENCE),
        "systems": {name: str(kept / name) for name in systems},
        "excerpts": order[:count],
        "training": order[count],
        **({"preference": [own, "input"]} if own and "input" in systems else {}),
    }


def build(config: StudyConfig, out: Path, progress: bool = True) -> list[str]:
    """Writes the study: every stimulus as FLAC at the loudness of its reference, and `study.json`.

    Returns:
        Sentences about excerpts that are shorter than wanted.

    Raises:
        ValueError: a file is missing or is not as long as its reference.
    """
    notices = []
    with atomic_folder(out) as folder:
        excerpts = [config.training, *config.excerpts]
        for excerpt in tqdm(excerpts, desc="excerpts", unit="excerpt", disable=not progress):
            stimuli, seconds = _stimuli(config, excerpt)
            if seconds < config.seconds - 0.01:
                notices.append(f"{excerpt} lasts {seconds:.1f} s, {config.seconds:g} s were wanted")
            (folder / "audio" / excerpt).mkdir(parents=True)
            for name, waveform in stimuli.items():
                files.write(folder / "audio" / excerpt / f"{name}.flac", waveform, RATE, "PCM_24", {})
        study = Study(
            **config.model_dump(exclude={"seconds", "reference", "systems", "genres"}),
            genres={excerpt: config.genres.get(excerpt, "unknown") for excerpt in config.excerpts},
            folder=out,
            conditions=[*config.systems, REFERENCE, ANCHOR],
            secret=secrets.token_hex(32),
        )
        (folder / STUDY_FILE).write_text(study.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return notices


def _stimuli(config: StudyConfig, excerpt: str) -> tuple[dict[str, Waveform], float]:
    """Conditions of an excerpt at one loudness and with one gain against clipping, and its length in s."""
    reference = _read(config.reference, excerpt)
    length = min(reference.shape[1], round(config.seconds * RATE))
    start = (reference.shape[1] - length) // 2
    waveforms = {name: _read(folder, excerpt) for name, folder in config.systems.items()}
    for name, waveform in waveforms.items():
        if abs(waveform.shape[1] - reference.shape[1]) > 0.05 * RATE:
            raise ValueError(
                f"{excerpt} of {name} lasts {waveform.shape[1] / RATE:.2f} s, its reference"
                f" {reference.shape[1] / RATE:.2f} s: they have to be on one clock"
            )
    waveforms |= {REFERENCE: reference, ANCHOR: low_anchor(reference)}
    excerpts = {name: _cut(waveform, start, length) for name, waveform in waveforms.items()}
    target = loudness_lufs(excerpts[REFERENCE], RATE)
    for name, waveform in excerpts.items():
        lufs = loudness_lufs(waveform, RATE)
        if np.isfinite(lufs) and np.isfinite(target):
            excerpts[name] = waveform * np.float32(10 ** ((target - lufs) / 20))
    gain = np.float32(peak_gain(max(float(np.abs(waveform).max()) for waveform in excerpts.values())))
    return {name: gain * waveform for name, waveform in excerpts.items()}, length / RATE


def _read(folder: Path, excerpt: str) -> Waveform:
    found = sorted(path for path in folder.glob(f"{excerpt}.*") if path.suffix.lower() in files.SUFFIXES_READ)
    if len(found) != 1:
        raise ValueError(f"{folder} holds {len(found)} recordings called {excerpt}, not one")
    audio = files.read(found[0])
    waveform = resample(audio.waveform, audio.sample_rate, RATE)
    return np.ascontiguousarray(np.broadcast_to(waveform, (2, waveform.shape[1])))


def _cut(waveform: Waveform, start: int, length: int) -> Waveform:
    """An excerpt with 5 ms of fade at both ends, as it is heard in a loop."""
    cut = np.zeros((len(waveform), length), dtype=np.float32)
    part = waveform[:, start : start + length]
    cut[:, : part.shape[1]] = part
    ramp = np.linspace(0, 1, round(0.005 * RATE), dtype=np.float32)
    cut[:, : len(ramp)] *= ramp
    cut[:, -len(ramp) :] *= ramp[::-1]
    return cut


def low_anchor(waveform: Waveform) -> Waveform:
    """The reference up to 3.5 kHz within 0.1 dB, 25 dB down at 4 kHz and 50 dB at 4.5 kHz at least (BS.1534-3)."""
    sections = signal.iirdesign(ANCHOR_HZ, 4200.0, 0.04, 60.0, ftype="ellip", output="sos", fs=RATE)
    return np.asarray(signal.sosfiltfilt(sections, waveform, axis=-1), dtype=np.float32)


class Study(_Described):
    """A study that was built, and what a listener gets of it; `secret` keeps addresses from telling what is heard."""

    folder: Annotated[Path, Field(exclude=True)]
    conditions: list[str]
    secret: str

    def order(self, code: str) -> list[str]:
        """The excerpts in this listener's order."""
        return self._shuffled(self.excerpts, f"{code}:excerpts")

    def stimuli(self, code: str, excerpt: str) -> list[str]:
        """The conditions of an excerpt in this listener's order."""
        return self._shuffled(self.conditions, f"{code}:{excerpt}")

    def pair(self, code: str, excerpt: str) -> list[str]:
        """The two systems of the preference part in this listener's order."""
        return self._shuffled(self.preference or (), f"{code}:{excerpt}:pair")

    def token(self, code: str, excerpt: str, condition: str) -> str:
        """What a stimulus is called towards the listener."""
        return hashlib.sha256(f"{self.secret}:{code}:{excerpt}:{condition}".encode()).hexdigest()[:16]

    def condition(self, code: str, excerpt: str, token: str) -> str | None:
        """The inverse of :meth:`token`."""
        return next((name for name in self.conditions if self.token(code, excerpt, name) == token), None)

    def audio(self, excerpt: str, condition: str) -> Path:
        return self.folder / "audio" / excerpt / f"{condition}.flac"

    def _shuffled(self, items: Sequence[str], what: str) -> list[str]:
        shuffled = list(items)
        random.Random(f"{self.seed}:{what}").shuffle(shuffled)
        return shuffled


def load_study(folder: Path) -> Study:
    """A study's folder as `build` wrote it.

    Raises:
        ValueError: if there is none.
    """
    try:
        content = json.loads((folder / STUDY_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} is not the folder of a study: {error}") from error
    return Study(folder=folder, **content)
