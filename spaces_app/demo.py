"""`make demo`: restores the example with the shipped weights and says, in figures, how far it got.

python -m spaces_app.demo
"""

from pathlib import Path

import torch

from pipeline_aud2studio import files
from pipeline_aud2studio.infer import build_parser, notices, restore
from pipeline_aud2studio.plot import plot_spectrograms
from pipeline_aud2studio.source import ArraySource
from training.metrics import level_change_lu, log_spectral_distance, si_sdr

EXAMPLES = Path(__file__).parent / "examples"
FOLDER = Path("demo")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    save, picture = FOLDER / "restored.flac", FOLDER / "before_after.png"
    command = ["--inputs", str(EXAMPLES / "degraded.flac"), "--save", str(save), "--overwrite"]
    with notices():
        result = next(restore(build_parser().parse_args(command)))

    degraded, restored, clean = (
        files.read(path) for path in (EXAMPLES / "degraded.flac", save, EXAMPLES / "clean.flac")
    )
    titles = {"Recorded in the audience": degraded, "Restored": restored, "Clean original": clean}
    panels = {title: (ArraySource(sound.waveform), sound.sample_rate) for title, sound in titles.items()}
    plot_spectrograms(picture, panels)

    before, after, target = (torch.from_numpy(sound.waveform) for sound in (degraded, restored, clean))
    distances = {"SI-SDR": si_sdr, "log-spectral distance": log_spectral_distance}
    changes = [
        f"{name} {distance(before, target).mean():.2f} -> {distance(after, target).mean():.2f} dB"
        for name, distance in distances.items()
    ]
    changes.append(f"level {level_change_lu(after, before, degraded.sample_rate):+.2f} LU")
    factor = result.seconds / result.audio_s
    changes.append(f"{result.seconds:.1f} s for {result.audio_s:.1f} s (real-time factor {factor:.2f})")
    print(f"restored file: {save.resolve()}")
    print(f"spectrograms:  {picture.resolve()}")
    print(f"figures:       {', '.join(changes)}")


if __name__ == "__main__":
    main()
