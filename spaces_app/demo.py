"""`make demo`: restores the example with the shipped weights and says, in figures, how far it got.

python -m spaces_app.demo
"""

from pathlib import Path

import torch

from pipeline_aud2studio import files
from pipeline_aud2studio.chunks import ArraySource
from pipeline_aud2studio.infer import Restored, build_parser, notices, restore
from pipeline_aud2studio.plot import plot_spectrograms
from training.evaluation.metrics import level_change_lu, log_spectral_distance, si_sdr

EXAMPLES = Path(__file__).parent / "examples"
FOLDER = Path("demo")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    save, picture = FOLDER / "restored.flac", FOLDER / "before_after.png"
    first, second = EXAMPLES / "degraded.flac", EXAMPLES / "second.flac"
    result = restored(save, first)
    of_two = restored(FOLDER / "restored_of_two.flac", first, second, "--reference", "1")

    degraded, after, clean = (files.read(path) for path in (first, save, EXAMPLES / "clean.flac"))
    titles = {"Recorded in the audience": degraded, "Restored": after, "Clean original": clean}
    panels = {title: (ArraySource(sound.waveform), sound.sample_rate) for title, sound in titles.items()}
    plot_spectrograms(picture, panels)

    before, one, two, target = (
        torch.from_numpy(sound.waveform) for sound in (degraded, after, files.read(of_two.output), clean)
    )
    changes = [f"{name} {' -> '.join(values)} dB" for name, values in distances(target, before, one).items()]
    changes.append(f"level {level_change_lu(one, before, degraded.sample_rate):+.2f} LU")
    factor = result.seconds / result.audio_s
    changes.append(f"{result.seconds:.1f} s for {result.audio_s:.1f} s (real-time factor {factor:.2f})")
    of_both = [f"{name} {value} dB" for name, (value,) in distances(target, two).items()]
    print(f"of two recordings: {of_two.output.resolve()}, {', '.join(of_both)}")
    print(f"restored file: {save.resolve()}")
    print(f"spectrograms:  {picture.resolve()}")
    print(f"figures:       {', '.join(changes)}")


def restored(save: Path, *inputs: Path | str) -> Restored:
    """What `aud2studio --inputs ... --save ...` does."""
    command = ["--inputs", *map(str, inputs), "--save", str(save), "--overwrite"]
    with notices():
        return next(restore(build_parser().parse_args(command)))


def distances(target: torch.Tensor, *waveforms: torch.Tensor) -> dict[str, list[str]]:
    """Distances in dB of waveforms (channels, samples) from the target, by name, two digits each."""
    metrics = {"SI-SDR": si_sdr, "log-spectral distance": log_spectral_distance}
    return {name: [f"{metric(one, target).mean():.2f}" for one in waveforms] for name, metric in metrics.items()}


if __name__ == "__main__":
    main()
