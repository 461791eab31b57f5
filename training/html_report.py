"""The benchmark as one HTML file that needs no network: tables to sort, plots, and every clip to see and to hear."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jinja2 import Environment, FileSystemLoader
from matplotlib import colormaps
from matplotlib.image import imsave

from pipeline_aud2studio.audio import Waveform, resample
from training.report import ALL, COLUMNS, PLOTTED, frechet_tables

Row = Mapping[str, Any]
TEMPLATE = "html_report.j2"
AUDIO_RATE = 48_000  # of Opus
PICTURE_SIZE = (96, 240)  # pixels: frequencies, times
PICTURE_RANGE_DB, PICTURE_LOWEST_HZ, PICTURE_FFT = 70.0, 40.0, 2048
CLEAN = "clean"


def keep_audio(path: Path, waveform: Waveform, sample_rate: int) -> None:
    """Writes (channels, samples) as Ogg Opus, all or nothing: a tenth of the size, for ears and not for metrics."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    loudest = max(1.0, float(np.abs(waveform).max()))
    resampled = resample(waveform / np.float32(loudest), sample_rate, AUDIO_RATE)
    soundfile.write(part, resampled.T, AUDIO_RATE, format="OGG", subtype="OPUS")
    os.replace(part, path)


def write_html(path: Path, summary: Mapping[str, Any], results: Sequence[Row], clips: Path, folder: Path) -> None:
    """Writes the report.

    Args:
        path: The file.
        summary, results: See :mod:`training.report`.
        clips: Folder with `SYSTEM/ROWID.opus` of the systems, the input and `clean` among them.
        folder: Where `write_report` put its plots.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    systems = [name for name, system in summary["systems"].items() if system["figures"][ALL]]
    own = next((name for name in systems if name not in ("input",)), systems[0])
    page = environment.get_template(TEMPLATE).render(
        summary=summary,
        columns=[column for column in COLUMNS if any(column.key in _figures(summary, name) for name in systems)],
        systems=systems,
        groups=_groups(summary, systems),
        frechet=frechet_tables(summary.get("frechet", {})),
        plots=[_embedded(folder / f"{name}.png", "image/png") for name in (*PLOTTED, "clips")],
        clips=_clips(results, systems, own, clips),
        sorted_by=own,
    )
    part = path.with_name(f".{path.name}.part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, path)


def _figures(summary: Mapping[str, Any], system: str) -> Mapping[str, Any]:
    return dict(summary["systems"][system]["figures"][ALL])


def _groups(summary: Mapping[str, Any], systems: Sequence[str]) -> list[dict[str, Any]]:
    """Tables of the SI-SDR improvement and the log-spectral distance by condition, genre and venue."""
    tables = []
    for title, key in (("condition", "figures"), ("genre", "genres"), ("venue", "venues")):
        names = [name for name in summary["systems"][systems[0]][key] if name != ALL]
        tables.append({"title": title, "names": names, "of": {s: summary["systems"][s][key] for s in systems}})
    return tables


def _clips(results: Sequence[Row], systems: Sequence[str], own: str, folder: Path) -> list[dict[str, Any]]:
    """Every clip with its figures, pictures and players by system; those with the least improvement by `own` first."""
    by_clip: dict[int, dict[str, Row]] = {}
    for row in results:
        if "error" not in row:
            by_clip.setdefault(row["row_id"], {})[row["system"]] = row
    order = sorted(by_clip, key=lambda clip: by_clip[clip].get(own, {}).get("si_sdr_improvement", np.inf))
    clips = []
    for clip in order:
        of_clip = by_clip[clip]
        heard = {}
        for system in (CLEAN, *systems):
            audio = folder / system / f"{clip:05d}.opus"
            if audio.is_file():
                heard[system] = {"audio": _embedded(audio, "audio/ogg"), "picture": picture(audio)}
        clips.append({"row": next(iter(of_clip.values())), "results": of_clip, "heard": heard})
    return clips


def picture(audio: Path) -> str:
    """Spectrogram of a file as a data URL, low frequencies below, logarithmic in both."""
    waveform, rate = soundfile.read(audio, dtype="float32", always_2d=True)
    height, width = PICTURE_SIZE
    mono = waveform.mean(axis=1)
    starts = np.linspace(0, max(len(mono) - PICTURE_FFT, 0), width).astype(int)
    frames = np.stack([np.resize(mono[start : start + PICTURE_FFT], PICTURE_FFT) for start in starts])
    levels_db = 20 * np.log10(np.abs(np.fft.rfft(frames * np.hanning(PICTURE_FFT))) + 1e-6)  # (width, bins)
    wanted_hz = np.geomspace(PICTURE_LOWEST_HZ, rate / 2, height + 1)
    edges = np.unique(np.searchsorted(np.fft.rfftfreq(PICTURE_FFT, 1 / rate), wanted_hz))
    bands = np.stack([levels_db[:, low:high].max(axis=1) for low, high in zip(edges[:-1], edges[1:], strict=True)])
    shown = np.clip((bands - bands.max()) / PICTURE_RANGE_DB + 1, 0, 1)
    buffer = io.BytesIO()
    imsave(buffer, colormaps["magma"](shown[::-1]), format="png")
    return _data_url(buffer.getvalue(), "image/png")


def _embedded(path: Path, kind: str) -> str:
    return _data_url(path.read_bytes(), kind)


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
