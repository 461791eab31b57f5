"""Does an exported folder load in every way that its card promises, to the same pipeline?"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
import venv
import warnings
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from packaging.requirements import Requirement
from scipy import signal

import pipeline_aud2studio
from pipeline_aud2studio import Aud2StudioPipeline
from pipeline_aud2studio.audio import LoudnessWarning

SECONDS = 2.0
NUM_STEPS = 2
TOLERANCE = 1e-5  # of full scale; a saved and loaded pipeline differs by up to 2.4e-6
ITERATED_DB = 0.5  # of a band's level: Griffin-Lim makes audible phases of rounding, but no other spectrum
SPECTRUM, NUM_BANDS = 2048, 24  # samples of a spectrum, and bands that it is measured in
HALF_PRECISION_DB = 30.0  # how far the error of the rounded weights stays below the output

REMOTE = """
import importlib.util, json, sys
import numpy as np, torch
from diffusers import DiffusionPipeline

model, audio, rate, steps, out = json.loads(sys.argv[1])
if found := importlib.util.find_spec("pipeline_aud2studio"):
    raise SystemExit(f"the package is visible at {found.origin}: this proves nothing")
torch.set_num_threads(1)
pipe = DiffusionPipeline.from_pretrained(model, custom_pipeline="pipeline", trust_remote_code=True)
waveform, refine, results = np.load(audio), pipe.refine, []
for name, pipe.refine in (("faithful", None), ("vocoder", None), ("vocoder", refine)):
    results.append(pipe(waveform, rate, steps, name, generator=torch.Generator().manual_seed(0)).audios[0])
np.save(out, np.stack(results))
"""


class VerificationError(ValueError):
    """An exported folder does not do what its card promises."""


def verify(folder: Path) -> list[str]:
    """Loads an exported folder in the three ways and its `fp16` variant, and compares the read-outs.

    Returns:
        A line for each way, with the largest difference of the faithful read-out and of one pass of the vocoder.

    Raises:
        VerificationError: If a way fails, or its output differs.
    """
    waveform, sampling_rate = excerpt()
    reference = Aud2StudioPipeline.from_pretrained(folder, dtype=torch.float32)
    expected = read_outs(reference, waveform, sampling_rate)
    by_import = DiffusionPipeline.from_pretrained(folder)
    if not isinstance(by_import, Aud2StudioPipeline):
        raise VerificationError(f"{folder} loads as {type(by_import).__name__}")
    found = {
        "package imported, DiffusionPipeline": read_outs(by_import, waveform, sampling_rate),
        "package imported, Aud2StudioPipeline": read_outs(
            Aud2StudioPipeline.from_pretrained(folder), waveform, sampling_rate
        ),
        "trust_remote_code, without the package": remote_read_outs(folder, waveform, sampling_rate),
    }
    lines = []
    for way, result in found.items():
        difference = float(np.abs(result[:2] - expected[:2]).max())
        iterated_db = band_difference_db(result[2], expected[2])
        if result.shape != expected.shape or not difference <= TOLERANCE:
            raise VerificationError(f"{way}: the output differs by {difference:.2g}, more than {TOLERANCE:g}")
        if not iterated_db <= ITERATED_DB:
            raise VerificationError(f"{way}: the vocoder's spectrum differs by {iterated_db:.1f} dB")
        lines.append(f"{way}: loads, largest difference {difference:.1e}")
    half = Aud2StudioPipeline.from_pretrained(folder, variant="fp16", dtype=torch.float32)
    rounded = read_outs(half, waveform, sampling_rate)[0]  # the vocoder's phases amplify what nobody hears
    error_db = 10 * np.log10(np.mean((rounded - expected[0]) ** 2) / np.mean(expected[0] ** 2) + 1e-20)
    if not error_db <= -HALF_PRECISION_DB:
        raise VerificationError(f"the fp16 variant differs by {error_db:.0f} dB, more than {-HALF_PRECISION_DB:g} dB")
    lines.append(f"fp16 variant: loads, error of the faithful read-out {error_db:.0f} dB")
    return lines


def excerpt() -> tuple[np.ndarray, int]:
    """Decaying tones in noise, the same everywhere: (2, samples) and the sampling rate."""
    sampling_rate = 44100
    rng = np.random.default_rng(0)
    time = np.arange(round(SECONDS * sampling_rate)) / sampling_rate
    waveform = 0.02 * rng.standard_normal((2, len(time)))
    for frequency in rng.uniform(80, 4000, 8):
        waveform += 0.05 * np.sin(2 * np.pi * frequency * time) * np.exp(-4 * (time % 0.5))
    return waveform.astype(np.float32), sampling_rate


def read_outs(pipeline: DiffusionPipeline, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Reads out (3, channels, samples): faithful, one pass of the vocoder, and that with the phases iterated."""
    pipeline.set_progress_bar_config(disable=True)
    refine, results = pipeline.refine, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LoudnessWarning)  # an untrained vocoder is nearly silent
        for name, pipeline.refine in (("faithful", None), ("vocoder", None), ("vocoder", refine)):
            generator = torch.Generator().manual_seed(0)
            results.append(pipeline(waveform, sampling_rate, NUM_STEPS, name, generator=generator).audios[0])
    return np.stack(results)


def band_difference_db(found: np.ndarray, expected: np.ndarray) -> float:
    """Measures by how much the levels of two waveforms (channels, samples) differ at most, in dB, in bands."""
    edges = np.unique(np.geomspace(1, SPECTRUM // 2, NUM_BANDS).astype(int))
    powers = [signal.welch(each, nperseg=SPECTRUM)[1].mean(0) for each in (found, expected)]
    one, other = (10 * np.log10(np.add.reduceat(power, edges) + 1e-20) for power in powers)
    return float(np.abs(one - other)[other > other.max() - 60].max())


def remote_read_outs(
    model: Path | str, waveform: np.ndarray, sampling_rate: int, environment: dict[str, str] | None = None
) -> np.ndarray:
    """The same in a fresh environment that holds what the remote code imports, and not this package.

    Args:
        model: Folder, or a repository's name with an `environment` in which it can be reached.
        environment: Variables beside this process's; none: offline.

    Raises:
        VerificationError: With what the other process said.
    """
    with tempfile.TemporaryDirectory(prefix="aud2studio-") as name:
        root = Path(name)
        python = bare_environment(root / "venv")
        np.save(root / "in.npy", waveform)
        source = str(model.resolve()) if isinstance(model, Path) else model
        arguments = [source, str(root / "in.npy"), sampling_rate, NUM_STEPS, str(root / "out.npy")]
        variables = {
            **os.environ,
            **(environment or {"HF_HUB_OFFLINE": "1"}),
            "HF_HOME": str(root / "home"),
            "HF_MODULES_CACHE": str(root / "modules"),
        }
        done = subprocess.run(
            [python, "-I", "-c", REMOTE, json.dumps(arguments)], capture_output=True, text=True, env=variables
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise VerificationError(f"trust_remote_code, without the package: {reason}")
        return np.load(root / "out.npy")


def bare_environment(folder: Path) -> Path:
    """A virtual environment that sees the distributions which the remote code needs, by links; returns its Python.

    Nothing is downloaded: the distributions are the installed ones, with what they require in turn.
    """
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "Lib" / "site-packages" if os.name == "nt" else folder / "lib" / version / "site-packages"
    for found in needed_distributions():
        files = distribution(found).files
        if files is None:
            raise VerificationError(f"the installed {found} does not say which files it has: reinstall it with pip")
        for top in {file.parts[0] for file in files}:
            origin = Path(str(distribution(found).locate_file(top)))
            link = site / top
            if top in ("..", "__pycache__") or top.endswith(".pth") or link.is_symlink() or not origin.exists():
                continue
            link.symlink_to(origin, target_is_directory=origin.is_dir())
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def needed_distributions() -> set[str]:
    """Names of the distributions that `pipeline.py` and its siblings import, and of all that these require."""
    by_module = packages_distributions()
    waiting = [by_module[module][0] for module in required_modules(remote_code_files(PACKAGE))]
    needed: set[str] = set()
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in needed:
            continue
        try:
            requirements = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # only required elsewhere
        needed.add(name)
        parsed = map(Requirement, requirements)
        waiting += [item.name for item in parsed if item.marker is None or item.marker.evaluate({"extra": ""})]
    return needed


PACKAGE = Path(pipeline_aud2studio.__file__).parent
ENTRY = "pipeline"


def remote_code_files(package: Path = PACKAGE) -> list[Path]:
    """`pipeline.py` and its siblings that it needs, directly or not.

    Raises:
        ValueError: If a sibling is needed that `pipeline.py` does not import itself: diffusers would not fetch it.
    """
    direct = _relative_imports(package / f"{ENTRY}.py")
    needed = set(direct)
    waiting = list(direct)
    while waiting:
        name = waiting.pop()
        for found in _relative_imports(package / f"{name}.py") - needed:
            needed.add(found)
            waiting.append(found)
    if hidden := sorted(needed - direct - {ENTRY}):
        raise ValueError(
            f"{ENTRY}.py has to import {', '.join(hidden)} itself: as remote code, what only a sibling imports is not"
            " fetched"
        )
    return [package / f"{name}.py" for name in sorted(needed | {ENTRY})]


def required_modules(files: Iterable[Path]) -> set[str]:
    """Top-level modules beside the standard library's that the files import wherever they do."""
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names)


def _relative_imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found
