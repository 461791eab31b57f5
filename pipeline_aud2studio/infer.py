"""The command line: `aud2studio --inputs audience.wav --save restored.wav`.

Exit status: 0 when everything was restored, 1 when something failed on the way or a file of a folder did, 2 when the
arguments or the input cannot be used, 130 after Ctrl-C. Errors are one line on the standard error stream.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import batch, files, shipped_weights
from .audio import AudioNotice
from .batch import Job, plan_jobs
from .command import PROGRAM, fail, one_line, say, shown
from .loading import SCHEDULERS, check_model, load_onnx, load_pipeline, sample_rate_of
from .restore_file import Settings, Take, excerpt, joined, take_of_file
from .restore_file import restore as restore_takes

if TYPE_CHECKING:
    from .pipeline import Aud2StudioPipeline

SUBTYPES = {"16": "PCM_16", "24": "PCM_24", "float": "FLOAT"}


@dataclass(frozen=True)
class Restored:
    """The outcome of a job."""

    output: Path
    audio_s: float
    seconds: float


class FolderError(Exception):
    """Files of a folder that could not be restored, and why.

    Args:
        failures: a sentence each.
        num_files: of the whole folder.
    """

    def __init__(self, failures: Sequence[str], num_files: int) -> None:
        super().__init__(f"{len(failures)} of {num_files} recordings could not be restored")
        self.failures = failures


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
    """Builds the parser of the command line."""
    parser = _Parser(
        prog=PROGRAM,
        description="Restores audience recordings of concerts.",
        epilog=f"`{PROGRAM} align --help`: recordings of one performance on one clock, without restoring them."
        f" `{PROGRAM} inspect FILE`: what it was made in. `{PROGRAM} import-bigvgan --help`: NVIDIA's vocoder.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    inputs = (
        "a recording (- for standard input); or several recordings of one performance, which are aligned and restored"
        " together; or a folder, each audio file of which is restored, those of its folders, too"
    )
    add("--inputs", nargs="+", required=True, type=Path, metavar="PATH", help=inputs)
    save = "the .wav or .flac to write (- for standard output, WAV); a folder for a folder"
    add("--save", required=True, type=Path, metavar="PATH", help=save)
    add("--overwrite", action="store_true", help="replace what exists already")
    reference = "which of several inputs sets span, level and image, from 1 (default: the best one)"
    add("--reference", type=_within(int, 1, 1000), metavar="N", help=reference)
    add("--force", action="store_true", help="use recordings that seem to be of another performance, too")
    add("--aligned", action="store_true", help="the inputs are aligned to the sample already, the reference first")
    add("--join", action="store_true", help="the inputs are consecutive parts of one recording, in this order")
    add("--track", type=_within(int, 1, 1000), metavar="N", help="audio track of a container, from 1")
    add("--strict", action="store_true", help="refuse damaged files instead of restoring what is left of them")
    add("--downmix", action="store_true", help="mix surround sound down to stereo, which is refused otherwise")
    add("--start", type=_within(float, 0, float("inf")), metavar="SECONDS", help="restore from here on only")
    add("--end", type=_within(float, 0, float("inf")), metavar="SECONDS", help="restore up to here only")
    rates = _within(int, files.MIN_SAMPLE_RATE, files.MAX_SAMPLE_RATE)
    add("--sample-rate", type=rates, metavar="HZ", help="of the output (default: the input's)")
    add("--bit-depth", choices=tuple(SUBTYPES), help="of the output (default: what holds the input's)")
    add("--report", type=Path, metavar="JSON", help="write what became of every recording")
    add("--plot", type=Path, metavar="PNG", help="write spectrograms of before and after")
    _add_restoration(parser.add_argument_group("restoration").add_argument)
    return parser


def _add_restoration(add: Callable[..., object]) -> None:
    add("--model", metavar="PATH_OR_REPO", help="model folder or Hub repository (default: the shipped weights)")
    backend = "what computes the networks; onnx wants a --model of `aud2studio export-onnx` (default: %(default)s)"
    add("--backend", choices=("torch", "onnx"), default="torch", help=backend)
    reconstruction = (
        "filter what was recorded, synthesise it anew, synthesise only what the recording has not, or only take away"
        " predicted late sound, without a network (default: %(default)s)"
    )
    read_outs = ("faithful", "vocoder", "blend", "prediction")
    add("--reconstruction", choices=read_outs, default="faithful", help=reconstruction)
    add("--steps", type=_within(int, 1, 1000), help="denoising steps (default: the checkpoint's)")
    add("--scheduler", choices=tuple(SCHEDULERS), help="default: the checkpoint's")
    add("--seed", type=_within(int, 0, 2**63 - 1), default=0, help="default: %(default)s")
    add("--dryness", type=_within(float, 0, 1), default=1.0, help="from 0, the input, to 1, fully restored (default)")
    tilt = "brighter (positive) or darker towards both ends of the spectrum"
    add("--tilt-db", type=_within(float, -24, 24), help=tilt)
    add("--limiter", action="store_true", help="limit peaks to -1 dBTP in 32-bit float, too")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: %(default)s")
    precision = (
        "precision of the UNet and the condition encoder; all else is float32 (default: bfloat16 on CUDA and on CPUs"
        " that multiply in it, with AVX-512 BF16 or AMX, else float32)"
    )
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help=precision)


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
    if args.join and (args.aligned or args.reference is not None or args.inputs[0].is_dir()):
        raise ValueError(
            "--join puts parts one after the other: it does not go with --aligned, --reference or a folder"
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
            say(f"notice: {len(jobs) - len(missing)} of {len(jobs)} recordings are restored already")
        jobs = missing
    for job in jobs if is_folder else ():
        job.output.parent.mkdir(parents=True, exist_ok=True)
    check_outputs(jobs, args)
    report = None if args.report is None else batch.Report(args.report, rank, num_processes)
    model = args.model or str(shipped_weights())
    check_model(model, args.backend)
    model_rate = sample_rate_of(model)

    # Loaded when the first recording has turned out to be one.
    @cache
    def pipeline() -> Aud2StudioPipeline:
        if args.backend == "onnx":
            return load_onnx(Path(model), args.scheduler)
        device = args.device
        if device == "auto" and num_processes > 1:
            device = batch.device()
        return load_pipeline(model, device, args.dtype, args.scheduler)

    failures: list[str] = []
    for job in jobs:
        try:
            done = restore_job(job, args, pipeline, model_rate)
        except Exception as error:  # whatever it is, it is this file's, and the next has its own chance
            reason = one_line(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {one_line(error)}"
            if report is not None:
                report.add(job.inputs, None, error=reason)
            if not is_folder:
                raise
            say(f"error: {reason}")
            failures.append(reason if str(job.inputs[0]) in reason else f"{job.inputs[0]}: {reason}")
        else:
            if report is not None:
                report.add(job.inputs, job.output, audio_s=done.audio_s, seconds=done.seconds)
            yield done
    if is_folder:
        batch.wait_for_others()
    if failures:
        raise FolderError(failures, len(jobs))


def restore_job(
    job: Job, args: argparse.Namespace, pipeline: Callable[[], Aud2StudioPipeline], model_rate: int
) -> Restored:
    """Reads, aligns, restores, finishes, writes, draws."""
    with contextlib.ExitStack() as stack:
        number, takes = stack.enter_context(open_takes(job, args, pipeline))
        reference, told = takes[0], partial(_told, job.inputs[number])
        subtype = SUBTYPES.get(args.bit_depth) or files.output_subtype(job.output.suffix, reference.subtype)
        files.check_output(job.output, args.overwrite, disk_space(takes, args, subtype, model_rate))
        is_same_time = not args.start and args.sample_rate in (None, reference.sample_rate) and not args.join
        chunks, lost = files.carried(reference.chunks, job.output.suffix, is_same_time)
        lost += ["the cover"] if reference.has_cover else []
        if lost:
            told(f"has what the output will not have: {', '.join(lost)}")
        settings = Settings(
            args.steps,
            args.reconstruction,
            args.seed,
            args.dryness,
            args.sample_rate,
            args.tilt_db,
            args.limiter,
            is_float=subtype == "FLOAT",
        )
        # The model takes as long to load as ten minutes of music to read: one does not wait for the other.
        loading = stack.enter_context(ThreadPoolExecutor(1)).submit(pipeline)
        folder = job.output.absolute().parent
        done = stack.enter_context(restore_takes(takes, loading.result, settings, folder, told))
        original, result = done.original, done.result
        form = result.num_channels, result.num_samples, result.sample_rate, subtype, reference.tags, chunks
        files.write_blocks(job.output, result.blocks(done.gain), *form)
        if args.plot is not None:
            from .chunks import Scaled, Source
            from .plot import plot_spectrograms

            panels: dict[str, tuple[Source, int]] = {
                f"{job.inputs[number].name}: before": (original, original.sample_rate),
                f"{job.output.name}: after": (Scaled(result, done.gain), result.sample_rate),
            }
            plot_spectrograms(args.plot, panels, args.start or 0.0)
        return Restored(job.output, original.num_samples / original.sample_rate, done.seconds)


def _told(path: Path, text: str) -> None:
    say(f"notice: {path} {text}")


@contextlib.contextmanager
def open_takes(
    job: Job, args: argparse.Namespace, pipeline: Callable[[], Aud2StudioPipeline]
) -> Iterator[tuple[int, list[Take]]]:
    """Which input is the reference, and the takes on its clock, the reference first; usable within the context."""
    paths = job.inputs
    options = args.downmix, args.track, args.strict
    if args.join:
        parts = [take_of_file(path, None, None, *options) for path in paths]
        yield 0, [joined(parts, args.start, args.end)]
        return
    if len(paths) == 1 or args.aligned:
        yield 0, [take_of_file(path, args.start, args.end, *options) for path in paths]
        return
    from .alignment.gather import NoOtherFitsError, decoded_bytes, gather

    reference = None if args.reference is None else args.reference - 1
    takes, names = [take_of_file(path, None, None, *options) for path in paths], [path.name for path in paths]
    files.check_output(job.output, args.overwrite, decoded_bytes(takes))
    folder = job.output.absolute().parent
    max_takes = pipeline().max_recordings
    with contextlib.ExitStack() as stack:
        gathering = gather(takes, names, max_takes, reference, args.force, lambda text: say(f"notice: {text}"), folder)
        try:
            found = stack.enter_context(gathering)
        except NoOtherFitsError as error:
            path = paths[error.reference]
            say(f"notice: {one_line(error)}; {path} is restored alone")
            yield error.reference, [take_of_file(path, args.start, args.end, *options)]
            return
        path = paths[found.reference]
        yield found.reference, [excerpt(take, path, args.start, args.end) for take in found.takes]


def disk_space(takes: Sequence[Take], args: argparse.Namespace, subtype: str, model_rate: int) -> int:
    """Bytes that the output and the temporary files need, as far as the headers tell how long the takes are."""
    sizes = [(take.frames or 0) * take.num_channels / take.sample_rate for take in takes]  # seconds of one channel
    rates = [max(take.sample_rate, model_rate) for take in takes]
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
        warnings.simplefilter("always", AudioNotice)
        warnings.showwarning = lambda message, *_, **__: say(f"notice: {message}")
        yield


@contextlib.contextmanager
def piped(args: argparse.Namespace) -> Iterator[None]:
    """Within the block, standard input and output are temporary files, wherever the arguments name them as `-`."""
    pipe, is_written = Path("-"), args.save == Path("-")
    if pipe not in args.inputs and not is_written:
        yield
        return
    if args.inputs.count(pipe) > 1:
        raise ValueError("standard input can be one of the inputs only")
    with tempfile.TemporaryDirectory(prefix=PROGRAM) as folder:
        if pipe in args.inputs:
            source = Path(folder) / "standard input"
            with source.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            args.inputs = [source if path == pipe else path for path in args.inputs]
        if is_written:
            args.save = Path(folder) / "standard output.wav"
        yield
        if is_written and args.save.exists():
            with args.save.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.flush()


def run(args: argparse.Namespace) -> None:
    """Restore, and say in a line each where the results lie; beside a result that is printed itself nothing is."""
    lines = sys.stderr if args.save == Path("-") else sys.stdout
    with piped(args):
        for restored in restore(args):
            speed = f", {restored.audio_s / restored.seconds:.1f} times real time" if restored.seconds else ""
            line = f"{restored.output}: {restored.audio_s:.1f} s in {restored.seconds:.1f} s{speed}"
            print(shown(line), file=lines, flush=True)


def _subcommand(name: str, words: list[str]) -> tuple[argparse.Namespace, Callable[[argparse.Namespace], object]]:
    """The arguments and the function of a command of its own, imported only where it is asked for."""
    from importlib import import_module

    module, description = {
        "inspect": ("inspection", "Tells what a recording was made in: room, audience, bandwidth, voice."),
        "align": ("alignment.command", "Puts recordings of one performance on one clock."),
        "import-bigvgan": ("convert.bigvgan", "Makes NVIDIA's BigVGAN-v2 weights the vocoder of a model folder."),
        "export-onnx": ("convert.onnx", "Writes the networks as ONNX files, for --backend onnx."),
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
            return fail("interrupted", 130)
        except ValueError as error:
            return fail(one_line(error), 2)
        except FolderError as error:
            for failure in error.failures:
                say(f"failed: {failure}")
            return fail(one_line(error), 1)
        except Exception as error:
            return fail(f"{type(error).__name__}: {one_line(error)}", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
