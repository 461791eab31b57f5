"""What must not happen: that clean music changes, or that applause turns into music.

    python -m training.evaluate_extremes --data data --out build/benchmark

Restores the clean excerpt of every piece of the benchmark, and every long bed of audience noise that was kept for
tests, and writes `extremes.json`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import signal
from tqdm.auto import tqdm

from training.baselines import Waveform
from training.degrade import LONG_KINDS
from training.evaluate import Row, read_manifest
from training.jsonl import read_rows
from training.metrics import mean_interval, si_sdr
from training.report import write_json
from training.sources import NoiseBed, Roots, inside, read_music
from training.systems import Model, System, build_system

SECONDS = 10.0
NORMAL_RMS = 0.05
FLATNESS_FFT = 4096
FLATNESS_BAND_HZ = (250.0, 4000.0)  # where melodies are, and audiences too


def spectral_flatness_db(waveform: Waveform, sample_rate: int) -> float:
    """Geometric over arithmetic mean of the power spectrum from 250 to 4000 Hz, in dB, averaged over frames.

    About -2.5 dB for noise, whose bins fluctuate, and far less for tones (MPEG-7 Audio, ISO/IEC 15938-4). Frames
    60 dB below the loudest do not count.

    Args:
        waveform: (channels, samples).
    """
    frequencies, _, spectrum = signal.stft(waveform, sample_rate, nperseg=FLATNESS_FFT)  # (channels, bins, frames)
    low, high = FLATNESS_BAND_HZ
    power = np.square(np.abs(spectrum[:, (frequencies >= low) & (frequencies <= high)])) + 1e-20
    mean = power.mean(axis=1)
    flatness_db = 10 * (np.log10(power).mean(axis=1) - np.log10(mean))
    return float(flatness_db[mean > 1e-6 * mean.max()].mean())


def clean_excerpts(rows: Sequence[Row], roots: Roots) -> list[tuple[str, Waveform, int]]:
    """Name, clean excerpt (channels, samples) and sample rate, one for every piece in the manifest."""
    first = {row["music_path"]: row for row in reversed(rows)}
    return [
        (path, read_music(row, roots)[:, -round(row["seconds"] * row["sample_rate"]) :], row["sample_rate"])
        for path, row in sorted(first.items())
    ]


def restore_clean(system: System, rows: Sequence[Row], roots: Roots) -> list[dict[str, Any]]:
    """SI-SDR in dB of clean music that was "restored", by piece."""
    results = []
    for path, clean, sample_rate in tqdm(clean_excerpts(rows, roots), desc="clean music", unit="piece"):
        restored = system.run(clean, clean, sample_rate)
        value = si_sdr(torch.tensor(restored), torch.tensor(clean)).mean()
        flatness_db = spectral_flatness_db(clean, sample_rate)
        results.append({"music_path": path, "si_sdr": float(value), "flatness_db": flatness_db})
    return results


def restore_crowds(system: System, roots: Roots, sample_rate: int) -> list[dict[str, Any]]:
    """Spectral flatness in dB of noises of the audience before and after, by bed."""
    beds = [
        row
        for row in read_rows(roots.noise_dir / "index.jsonl")
        if row["split"] == "test" and row["kind"] in LONG_KINDS
    ]
    results = []
    for row in tqdm(beds, desc="audience alone", unit="bed"):
        bed = NoiseBed(inside(roots.noise_dir, row["path"]), 0.0, round(SECONDS * sample_rate), sample_rate)
        noise = (NORMAL_RMS * bed.piece(0, 0.0))[None].astype(np.float32)
        restored = system.run(noise, noise, sample_rate)
        before, after = (spectral_flatness_db(waveform, sample_rate) for waveform in (noise, restored))
        results.append({"path": row["path"], "kind": row["kind"], "flatness_db": before, "restored_db": after})
    return results


def summarise(clean: Sequence[dict[str, Any]], crowds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means, and how many of the pieces and beds come out as they should."""
    values = [result["si_sdr"] for result in clean]
    music_db = float(np.mean([result["flatness_db"] for result in clean]))
    return {
        "clean": {
            "pieces": len(values),
            "si_sdr": float(np.mean(values)),
            "si_sdr_interval": mean_interval(values),
            "si_sdr_lowest": min(values),
            "share_above_20_db": float(np.mean([value >= 20.0 for value in values])),
        },
        "crowd": {
            "beds": len(crowds),
            "flatness_db": float(np.mean([result["flatness_db"] for result in crowds])),
            "restored_flatness_db": float(np.mean([result["restored_db"] for result in crowds])),
            "music_flatness_db": music_db,
            # Nearer to itself than to music.
            "share_still_crowd": float(
                np.mean([result["restored_db"] > (result["flatness_db"] + music_db) / 2 for result in crowds])
            ),
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate_extremes", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--manifest", type=Path, default=Path("training/benchmark/test.jsonl"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with clean, rirs and noise")
    parser.add_argument("--out", type=Path, default=Path("build/benchmark"), help="folder of extremes.json")
    parser.add_argument("--model", default=Model.path, help="folder or repository of the checkpoint")
    options = parser.parse_args(argv)
    roots = Roots(*(options.data / name for name in ("clean", "rirs", "noise")))
    try:
        rows = read_manifest(options.manifest)
        system = build_system("faithful", Model(options.model))
        clean = restore_clean(system, rows, roots)
        crowds = restore_crowds(system, roots, rows[0]["sample_rate"])
    except (ValueError, OSError) as error:
        print(f"evaluate_extremes: {error}", file=sys.stderr)
        return 1
    summary = summarise(clean, crowds)
    write_json(options.out / "extremes.json", {"summary": summary, "clean": clean, "crowd": crowds})
    music, audience = summary["clean"], summary["crowd"]
    print(
        f"Clean music in: SI-SDR {music['si_sdr']:.1f} dB on average, {music['si_sdr_lowest']:.1f} dB at the lowest, "
        f"at least 20 dB in {music['share_above_20_db']:.0%} of {music['pieces']} pieces."
    )
    print(
        f"Audience alone: flatness {audience['flatness_db']:.1f} -> {audience['restored_flatness_db']:.1f} dB "
        f"(music: {audience['music_flatness_db']:.1f} dB); {audience['share_still_crowd']:.0%} of "
        f"{audience['beds']} beds stay nearer to themselves than to music."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
