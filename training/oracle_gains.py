"""How far gains per band could go: SI-SDR improvement of the gains that are best when the clean signal is known.

    python -m training.oracle_gains --manifest training/benchmark/validation.jsonl --data data

Prints a table for gains that are positive, real or complex, and constant over a frame, 0.1 s, a second or the clip.
What no gain of a kind can reach, no network that predicts such gains will.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from pipeline_aud2studio.spectral import BandTransform
from training.degrade import CONDITIONS
from training.evaluate import read_manifest
from training.metrics import si_sdr
from training.pairs import load_pair
from training.sources import Roots

KINDS = ("positive", "real", "complex")
SPANS_S = {"frame": 0.0, "0.1 s": 0.1, "1 s": 1.0, "clip": None}
MAX_GAIN = 4.0  # as the shipped model bounds its gains


def oracle_gain(
    recording: torch.Tensor, clean: torch.Tensor, transform: BandTransform, kind: str, num_frames: int | None
) -> torch.Tensor:
    """Least-squares gain of every band, `<clean, recording> / <recording, recording>` over `num_frames`, bounded.

    Args:
        recording, clean: Spectra (bins, frames).
        kind: One of KINDS; positive: the real one, or zero where that is negative.
        num_frames: Frames that share a gain; all, if None.

    Returns:
        Complex gains (bands, frames).
    """
    cross = clean * recording.conj()
    power = recording.real.square() + recording.imag.square()
    parts = [_shared(transform.average(part), num_frames) for part in (cross.real, cross.imag, power)]
    real, imag, energy = parts[0], parts[1], parts[2] + 1e-12
    if kind != "complex":
        gain = (real / energy).clamp(-MAX_GAIN if kind == "real" else 0.0, MAX_GAIN)
        return torch.complex(gain, torch.zeros_like(gain))
    gain = torch.complex(real / energy, imag / energy)
    return gain / (gain.abs() / MAX_GAIN).clamp_min(1.0)


def _shared(values: torch.Tensor, num_frames: int | None) -> torch.Tensor:
    """Means over blocks of frames, repeated to the length of `values` (bands, frames)."""
    frames = values.shape[-1]
    blocks = values.split(num_frames or frames, dim=-1)
    return torch.cat([block.mean(-1, keepdim=True).expand_as(block) for block in blocks], dim=-1)


def improvements(
    recording: torch.Tensor, clean: torch.Tensor, transform: BandTransform
) -> Iterator[tuple[str, str, float]]:
    """Kind, span and SI-SDR improvement in dB of every oracle on one channel (samples,)."""
    spectrum, clean_spectrum = transform.stft(recording), transform.stft(clean)
    before = float(si_sdr(recording, clean))
    frames_per_second = transform.sample_rate / transform.hop_length
    for kind in KINDS:
        for span, seconds in SPANS_S.items():
            num_frames = None if seconds is None else max(1, round(seconds * frames_per_second))
            gain = oracle_gain(spectrum, clean_spectrum, transform, kind, num_frames)
            filtered = transform.istft(transform.spread(gain) * spectrum, recording.shape[-1])
            yield kind, span, float(si_sdr(filtered, clean)) - before


def table(rows: dict[str, dict[tuple[str, str], list[float]]]) -> str:
    """Markdown: means by gain and condition."""
    conditions = [condition for condition in CONDITIONS if condition in rows]
    lines = ["| gains | constant over | " + " | ".join(conditions) + " |", "|---" * (len(conditions) + 2) + "|"]
    for kind in KINDS:
        for span in SPANS_S:
            means = " | ".join(f"{np.mean(rows[condition][kind, span]):+.1f}" for condition in conditions)
            lines.append(f"| {kind} | {span} | {means} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.oracle_gains", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--manifest", type=Path, default=Path("training/benchmark/validation.jsonl"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with clean, rirs and noise")
    parser.add_argument("--limit", type=int, metavar="N", help="only N clips, over all conditions")
    options = parser.parse_args(argv)
    roots = Roots(*(options.data / name for name in ("clean", "rirs", "noise")))
    found: dict[str, dict[tuple[str, str], list[float]]] = {}
    try:
        for row in tqdm(read_manifest(options.manifest, options.limit), unit="clip"):
            pair = load_pair(row, roots)
            transform = BandTransform(pair.sample_rate)
            of_condition = found.setdefault(row["condition"], {})
            for kind, span, gained in improvements(
                torch.from_numpy(pair.recordings[0, 0]), torch.from_numpy(pair.clean[0]), transform
            ):
                of_condition.setdefault((kind, span), []).append(gained)
    except (ValueError, OSError) as error:
        print(f"oracle_gains: {error}", file=sys.stderr)
        return 1
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
