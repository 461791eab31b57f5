"""An offline page of a benchmark run: the best and the worst clips, before, after and wanted, with spectrograms."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import soundfile

from pipeline_aud2studio.audio import Waveform
from pipeline_aud2studio.files import atomic_path

from .clips import SAMPLE_RATE, Clip

NUM_SHOWN, SHOWN_S = 10, 10.0
STYLE = """body{font:16px/1.5 system-ui;margin:2rem auto;max-width:70rem;padding:0 1rem}
section{border-top:1px solid #ccc;padding:1rem 0}.parts{display:flex;flex-wrap:wrap;gap:1rem}
figure{margin:0;flex:1 1 18rem}img,audio{width:100%}"""


def spectrogram(waveform: Waveform) -> bytes:
    """Draws the log-spectrogram of the downmix of a waveform (channels, samples), 0 to 16 kHz, as PNG."""
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from scipy.signal import stft

    spectrum = np.abs(stft(waveform.mean(0), nperseg=2048, noverlap=1536)[2])
    level_db = 20 * np.log10(spectrum + 1e-6)
    figure, axes = pyplot.subplots(figsize=(5, 2.6), layout="constrained")
    top = level_db.max()
    extent = (0, waveform.shape[1] / SAMPLE_RATE, 0, SAMPLE_RATE / 2000)
    axes.imshow(level_db, origin="lower", aspect="auto", extent=extent, vmin=top - 80, vmax=top, cmap="magma")
    axes.set(ylim=(0, 16), xlabel="s", ylabel="kHz")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    pyplot.close(figure)
    return file.getvalue()


def _embedded(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _part(title: str, waveform: Waveform) -> str:
    file = io.BytesIO()
    cut = waveform[:, : round(SHOWN_S * SAMPLE_RATE)]
    soundfile.write(file, (0.9 / max(float(np.abs(cut).max()), 1e-9) * cut).T, SAMPLE_RATE, format="OGG")
    sound, picture = _embedded(file.getvalue(), "audio/ogg"), _embedded(spectrogram(cut), "image/png")
    return (
        f'<figure><figcaption>{title}</figcaption><img alt="spectrogram, {title}" src="{picture}">'
        f'<audio controls preload="none" src="{sound}"></audio></figure>'
    )


def write_page(path: Path, clips: Sequence[Clip], gains: pd.DataFrame, restore: Callable[[Clip], Waveform]) -> None:
    """Writes the page, in one file that needs no network.

    Args:
        gains: See :func:`.benchmark.gains`; the rows of `faithful` are shown.
        restore: Makes what is heard as "after".
    """
    by_name = {clip.name: clip for clip in clips}
    ours = gains[(gains.system == "faithful") & gains.counts & ~gains.condition.isin(["clean", "audience alone"])]
    ordered = ours.sort_values("early_gain", ascending=False)
    count = min(NUM_SHOWN, len(ordered) // 2)
    groups = {"The best": ordered.head(count), "The worst": ordered.tail(count)[::-1]}
    parts = [f"<!doctype html><meta charset=utf-8><title>aud2studio</title><style>{STYLE}</style><h1>aud2studio</h1>"]
    for title, rows in groups.items():
        parts.append(f"<h2>{title} {count} clips, by SI-SDR against the early sound</h2>")
        for row in rows.itertuples():
            clip = by_name[row.name]
            words = f"{clip.condition}, clip {clip.name}: {row.early_gain:+.1f} dB, LSD {row.lsd_change:+.0f} %"
            sounds = {"before": clip.recording, "after": restore(clip), "wanted": clip.early}
            heard = "".join(_part(name, waveform) for name, waveform in sounds.items())
            parts.append(f'<section><h3>{html.escape(words)}</h3><div class="parts">{heard}</div></section>')
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")
