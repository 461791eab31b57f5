"""The Space: one to four recordings in, one restored recording out, with a switch between before and after.

    python -m spaces_app.app

Runs on a Hugging Face Space, with ZeroGPU or on its CPU, and locally on the shipped weights. Files are kept for half
an hour at most, in a folder that is gone when the server stops; nothing leaves the machine it runs on.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from queue import SimpleQueue
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
from spaces_app import player
from spaces_app.studio import (
    BUSY,
    FORMATS,
    INTRODUCTION,
    MAX_BYTES,
    MAX_RECORDINGS,
    OUR_FAULT,
    TOO_LARGE,
    VOCODER_IS_DRY,
    Refused,
    Tell,
    restore_recordings,
)

if TYPE_CHECKING:
    from pipeline_aud2studio.pipeline import Aud2StudioPipeline

EXAMPLE = Path(__file__).parent / "examples" / "degraded.flac"
EXAMPLE_NAME = "coffee shop.flac"  # as visitors see it
KEPT_S = 1800.0
SWEEP_S = 60.0
GPU_SECONDS = 120
LOG = logging.getLogger(__name__)

KINDS = {
    "faithful: filters what was recorded": "faithful",
    "prediction: only takes away predicted reverberation, without a network": "prediction",
    "vocoder: synthesises it anew (experimental)": "vocoder",
    "blend: faithful, and the vocoder where the recording has nothing (experimental)": "blend",
}


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


def attempt(paths: list[Path], settings: Settings, suffix: str, runs: Runs, tell: Tell) -> str:
    """What the page shows for some recordings: their restoration, or why there is none."""
    if settings.reconstruction == "vocoder" and settings.dryness < 1:
        return player.error(VOCODER_IS_DRY)
    folder = runs.new()
    text = OUR_FAULT
    try:
        return player.result(restore_recordings(paths, settings, suffix, folder, pipeline, tell))
    except Refused as refused:
        text = str(refused)
    except Exception:
        LOG.exception("A restoration failed.")
    shutil.rmtree(folder, ignore_errors=True)
    return player.error(text)


def attempted(paths: list[Path], settings: Settings, suffix: str, runs: Runs) -> Iterator[str]:
    """The progress of an attempt, and then what came of it."""
    pages: SimpleQueue[str | None] = SimpleQueue()

    def tell(what: str, seconds: tuple[int, int] | None) -> None:
        pages.put(player.working(what, seconds))

    with ThreadPoolExecutor(1) as executor:
        task = executor.submit(attempt, paths, settings, suffix, runs, tell)
        task.add_done_callback(lambda _: pages.put(None))
        yield from iter(pages.get, None)
        yield task.result()


def build(runs: Runs) -> gr.Blocks:
    """The page; `runs` holds the files that it serves."""

    # On ZeroGPU this is another process, out of which no exception comes with its words.
    @on_gpu
    def work(paths: list[Path], settings: Settings, suffix: str) -> Iterator[str]:
        yield from attempted(paths, settings, suffix, runs)

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
    ) -> Iterator[str]:
        paths = [Path(path) for path in [*(uploaded or []), *([recorded] if recorded else [])]]
        kind = KINDS.get(reconstruction, "faithful")
        settings = Settings(int(steps) or None, kind, int(seed), dryness, None, tilt_db or None, limit)
        yield from work(paths, settings, FORMATS[container])

    def example() -> list[str]:
        # A copy, because that of Gradio is deleted like every upload.
        return [str(shutil.copyfile(EXAMPLE, runs.new() / EXAMPLE_NAME))]

    with gr.Blocks(title="aud2studio", analytics_enabled=False, delete_cache=(int(SWEEP_S), int(KEPT_S))) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(min_width=300):
                inputs, take_example, button = _controls()
            with gr.Column(min_width=300):
                outcome = gr.HTML(
                    value=player.HINT,
                    css_template=player.STYLE,
                    js_on_load=player.SCRIPT,
                    apply_default_css=False,
                    elem_id="outcome",
                    max_bytes=MAX_BYTES,
                    too_large=player.error(TOO_LARGE),
                )
        take_example.click(example, None, inputs[0], queue=False, api_visibility="private")
        # Whatever was there before gives way to the progress.
        started = button.click(None, None, outcome, js=f"() => {json.dumps(player.WAITING)}")
        done = started.then(restore, inputs, outcome, concurrency_limit=1, api_name="restore", show_progress="hidden")
        # No work was done: the queue is full, the connection broke, or the Space has no GPU left for this visitor.
        done.failure(None, None, outcome, js=f"() => {json.dumps(player.error(BUSY))}")
    page.queue(max_size=20)
    return page


def _controls() -> tuple[list[gr.components.Component], gr.Button, gr.Button]:
    """The left column: what `restore` is given, in its order, and the buttons of the example and of the start."""
    uploaded = gr.File(
        label=f"Recordings, up to {MAX_RECORDINGS} of one performance", file_count="multiple", elem_id="uploaded"
    )
    take_example = gr.Button("Take the example: music in a coffee shop, 12 s", elem_id="example")
    recorded = gr.Audio(label="or record", sources=["microphone"], type="filepath", elem_id="recorded")
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        settings = [
            gr.Radio([*KINDS], value=[*KINDS][0], label="Reconstruction"),
            gr.Slider(0, 50, 0, step=1, label="Denoising steps of the vocoder (0: the model's own)"),
            gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed"),
            gr.Slider(0, 1, 1, label="Dryness: 0 is the recording, 1 is fully restored"),
            gr.Slider(-12, 12, 0, step=0.5, label="Tilt in dB: darker to brighter"),
            gr.Checkbox(False, label="Limiter"),
            gr.Radio(list(FORMATS), value="FLAC", label="Format of the download"),
        ]
    return [uploaded, recorded, *settings], take_example, gr.Button("Restore", variant="primary", elem_id="restore")


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
        css="#outcome .html-container { padding: 0; }",
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
