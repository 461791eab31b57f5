"""The command line: `aud2studio --inputs audience.wav --save restored.wav`.

Exit status: 0 when everything was restored, 1 when something failed on the way, 2 when the arguments or the input
cannot be used. Errors are one line on the standard error stream.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import batch, files
from .audio import LoudnessWarning
from .restore_file import Settings, Take, excerpt, take_of_file
from .restore_file import restore as restore_takes

if TYPE_CHECKING:
    from .pipeline import Aud2StudioPipeline

PROGRAM = "aud2studio"
# By their names in diffusers. They share one configuration: the checkpoint's.
SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
SUBTYPES = {"16": "PCM_16", "24": "PCM_24", "float": "FLOAT"}
MODEL_RATE = 44100  # Hz, of the shipped checkpoint, to estimate the disk space by
MAX_TAKES = 4  # recordings of one performance that the shipped model stacks
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Job:
    """Takes of one performance, the first of which is restored, and the file that the result goes to."""

    inputs: tuple[Path, ...]
    output: Path


@dataclass(frozen=True)
class Restored:
    """What became of a job."""

    output: Path
    audio_s: float
    seconds: float


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _within(kind: type, low: float, high: float) -> Callable[[str], Any]:
    """A type for argparse: numbers within two bounds, both included."""

    def convert(text: str) -> Any:
        try:
            number = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
        if not low <= number <= high:
            bounds = f"within {low:g} and {high:g}" if high < float("inf") else f"{low:g} or more"
            raise argparse.ArgumentTypeError(f"has to be {bounds}, got {text}")
        return number

    return convert


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Restores audience recordings of concerts.",
        epilog=f"`{PROGRAM} align --help`: recordings of one performance on one clock, without restoring them."
        f" `{PROGRAM} inspect FILE`: what it was made in. `{PROGRAM} import-bigvgan --help`: NVIDIA's vocoder.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--inputs",
        nargs="+",
        required=True,
        type=Path,
        metavar="PATH",
        help="a recording; or several recordings of one performance, which are aligned and restored together; or a"
        " folder, each audio file of which is restored",
    )
    add("--save", required=True, type=Path, metavar="PATH", help="the .wav or .flac to write; a folder for a folder")
    add("--overwrite", action="store_true", help="replace what exists already")
    add("--model", metavar="PATH_OR_REPO", help="model folder or Hub repository (default: the shipped weights)")
    add(
        "--backend",
        choices=("torch", "onnx"),
        default="torch",
        help="what computes the networks; onnx wants a --model of `aud2studio export-onnx` (default: %(default)s)",
    )
    add(
        "--reconstruction",
        choices=("faithful", "vocoder", "blend", "prediction"),
        default="faithful",
        help="filter what was recorded, synthesise it anew, synthesise only what the recording has not, or only take"
        " away predicted late sound, without a network (default: %(default)s)",
    )
    add("--steps", type=_within(int, 1, 1000), help="denoising steps (default: the checkpoint's)")
    add("--scheduler", choices=tuple(SCHEDULERS), help="default: the checkpoint's")
    add("--seed", type=_within(int, 0, 2**63 - 1), default=0, help="default: %(default)s")
    add("--dryness", type=_within(float, 0, 1), default=1.0, help="from 0, the input, to 1, fully restored (default)")
    add(
        "--tilt-db",
        type=_within(float, -24, 24),
        help="brighter (positive) or darker towards both ends of the spectrum",
    )
    add("--limiter", action="store_true", help="limit peaks to -1 dBFS")
    add(
        "--reference",
        type=_within(int, 1, 1000),
        metavar="N",
        help="which of several inputs sets span, level and image, from 1 (default: the best one)",
    )
    add("--force", action="store_true", help="use recordings that seem to be of another performance, too")
    add("--aligned", action="store_true", help="the inputs are aligned to the sample already, the reference first")
    add("--downmix", action="store_true", help="mix surround sound down to stereo, which is refused otherwise")
    add("--start", type=_within(float, 0, float("inf")), metavar="SECONDS", help="restore from here on only")
    add("--end", type=_within(float, 0, float("inf")), metavar="SECONDS", help="restore up to here only")
    add(
        "--sample-rate",
        type=_within(int, files.MIN_SAMPLE_RATE, files.MAX_SAMPLE_RATE),
        metavar="HZ",
        help="of the output (default: the input's)",
    )
    add("--bit-depth", choices=tuple(SUBTYPES), help="of the output (default: what holds the input's)")
    add("--report", type=Path, metavar="JSON", help="write what became of every recording")
    add("--plot", type=Path, metavar="PNG", help="write spectrograms of before and after")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: %(default)s")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="precision of the UNet and the condition encoder; all else is float32 (default: bfloat16 on CUDA and on"
        " CPUs that multiply in it, with AVX-512 BF16 or AMX, else float32)",
    )
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Raises a ValueError for options that do not go together."""
    if args.reconstruction == "vocoder" and args.dryness < 1:
        raise ValueError(
            "--dryness mixes in phase, and the vocoder's phase is its own: use faithful or blend, or leave it at 1"
        )
    if args.reference is not None:
        if args.aligned:
            raise ValueError("--reference goes with alignment: with --aligned the first input is the reference")
        if args.reference > len(args.inputs):
            raise ValueError(
                f"--reference has to be the number of an input, 1 to {len(args.inputs)}, got {args.reference}"
            )
    if args.backend == "onnx":
        if args.model is None:
            raise ValueError(f"--backend onnx wants --model DIR: write it with `{PROGRAM} export-onnx --out DIR`")
        if args.device not in ("auto", "cpu") or args.dtype not in ("auto", "float32"):
            raise ValueError(
                "--backend onnx computes on the CPU in the precision of its file: leave out --device, --dtype"
            )
    if args.end is not None and args.end <= (args.start or 0.0):
        raise ValueError(f"--end has to be after --start, got {args.end:g} and {args.start or 0.0:g} s")
    if args.plot is not None and args.plot.suffix.lower() != ".png":
        raise ValueError(f"--plot writes PNG: {args.plot} has to end in .png")


def plan_jobs(inputs: Sequence[Path], save: Path) -> list[Job]:
    """What to restore, and to where.

    Raises:
        ValueError: a folder among several inputs, a folder without audio, or names that would collide.
    """
    folders = [path for path in inputs if path.is_dir()]
    if not folders:
        return [Job(tuple(inputs), save)]
    if len(inputs) > 1:
        raise ValueError(f"--inputs takes one folder or several files, not {folders[0]} among others")
    folder = folders[0]
    found = sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.suffix.lower() in files.SUFFIXES_READ and not path.name.startswith(".")
    )
    if not found:
        raise ValueError(f"{folder} holds no audio files")
    if not save.is_dir():
        raise ValueError(f"{save} is not a folder: for a folder of recordings, --save names an existing one")
    jobs = []
    taken: dict[Path, Path] = {}
    for path in found:
        suffix = path.suffix.lower() if path.suffix.lower() in files.SUBTYPES_WRITTEN else ".flac"
        output = save / f"{path.stem}{suffix}"
        if output in taken:
            raise ValueError(f"{taken[output]} and {path} would both be written to {output}: rename one of them")
        taken[output] = path
        jobs.append(Job((path,), output))
    return jobs


def check_outputs(jobs: Sequence[Job], args: argparse.Namespace) -> None:
    """Raises an AudioError for an output that cannot be written."""
    if args.report is not None:
        files.check_writable(args.report, overwrite=True)
    if args.plot is not None:
        if len(jobs) > 1:
            raise ValueError("--plot draws one recording: it cannot be used with a folder of several")
        files.check_writable(args.plot, args.overwrite)
    for job in jobs:
        files.check_output(job.output, args.overwrite)
        if any(path.exists() and job.output.exists() and path.samefile(job.output) for path in job.inputs):
            raise ValueError(f"{job.output} is an input: save the restored recording under another name")
        if args.bit_depth and SUBTYPES[args.bit_depth] not in files.SUBTYPES_WRITTEN[job.output.suffix.lower()]:
            raise ValueError(f"{job.output} cannot hold --bit-depth {args.bit_depth}: save a .wav file")


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


def load_pipeline(model: str, device: str, dtype: str, scheduler: str | None) -> Aud2StudioPipeline:
    """The pipeline, ready to run.

    Raises:
        ValueError: the device is not there, or the model cannot be loaded.
    """
    import diffusers
    import torch
    import transformers

    from .pipeline import Aud2StudioPipeline
    from .precision import preferred_dtype

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, present in available.items() if present)
    elif not available[device.split(":")[0]]:
        raise ValueError(f"--device {device} is not there: use {', '.join(n for n, p in available.items() if p)}")

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
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
        )
        if loading["missing_keys"]:
            raise ValueError(f"its condition_encoder lacks {sorted(loading['missing_keys'])[0]}")
        pipeline = Aud2StudioPipeline.from_pretrained(
            model, condition_encoder=encoder, dtype=precision, use_safetensors=True
        )
    except Exception as error:  # whatever a broken file or an unknown repository makes the libraries raise
        raise ValueError(_reason(model, error)) from error
    return _prepared(pipeline, scheduler).to(device)


def load_onnx(model: Path, scheduler: str | None) -> Aud2StudioPipeline:
    """The pipeline of a folder of ONNX files, ready to run.

    Raises:
        ValueError: it cannot be loaded.
    """
    from .onnx_networks import load_onnx_pipeline

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
    pipeline.set_progress_bar_config(desc="restoring", unit="chunk", leave=False)
    return pipeline


def swapped(scheduler: Any, scheduler_class: Any) -> Any:
    """A scheduler of another class with the same configuration."""
    # The default of the older ones would clip log-mels, which are not bounded by 1.
    unclipped = {} if "Multistep" in scheduler_class.__name__ else {"clip_sample": False}
    return scheduler_class.from_config(scheduler.config, **unclipped)


def _reason(model: Path | str, error: Exception) -> str:
    reason = textwrap.shorten(_one_line(error), 400, placeholder=" …")
    return f"the model {model} cannot be loaded: {reason}"


def restore(args: argparse.Namespace) -> Iterator[Restored]:
    """Everything that the command line asks for, file by file. A bad file of a folder does not stop the others.

    Of a folder only what is missing in the output folder is restored; processes that `accelerate launch` or torchrun
    started share it.

    Raises:
        ValueError: the arguments or an input cannot be used.
        OSError: an output could not be written.
    """
    check_arguments(args)
    jobs = plan_jobs(args.inputs, args.save)
    is_folder = args.inputs[0].is_dir()
    rank, num_processes = batch.place() if is_folder else (0, 1)
    jobs = jobs[rank::num_processes]
    if is_folder and not args.overwrite:
        missing = [job for job in jobs if not job.output.exists()]
        if len(missing) < len(jobs):
            _say(f"notice: {len(jobs) - len(missing)} of {len(jobs)} recordings are restored already")
        jobs = missing
    check_outputs(jobs, args)
    report = None if args.report is None else batch.Report(batch.report_path(args.report, rank, num_processes))
    model = args.model or str(Path(__file__).parent / "weights")
    check_model(model, args.backend)

    # Loaded when the first recording has turned out to be one.
    @cache
    def pipeline() -> Aud2StudioPipeline:
        if args.backend == "onnx":
            return load_onnx(Path(model), args.scheduler)
        device = args.device
        if device == "auto" and num_processes > 1:
            device = batch.device()
        return load_pipeline(model, device, args.dtype, args.scheduler)

    failed = 0
    for job in jobs:
        try:
            done = restore_job(job, args, pipeline)
        except files.AudioError as error:
            if report is not None:
                report.add(job.inputs, None, error=_one_line(error))
            if not is_folder:
                raise
            failed += 1
            _say(f"error: {_one_line(error)}")
        else:
            if report is not None:
                report.add(job.inputs, job.output, audio_s=done.audio_s, seconds=done.seconds)
            yield done
    if is_folder:
        batch.wait_for_others()
    if failed:
        raise ValueError(f"{failed} of {len(jobs)} recordings could not be restored")


def restore_job(job: Job, args: argparse.Namespace, pipeline: Callable[[], Aud2StudioPipeline]) -> Restored:
    """Read, align, restore, finish, write, draw."""
    with open_takes(job, args) as (number, takes):
        return restore_opened(job, number, takes, args, pipeline)


def restore_opened(
    job: Job, number: int, takes: Sequence[Take], args: argparse.Namespace, pipeline: Callable[[], Aud2StudioPipeline]
) -> Restored:
    """Restores takes on one clock, the reference first, which is the input of that number."""
    reference = takes[0]
    subtype = (
        SUBTYPES[args.bit_depth] if args.bit_depth else files.output_subtype(job.output.suffix, reference.subtype)
    )
    files.check_output(job.output, args.overwrite, disk_space(takes, args, subtype))
    settings = Settings(
        args.steps, args.reconstruction, args.seed, args.dryness, args.sample_rate, args.tilt_db, args.limiter
    )

    def say(text: str) -> None:
        _say(f"notice: {job.inputs[number]} {text}")

    folder = job.output.absolute().parent
    with contextlib.ExitStack() as stack:
        # The model takes as long to load as ten minutes of music to read: one does not wait for the other.
        loading = stack.enter_context(ThreadPoolExecutor(1)).submit(pipeline)
        done = stack.enter_context(restore_takes(takes, loading.result, settings, folder, say))
        result = done.result
        blocks = result.blocks(done.gain)
        files.write_blocks(
            job.output,
            blocks,
            result.num_channels,
            result.num_samples,
            result.sample_rate,
            subtype,
            reference.tags,
        )
        if args.plot is not None:
            from .plot import plot_spectrograms
            from .source import Scaled, Source

            original = done.original
            panels: dict[str, tuple[Source, int]] = {
                f"{job.inputs[number].name}: before": (original, original.sample_rate),
                f"{job.output.name}: after": (Scaled(result, done.gain), result.sample_rate),
            }
            plot_spectrograms(args.plot, panels, args.start or 0.0)
        return Restored(job.output, done.original.num_samples / done.original.sample_rate, done.seconds)


@contextlib.contextmanager
def open_takes(job: Job, args: argparse.Namespace) -> Iterator[tuple[int, list[Take]]]:
    """Which input is the reference, and the takes on its clock, the reference first; usable within the context."""
    paths = job.inputs
    if len(paths) == 1 or args.aligned:
        yield 0, [take_of_file(path, args.start, args.end, args.downmix) for path in paths]
        return
    from .gather import decoded_bytes, gather

    reference = None if args.reference is None else args.reference - 1
    takes, names = [take_of_file(path, None, None, args.downmix) for path in paths], [path.name for path in paths]
    files.check_output(job.output, args.overwrite, decoded_bytes(takes))
    folder = job.output.absolute().parent
    with gather(takes, names, MAX_TAKES, reference, args.force, lambda text: _say(f"notice: {text}"), folder) as found:
        path = paths[found.reference]
        yield found.reference, [excerpt(take, path, args.start, args.end) for take in found.takes]


def disk_space(takes: Sequence[Take], args: argparse.Namespace, subtype: str) -> int:
    """Bytes that the output and the temporary files need, as far as the headers tell how long the takes are."""
    sizes = [(take.frames or 0) * take.num_channels / take.sample_rate for take in takes]  # seconds of one channel
    rates = [max(take.sample_rate, MODEL_RATE) for take in takes]
    temporary = sum(2 * 4 * size * rate for size, rate in zip(sizes, rates, strict=True))  # decoded, and resampled
    stages = 2 + (args.dryness < 1) + bool(args.sample_rate or args.tilt_db or args.limiter)
    to_rate = args.sample_rate or takes[0].sample_rate
    per_sample = 4 * stages + files.BYTES_PER_SAMPLE[subtype]
    return round(temporary + sizes[0] * max(to_rate, takes[0].sample_rate) * per_sample)


@contextlib.contextmanager
def notices() -> Iterator[None]:
    """Within the block, what the user should know of is said in a line each, and no other warning is shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", LoudnessWarning)
        warnings.showwarning = lambda message, *_, **__: _say(f"notice: {message}")
        yield


def run(args: argparse.Namespace) -> None:
    for restored in restore(args):
        speed = f", {restored.audio_s / restored.seconds:.1f} times real time" if restored.seconds else ""
        print(f"{restored.output}: {restored.audio_s:.1f} s in {restored.seconds:.1f} s{speed}")


def _subcommand(name: str, words: list[str]) -> tuple[argparse.Namespace, Callable[[argparse.Namespace], object]]:
    """The arguments and the function of a command of its own, imported only where it is asked for."""
    from importlib import import_module

    module, description = {
        "inspect": ("inspection", "Tells what a recording was made in: room, audience, bandwidth, voice."),
        "align": ("align_command", "Puts recordings of one performance on one clock."),
        "import-bigvgan": ("import_bigvgan", "Makes NVIDIA's BigVGAN-v2 weights the vocoder of a model folder."),
        "export-onnx": ("export_onnx", "Writes the networks as ONNX files, for --backend onnx."),
    }[name]
    command = import_module(f".{module}", __package__)
    parser = _Parser(prog=f"{PROGRAM} {name}", description=description, allow_abbrev=False)
    command.add_arguments(parser)
    return parser.parse_args(words), command.run


def main(argv: Sequence[str] | None = None) -> int:
    gc.freeze()  # what the libraries made on import stays: no collection has to look through it again
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("inspect", "align", "import-bigvgan", "export-onnx"):
        args, work = _subcommand(words[0], words[1:])
    else:
        args, work = build_parser().parse_args(words), run
    with notices():
        try:
            work(args)
        except KeyboardInterrupt:
            return _fail("interrupted", 130)
        except ValueError as error:
            return _fail(_one_line(error), 2)
        except Exception as error:
            return _fail(f"{type(error).__name__}: {_one_line(error)}", 1)
    return 0


def _say(message: str) -> None:
    print(f"{PROGRAM}: {message}", file=sys.stderr)


def _fail(message: str, status: int) -> int:
    _say(f"error: {message}")
    return status


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
