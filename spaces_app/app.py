"""The Space: one to four recordings in, one restored recording out, with a switch between before and after.

    python -m spaces_app.app

Runs on a Hugging Face Space, with ZeroGPU or on its CPU, and locally on the shipped weights. Files are kept for half
an hour at most, in a folder that is gone when the server stops; nothing leaves the machine it runs on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

try:
    import spaces  # ZeroGPU: before anything touches CUDA
except ImportError:
    spaces = None

import gradio as gr

from pipeline_aud2studio import shipped_weights
from pipeline_aud2studio.infer import load_pipeline
from pipeline_aud2studio.restore_file import Settings
from spaces_app.player import SCRIPT, STYLE, TEMPLATE, player
from spaces_app.studio import FORMATS, MAX_BYTES, MAX_RECORDINGS, MAX_SECONDS, restore_recordings

if TYPE_CHECKING:
    from pipeline_aud2studio.pipeline import Aud2StudioPipeline

EXAMPLE = Path(__file__).parent / "examples" / "degraded.flac"
KEPT_S = 1800.0
SWEEP_S = 60.0
GPU_SECONDS = 120

INTRODUCTION = f"""# aud2studio
Restores audience recordings of concerts: less crowd, less room, less microphone. One recording, or up to
{MAX_RECORDINGS} of the same performance, which are aligned first. At most {MAX_SECONDS // 60} minutes and
{MAX_BYTES // 10**6} MB each. Files are deleted after half an hour at the latest; please restore only what you may."""
FAITHFUL, VOCODER = "faithful: filters what was recorded", "vocoder: synthesises it anew (experimental)"
BLEND = "blend: faithful, and the vocoder where the recording has nothing (experimental)"
PREDICTION = "prediction: takes away predicted late sound only, without a network; for rooms"
KINDS = {FAITHFUL: "faithful", PREDICTION: "prediction", VOCODER: "vocoder", BLEND: "blend"}


@cache
def pipeline() -> Aud2StudioPipeline:
    """The model named by AUD2STUDIO_MODEL, or the shipped one."""
    return load_pipeline(os.environ.get("AUD2STUDIO_MODEL", str(shipped_weights())), "auto", "auto", None)


def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    return function if spaces is None else spaces.GPU(duration=GPU_SECONDS)(function)


class Runs:
    """A folder for every restoration, deleted when it is old, and all of them at the end."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="aud2studio-space-"))
        self._closed = threading.Event()
        threading.Thread(target=self._sweep_forever, daemon=True).start()

    def new(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.root))

    def sweep(self, kept_s: float = KEPT_S) -> None:
        for folder in self.root.iterdir():
            if time.time() - folder.stat().st_mtime > kept_s:
                shutil.rmtree(folder, ignore_errors=True)

    def _sweep_forever(self) -> None:
        while not self._closed.wait(SWEEP_S):
            self.sweep()

    def close(self) -> None:
        self._closed.set()
        shutil.rmtree(self.root, ignore_errors=True)


def build(runs: Runs) -> gr.Blocks:
    """The page; `runs` holds the files that it serves."""

    @on_gpu
    def work(paths: list[Path], settings: Settings, suffix: str, folder: Path) -> Any:
        return restore_recordings(paths, settings, suffix, folder, pipeline)

    def restore(
        uploaded: list[str] | None,
        recorded: str | None,
        reconstruction: str,
        steps: float,
        seed: float,
        dryness: float,
        tilt_db: float,
        limit: bool,
        container: str,
        progress: gr.Progress = gr.Progress(track_tqdm=True),  # noqa: B008 (Gradio finds it by its default)
    ) -> tuple[Any, ...]:
        paths = [Path(path) for path in [*(uploaded or []), *([recorded] if recorded else [])]]
        kind = KINDS.get(reconstruction, "faithful")
        if kind == "vocoder" and dryness < 1:
            raise gr.Error("Dryness mixes in phase, and the vocoder's phase is its own: leave it at 1.")
        settings = Settings(int(steps) or None, kind, int(seed), dryness, None, tilt_db or None, limit)
        progress(0.0, desc="reading")
        folder = runs.new()
        try:
            outcome = work(paths, settings, FORMATS[container], folder)
        except ValueError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise gr.Error(str(error)) from error
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        notices = "\n".join(f"- {notice}" for notice in outcome.notices)
        return (
            player(outcome.before, outcome.after),
            gr.DownloadButton(value=str(outcome.result), visible=True),
            gr.Image(value=str(outcome.spectrograms), visible=True),
            gr.Image(value=None if outcome.lags is None else str(outcome.lags), visible=outcome.lags is not None),
            gr.Markdown(value=notices, visible=bool(notices)),
        )

    with gr.Blocks(title="aud2studio", analytics_enabled=False, delete_cache=(int(SWEEP_S), int(KEPT_S))) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(min_width=300):
                uploaded = gr.File(
                    label=f"Recordings, up to {MAX_RECORDINGS} of one performance",
                    file_count="multiple",
                    elem_id="uploaded",
                )
                recorded = gr.Audio(label="or record", sources=["microphone"], type="filepath", elem_id="recorded")
                gr.Examples([[[str(EXAMPLE)]]], [uploaded], label="or take the example", elem_id="examples")
                with gr.Accordion("Settings", open=False):
                    reconstruction = gr.Radio([*KINDS], value=FAITHFUL, label="Reconstruction")
                    steps = gr.Slider(0, 50, 0, step=1, label="Denoising steps of the vocoder (0: the model's own)")
                    seed = gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed")
                    dryness = gr.Slider(0, 1, 1, label="Dryness: 0 is the recording, 1 is fully restored")
                    tilt_db = gr.Slider(-12, 12, 0, step=0.5, label="Tilt in dB: darker to brighter")
                    limit = gr.Checkbox(False, label="Limiter")
                    container = gr.Radio(list(FORMATS), value="FLAC", label="Format of the download")
                button = gr.Button("Restore", variant="primary", elem_id="restore")
            with gr.Column(min_width=300):
                compared = gr.HTML(
                    value="", html_template=TEMPLATE, css_template=STYLE, js_on_load=SCRIPT, elem_id="compared"
                )
                download = gr.DownloadButton("Download", visible=False, elem_id="download")
                notices = gr.Markdown(visible=False, elem_id="notices")
                spectrograms = gr.Image(
                    show_label=False, visible=False, type="filepath", buttons=[], elem_id="spectrograms"
                )
                lags = gr.Image(show_label=False, visible=False, type="filepath", buttons=[], elem_id="lags")
        inputs = [uploaded, recorded, reconstruction, steps, seed, dryness, tilt_db, limit, container]
        outputs = [compared, download, spectrograms, lags, notices]
        button.click(restore, inputs, outputs, concurrency_limit=1, api_name="restore")
    page.queue(max_size=20)
    return page


def theme() -> gr.themes.Base:
    """Fonts of the visitor's own machine, and a blue whose contrast with white is 8.5; Gradio's orange has 2.8."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return gr.themes.Default(**fonts).set(
        button_primary_background_fill="#1f4e79",
        button_primary_background_fill_hover="#163a5a",
        button_primary_background_fill_dark="#1f4e79",
        button_primary_background_fill_hover_dark="#163a5a",
        button_primary_text_color="#ffffff",
    )


def launch(page: gr.Blocks, runs: Runs, port: int | None, block: bool) -> str:
    """Starts the server -> its address."""
    on_space = "SPACE_ID" in os.environ
    _, local, _ = page.launch(
        server_name="0.0.0.0" if on_space else "127.0.0.1",
        server_port=port,
        allowed_paths=[str(runs.root)],
        max_file_size=MAX_BYTES,
        footer_links=[],
        share=False,
        ssr_mode=False,
        prevent_thread_lock=not block,
        quiet=not block,
        theme=theme(),
    )
    return str(local)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m spaces_app.app", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    options = parser.parse_args()
    runs = Runs()
    try:
        pipeline()  # while nobody waits
        launch(build(runs), runs, options.port, block=True)
    except ValueError as error:
        print(f"app: {error}", file=sys.stderr)
        return 1
    finally:
        runs.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
