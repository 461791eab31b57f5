"""Every system that the benchmark knows, under the name it has there."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import soundfile
import torch

from pipeline_aud2studio import Aud2StudioPipeline, shipped_weights
from pipeline_aud2studio.audio import normalise_rms, resample
from pipeline_aud2studio.vocoding import vocode
from training.baselines import PEERS, Waveform, equalised, low_passed
from training.griffin_lim import griffin_lim
from training.remote_code import remote_code_files

CONTROLS = ("input", "eq_control", "lowpass_control")
READ_OUTS = ("faithful", "vocoder", "blend")
COPIES = ("copy_synthesis", "griffin_lim")  # of the clean clip, from its mel
SYSTEMS = (*CONTROLS, *READ_OUTS, *COPIES, *PEERS)
TUNED_PEERS = Path(__file__).parent / "benchmark" / "peers.json"
SEED = 0


@dataclass(frozen=True)
class System:
    """Something that takes a recording and gives a waveform of its shape.

    Attributes:
        run: called as `run(recording, clean, sample_rate)` with (channels, samples). Restorations do not look at
            `clean`; the equaliser control and copy-synthesis do.
        identity: text that changes when the results may change.
    """

    name: str
    run: Callable[[Waveform, Waveform, int], Waveform]
    identity: str


@dataclass(frozen=True)
class RestoredFolder:
    """Files that another tool made of the recordings (`training.evaluate --recordings`): `ROWID.flac`, or WAV or OGG.

    Nothing is compensated: a file that is late by five samples scores like one.
    """

    name: str
    path: Path

    @property
    def identity(self) -> str:
        """Changes when a file does."""
        files = sorted(self.path.iterdir())
        listing = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
        return f"folder {hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]}"

    def for_clip(self, row_id: int) -> System:
        """What takes this clip's recording and gives the file's content."""

        def read(recording: Waveform, clean: Waveform, sample_rate: int) -> Waveform:
            found = [self.path / f"{row_id:05d}{suffix}" for suffix in (".flac", ".wav", ".ogg")]
            existing = next((path for path in found if path.is_file()), None)
            if existing is None:
                raise ValueError(f"{self.path} has no file for clip {row_id:05d}")
            waveform, rate = soundfile.read(existing, dtype="float32", always_2d=True)
            if rate != sample_rate:
                raise ValueError(f"{existing.name} has a sample rate of {rate} Hz, the recording {sample_rate}")
            return waveform.T

        return System(self.name, read, self.identity)


FOLDER = "folder:"  # `folder:NAME=PATH` among the names of systems


def read_folder(name: str) -> RestoredFolder:
    """The folder that `folder:NAME=PATH` names.

    Raises:
        ValueError: if the text is not of this form, the name is taken, or the folder does not exist.
    """
    label, separator, path = name.removeprefix(FOLDER).partition("=")
    if not (separator and label.replace("-", "").replace("_", "").isalnum()) or label in (*SYSTEMS, "clean"):
        raise ValueError(f"{name} is not {FOLDER}NAME=PATH with a name of letters, digits and _ of its own")
    if not Path(path).is_dir():
        raise ValueError(f"{path} is not a folder of restored files")
    return RestoredFolder(label, Path(path))


@dataclass(frozen=True)
class Model:
    """Which checkpoint of our own, and how it runs."""

    path: str = str(shipped_weights())
    num_inference_steps: int | None = None  # the checkpoint's default
    dtype: str = "float32"
    device: str = "cpu"


def build_system(name: str, model: Model, tuned_peers: Path = TUNED_PEERS) -> System:
    """The system of this name, loaded.

    Raises:
        ValueError: for an unknown name, and for a peer that `training.evaluate --tune` has not tuned yet.
    """
    if name in PEERS:
        return build_peer(name, read_tuned(tuned_peers, name))
    if name in READ_OUTS or name in COPIES:
        return _build_own(name, model)
    controls: dict[str, Callable[[Waveform, Waveform, int], Waveform]] = {
        "input": lambda recording, clean, sample_rate: recording,
        "eq_control": equalised,
        "lowpass_control": lambda recording, clean, sample_rate: low_passed(recording, sample_rate),
    }
    if name not in controls:
        raise ValueError(f"unknown system {name!r}: choose from {', '.join(SYSTEMS)}")
    return System(name, controls[name], "1")


def build_peer(name: str, settings: Mapping[str, Any], label: str | None = None) -> System:
    """A peer with given settings, listed as `label`."""
    peer = PEERS[name]

    def run(recording: Waveform, clean: Waveform, sample_rate: int) -> Waveform:
        return peer.run(recording, sample_rate, **settings)

    versions = [f"{package} {version(package)}" for package in peer.packages]
    return System(label or name, run, "; ".join([json.dumps(dict(settings), sort_keys=True), *versions]))


def read_tuned(path: Path, name: str) -> dict[str, Any]:
    """The settings of a peer that were best on the validation set."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist: tune the peers with `python -m training.evaluate --tune {path} ...`")
    tuned = json.loads(path.read_text(encoding="utf-8"))["peers"]
    if name not in tuned:
        raise ValueError(f"{path} has no settings for {name}: tune it with `python -m training.evaluate --tune`")
    return dict(tuned[name]["settings"])


def _build_own(name: str, model: Model) -> System:
    pipeline = load_pipeline(model)

    def faithful_or_vocoded(recording: Waveform, clean: Waveform, sample_rate: int) -> Waveform:
        return restore([recording], sample_rate, model, name)

    def copy_synthesis(recording: Waveform, clean: Waveform, sample_rate: int) -> Waveform:
        """What the vocoder, or Griffin-Lim alone, makes of the clean mel: the ceiling of the vocoder read-out."""
        own_rate = pipeline.config.sample_rate
        waveform = torch.from_numpy(resample(normalise_rms(clean)[0], sample_rate, own_rate))
        with torch.no_grad():
            mel = pipeline.transform.log_mel(pipeline.transform.stft(waveform))
            if name == "griffin_lim":
                synthesised = griffin_lim(mel, pipeline.transform, waveform.shape[-1])
            else:
                synthesised = vocode(pipeline.vocoder, mel, pipeline.device, pipeline.refine)
        samples = synthesised[:, : waveform.shape[-1]].numpy()
        return resample(samples, own_rate, sample_rate, clean.shape[-1])

    run = copy_synthesis if name in COPIES else faithful_or_vocoded
    return System(name, run, model_identity(model, name))


def restore(takes: Sequence[Waveform], sample_rate: int, model: Model, reconstruction: str = "faithful") -> Waveform:
    """What our pipeline makes of aligned takes (channels, samples), the first of which is the reference."""
    generator = torch.Generator().manual_seed(SEED)
    return load_pipeline(model)(
        list(takes),
        sample_rate,
        num_inference_steps=model.num_inference_steps,
        reconstruction=reconstruction,
        generator=generator,
    ).audios[0]


def model_identity(model: Model, reconstruction: str) -> str:
    """Text that changes when the results of our pipeline may change."""
    unused = ("vocoder",) if reconstruction in ("faithful", "griffin_lim") else ()
    weights = weights_digest(model.path, unused)
    return f"{weights}, {model.num_inference_steps} steps, {model.dtype}, code {code_digest()}"


@functools.cache
def load_pipeline(model: Model) -> Aud2StudioPipeline:
    dtype = {"vocoder": torch.float32, "default": getattr(torch, model.dtype)}
    pipeline = Aud2StudioPipeline.from_pretrained(model.path, dtype=dtype).to(model.device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@functools.cache
def code_digest() -> str:
    """Fingerprint of the pipeline's own code: a change of it is another system."""
    files = [file.read_bytes() for file in remote_code_files()]
    return hashlib.sha256(b"\0".join(files)).hexdigest()[:16]


def weights_digest(path: str, unused: Sequence[str] = ()) -> str:
    """Fingerprint of a checkpoint's folder without the components that are not used; a repository's name stands for
    itself."""
    if not Path(path).is_dir():
        return path
    total = hashlib.sha256()
    # The index and the components: the training record and the figures beside them change nothing.
    found = [Path(path) / "model_index.json", *Path(path).glob("*/*")]
    found = [file for file in found if file.is_file() and file.relative_to(path).parts[0] not in unused]
    for file in sorted(file for file in found if file.suffix in (".json", ".safetensors")):
        total.update(file.relative_to(path).as_posix().encode())
        total.update(file.read_bytes())
    return total.hexdigest()[:16]
