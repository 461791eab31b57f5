"""The Space in a browser: headless Chromium against the server, with the shipped weights."""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyloudnorm
import pytest
import soundfile
from concert import RATE, clock, heard, notes

pytest.importorskip("gradio", reason="needs Gradio: pip install .[space]")

from spaces_app import app, player  # noqa: E402
from spaces_app.studio import BUSY, PICTURE_INCHES  # noqa: E402

pytestmark = pytest.mark.slow

ARTEFACTS = Path("build") / "space"
EXAMPLE = Path(app.__file__).parent / "examples" / "degraded.flac"
PATIENCE_MS = 180_000
PLAYERS = """() => ['before', 'after'].map(name => {
  const each = document.querySelector('audio.' + name);
  return {time: each.currentTime, muted: each.muted, paused: each.paused, duration: each.duration, source: each.src};
})"""

TOGETHER = """() => 0.1 > Math.abs(
  document.querySelector('audio.before').currentTime - document.querySelector('audio.after').currentTime
)"""


@pytest.fixture(scope="module")
def busy() -> list[tuple[float, float]]:
    """When the server was at work, in seconds."""
    return []


@pytest.fixture(scope="module")
def runs(busy: list[tuple[float, float]]) -> Iterator[app.Runs]:
    runs = app.Runs()
    original = app.restore_recordings

    def timed(*arguments: Any) -> Any:
        start = time.monotonic()
        try:
            return original(*arguments)
        finally:
            busy.append((start, time.monotonic()))

    app.restore_recordings = timed
    yield runs
    app.restore_recordings = original
    runs.close()
    assert not runs.root.exists()


@pytest.fixture(scope="module")
def page_blocks(runs: app.Runs) -> Any:
    return app.build(runs)


@pytest.fixture(scope="module")
def address(page_blocks: Any, runs: app.Runs) -> Iterator[str]:
    yield app.launch(page_blocks, runs, None, block=False)
    page_blocks.close()


@pytest.fixture
def open_page(new_page: Callable[..., Any], address: str) -> Callable[..., Any]:
    """Opens the page as a new visitor."""

    def open_page(width: int = 1200) -> Any:
        page = new_page(address, width)
        visible(page, "#restore")
        return page

    return open_page


def visible(page: Any, selector: str) -> None:
    page.wait_for_selector(selector, state="visible", timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def excerpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 s of the example, in stereo."""
    waveform, rate = soundfile.read(EXAMPLE)
    path = tmp_path_factory.mktemp("recordings") / "my gig.wav"
    soundfile.write(path, waveform[: 3 * rate], rate, subtype="PCM_24")
    return path


def upload(page: Any, *paths: Path) -> None:
    page.set_input_files("#uploaded input[type=file]", [str(path) for path in paths])
    for path in paths:  # named in the list, not in the progress of what is still on its way
        page.locator("#uploaded .file-preview").get_by_text(re.compile(re.escape(path.stem[:6]))).first.wait_for(
            state="visible"
        )


def restored(page: Any) -> None:
    page.click("#restore")
    page.wait_for_selector("#outcome audio.after", state="attached", timeout=PATIENCE_MS)


def told(page: Any) -> str:
    """The error that the page shows, half a minute after it came up: no toast lasts as long, and none is there."""
    visible(page, "#outcome .error[role=alert]")
    assert page.locator(".toast-body").count() == 0
    page.wait_for_timeout(2000)  # until the answer's stream is closed: half a minute later it would count as broken
    page.clock.run_for(30_000)
    text: str = page.locator("#outcome .error").inner_text()
    return text


def shot(page: Any, name: str) -> None:
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True)


def test_upload_restore_compare_download(open_page: Any, excerpt: Path, runs: app.Runs, tmp_path: Path) -> None:
    page = open_page(1280)
    shot(page, "load")
    upload(page, excerpt)
    restored(page)
    visible(page, "#outcome .spectrograms img")
    assert page.locator("#outcome .lags").count() == 0
    assert page.locator("#outcome .facts tr").count() == 5

    page.wait_for_function("() => document.querySelector('audio.after').readyState > 1")
    page.click("#outcome button.play")
    page.wait_for_function("() => document.querySelector('audio.after').currentTime > 0.5")
    before, after = page.evaluate(PLAYERS)
    assert (before["muted"], after["muted"]) == (True, False) and not before["paused"] and not after["paused"]
    page.wait_for_function(TOGETHER)
    assert page.inner_text("#outcome .now") == "Playing: After (my gig.wav, restored)"
    page.get_by_text("Before", exact=True).click()
    page.wait_for_timeout(300)
    before, after = page.evaluate(PLAYERS)
    assert (before["muted"], after["muted"]) == (False, True)
    page.wait_for_function(TOGETHER)
    assert page.inner_text("#outcome .now") == "Playing: Before (my gig.wav, as recorded)"
    page.click("#outcome button.play")
    before, after = page.evaluate(PLAYERS)
    assert before["paused"] and after["paused"] and before["duration"] == after["duration"] == 3
    assert page.inner_text("#outcome .now").startswith("Paused: Before")

    loudness = []
    for number, each in enumerate((before, after)):
        path = tmp_path / f"{number}.flac"
        path.write_bytes(page.request.get(each["source"]).body())
        waveform, rate = soundfile.read(path)
        loudness.append(pyloudnorm.Meter(rate).integrated_loudness(waveform))
    assert loudness[0] == pytest.approx(loudness[1], abs=0.1)

    with page.expect_download() as download:
        page.click("#outcome a.download")
    download.value.save_as(tmp_path / "result.flac")
    assert download.value.suggested_filename == "my gig.restored.flac"
    assert re.fullmatch(r"Download FLAC, 24 bit, 0\.\d MB", page.inner_text("#outcome a.download"))
    waveform, rate = soundfile.read(tmp_path / "result.flac")
    recording, recorded_rate = soundfile.read(excerpt)
    assert (waveform.shape, rate) == (recording.shape, recorded_rate)
    assert soundfile.info(tmp_path / "result.flac").subtype == "PCM_24"
    assert not np.allclose(waveform, recording, atol=1e-2)

    assert any(runs.root.iterdir())
    runs.sweep()
    assert any(runs.root.iterdir())  # it is not old yet
    runs.sweep(kept_s=-1.0)
    assert not any(runs.root.iterdir())


def test_two_recordings_are_aligned_and_the_plot_is_shown(open_page: Any, tmp_path: Path) -> None:
    table = notes(21, 30.0)
    for number, (offset_s, snr_db) in enumerate([(0.0, 20.0), (1.5, 10.0)]):
        waveform = heard(clock(12.0, 8.0 + offset_s, 0.0), table, number, snr_db)
        soundfile.write(tmp_path / f"phone {number}.wav", waveform, RATE)
    page = open_page()
    upload(page, tmp_path / "phone 0.wav", tmp_path / "phone 1.wav")
    restored(page)
    visible(page, "#outcome .lags img")
    assert "phone 0.wav is the reference." in page.locator("#outcome .notices").inner_text()


def test_an_error_stays_until_the_next_attempt(open_page: Any, tmp_path: Path) -> None:
    page = open_page()
    page.clock.install()
    page.click("#restore")
    assert (
        told(page) == "Not restored\nThere is nothing to restore yet. Upload or record something, or take the example."
    )
    (tmp_path / "notes.wav").write_text("not a recording")
    upload(page, tmp_path / "notes.wav")
    page.click("#restore")
    visible(page, "#outcome .error >> text=notes.wav")
    assert told(page) == (
        "Not restored\nnotes.wav cannot be read as a recording: it is damaged, or of a kind that is not known here."
        " Export it as WAV or FLAC from the program that made it, and upload that."
    )
    shot(page, "error")


def test_a_file_that_is_too_large_is_not_uploaded(open_page: Any) -> None:
    page = open_page()
    page.clock.install()
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    # A file of 300 MB without the bytes.
    page.evaluate("""() => {
      const input = document.querySelector('#uploaded input[type=file]');
      const large = new File(['x'], '<i>${1+1}{{value}}night.wav');
      Object.defineProperty(large, 'size', { value: 3e8 });
      Object.defineProperty(input, 'files', { value: [large], configurable: true });
      input.dispatchEvent(new Event('change', { bubbles: true }));
    }""")
    assert told(page) == (
        "Not restored\n<i>${1+1}{{value}}night.wav has 300 MB, and a file may have 250 MB. Save it as FLAC, or cut it."
    )
    assert not [url for url in sent if "upload" in url]


def test_what_fails_here_is_not_blamed_on_the_recording(
    open_page: Any, excerpt: Path, runs: app.Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise RuntimeError("numpy.core._exceptions._ArrayMemoryError: Unable to allocate 12 GiB")

    monkeypatch.setattr(app, "pipeline", fails)
    kept = set(runs.root.iterdir())
    page = open_page()
    page.clock.install()
    upload(page, excerpt)
    page.click("#restore")
    assert told(page).startswith("Not restored\nSomething went wrong here, not with your recording. Please try again.")
    assert set(runs.root.iterdir()) == kept


def test_a_full_queue_is_told(open_page: Any, monkeypatch: pytest.MonkeyPatch, page_blocks: Any) -> None:
    page = open_page()
    monkeypatch.setattr(page_blocks._queue, "max_size", 0)
    page.click("#restore")
    page.locator("#outcome .error").get_by_text(BUSY).wait_for(state="visible", timeout=PATIENCE_MS)


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_the_example_on_every_screen(open_page: Any, width: int) -> None:
    page = open_page(width)
    page.click("#example")
    page.locator("#uploaded").get_by_text("coffee shop").first.wait_for(state="visible")
    page.click("#restore")
    page.wait_for_function(
        "() => /Restoring: \\d+ of 12 s of audio/.test(document.querySelector('.working')?.innerText)"
    )
    shot(page, f"progress-{width}")
    page.wait_for_selector("#outcome audio.after", state="attached", timeout=PATIENCE_MS)
    assert page.inner_text("#outcome .now") == "Paused: After (coffee shop.flac, restored)"
    page.wait_for_function("() => document.querySelector('.spectrograms img').naturalWidth > 0")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in ("button.play", ".switch label:first-of-type span", ".switch label:last-of-type span"):
        box = page.locator(f"#outcome {selector}").bounding_box()
        assert box is not None and box["height"] >= 44 and box["x"] >= 0 and box["x"] + box["width"] <= width
    given, got, picture = (
        page.locator(selector).bounding_box() for selector in ("#uploaded", "#outcome", "#outcome .spectrograms img")
    )
    if width < 600:  # one column
        assert got["y"] > given["y"] + given["height"] and abs(got["x"] - given["x"]) < 2
    else:
        assert got["x"] > given["x"] + given["width"]
    if width >= 390:  # letters of 10 points in a picture that is so many inches wide
        assert 10 / 72 * picture["width"] / PICTURE_INCHES >= 11
    shot(page, f"example-{width}")


def test_two_visitors_wait_their_turn(open_page: Any, excerpt: Path, busy: list[tuple[float, float]]) -> None:
    pages = [open_page(), open_page()]
    for page in pages:
        upload(page, excerpt)
    before = len(busy)
    for page in pages:
        page.click("#restore")
    for page in pages:
        page.wait_for_selector("#outcome audio.after", state="attached", timeout=PATIENCE_MS)
    first, second = sorted(busy[before:])
    assert first[1] <= second[0]
    sources = {page.evaluate(PLAYERS)[1]["source"] for page in pages}
    assert len(sources) == 2  # each has a file of his own


def test_the_keyboard_reaches_everything(open_page: Any, excerpt: Path, contrast: Callable[[Any, str], float]) -> None:
    page = open_page()
    upload(page, excerpt)
    restored(page)
    page.locator("body").click(position={"x": 1, "y": 1})
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("(e => e.id + '.' + e.className + '.' + e.value)(document.activeElement)"))
    text = " ".join(seen)
    for name in ("example", "restore", ".play", ".after", ".seek", ".download"):
        assert name in text, name
    assert ".before" not in text  # the switch is one stop, and arrows move it
    page.focus("#outcome .switch input[value=after]")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#outcome .now").startswith("Paused: Before")
    assert [each["muted"] for each in page.evaluate(PLAYERS)] == [False, True]
    page.keyboard.press("ArrowRight")
    assert [each["muted"] for each in page.evaluate(PLAYERS)] == [True, False]

    selectors = ["#restore", "#example", "h1", ".prose p", ".prose li", "#uploaded label", ".label-wrap span"]
    selectors += [f"#outcome {each}" for each in (".play", ".now", ".time", "th", "td", "h3", "a.download")]
    selectors += ["#outcome .switch label:first-of-type span", "#outcome .switch label:last-of-type span"]
    assert {selector: contrast(page, selector) for selector in selectors if contrast(page, selector) < 4.5} == {}


def test_every_reconstruction_is_offered_and_the_vocoder_is_not_mixed(runs: app.Runs) -> None:
    assert set(app.KINDS.values()) == {"faithful", "prediction", "vocoder", "blend"}
    shown = app.attempt([EXAMPLE], app.Settings(reconstruction="vocoder", dryness=0.5), ".flac", runs, print)
    assert shown == player.error(app.VOCODER_IS_DRY) and "Set the dryness to 1" in shown


def test_old_runs_are_removed(tmp_path: Path) -> None:
    runs = app.Runs()
    old, new = runs.new(), runs.new()
    os.utime(old, (time.time() - app.KEPT_S - 1,) * 2)
    runs.sweep()
    assert not old.exists() and new.exists()
    runs.close()
    assert not runs.root.exists()
    assert threading.active_count() < 100
