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

from spaces_app import app, studio  # noqa: E402

ARTEFACTS = Path("build") / "space"
EXAMPLE = Path(app.__file__).parent / "examples" / "degraded.flac"
PATIENCE_MS = 60_000
PLAYERS = """() => ['before', 'after'].map(name => {
  const each = document.querySelector('audio.' + name);
  return {time: each.currentTime, muted: each.muted, paused: each.paused, duration: each.duration, source: each.src};
})"""


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
def address(runs: app.Runs) -> Iterator[str]:
    page = app.build(runs)
    yield app.launch(page, runs, None, block=False)
    page.close()


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
    for path in paths:
        page.locator("#uploaded").get_by_text(re.compile(re.escape(path.stem[:6]))).first.wait_for(state="visible")


def restored(page: Any) -> None:
    page.click("#restore")
    page.wait_for_selector("#compared audio.after", state="attached", timeout=PATIENCE_MS)


def shot(page: Any, name: str) -> None:
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True)


def test_upload_restore_compare_download(open_page: Any, excerpt: Path, runs: app.Runs, tmp_path: Path) -> None:
    page = open_page()
    shot(page, "load")
    upload(page, excerpt)
    restored(page)
    visible(page, "#spectrograms img")
    assert page.locator("#lags img").count() == 0
    shot(page, "restored")

    page.wait_for_function("() => document.querySelector('audio.after').readyState > 1")
    page.click("#compared button.play")
    page.wait_for_function("() => document.querySelector('audio.after').currentTime > 0.5")
    before, after = page.evaluate(PLAYERS)
    assert (before["muted"], after["muted"]) == (True, False) and not before["paused"] and not after["paused"]
    assert abs(before["time"] - after["time"]) < 0.1
    page.click("#compared button.before")
    page.wait_for_timeout(300)
    before, after = page.evaluate(PLAYERS)
    assert (before["muted"], after["muted"]) == (False, True)
    assert abs(before["time"] - after["time"]) < 0.1
    assert page.get_attribute("#compared button.before", "aria-pressed") == "true"
    page.click("#compared button.play")
    before, after = page.evaluate(PLAYERS)
    assert before["paused"] and after["paused"] and before["duration"] == after["duration"] == 3
    shot(page, "compared")

    loudness = []
    for number, each in enumerate((before, after)):
        path = tmp_path / f"{number}.flac"
        path.write_bytes(page.request.get(each["source"]).body())
        waveform, rate = soundfile.read(path)
        loudness.append(pyloudnorm.Meter(rate).integrated_loudness(waveform))
    assert loudness[0] == pytest.approx(loudness[1], abs=0.1)

    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "result.flac")
    assert download.value.suggested_filename.endswith(".restored.flac")
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
    visible(page, "#lags img")
    assert "is the reference" in page.locator("#notices").inner_text()
    shot(page, "aligned")


def test_bad_files_get_a_sentence(open_page: Any, tmp_path: Path) -> None:
    page = open_page()
    page.click("#restore")
    visible(page, ".toast-body >> text=nothing to restore")
    page.locator(".toast-close").first.click()
    (tmp_path / "notes.wav").write_text("not a recording")
    upload(page, tmp_path / "notes.wav")
    page.click("#restore")
    visible(page, ".toast-body >> text=notes.wav")
    text = page.locator(".toast-body").first.inner_text()
    assert "Traceback" not in text and str(tmp_path) not in text and "/" not in text.replace("and/or", "")
    shot(page, "error")


@pytest.mark.parametrize("width", [320, 375])
def test_a_narrow_screen_does_not_scroll_sideways(open_page: Any, excerpt: Path, width: int) -> None:
    page = open_page(width)
    upload(page, excerpt)
    restored(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("play", "before", "after"):
        box = page.locator(f"#compared button.{name}").bounding_box()
        assert box is not None and box["height"] >= 44 and box["x"] >= 0 and box["x"] + box["width"] <= width
    shot(page, f"narrow-{width}")


def test_two_visitors_wait_their_turn(open_page: Any, excerpt: Path, busy: list[tuple[float, float]]) -> None:
    pages = [open_page(), open_page()]
    for page in pages:
        upload(page, excerpt)
    before = len(busy)
    for page in pages:
        page.click("#restore")
    for page in pages:
        page.wait_for_selector("#compared audio.after", state="attached", timeout=PATIENCE_MS)
    first, second = sorted(busy[before:])
    assert first[1] <= second[0]
    sources = {page.evaluate(PLAYERS)[1]["source"] for page in pages}
    assert len(sources) == 2  # each has a file of his own


def test_the_keyboard_reaches_everything(open_page: Any, excerpt: Path) -> None:
    page = open_page()
    upload(page, excerpt)
    restored(page)
    page.locator("body").click(position={"x": 1, "y": 1})
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("() => document.activeElement.id + '.' + document.activeElement.className"))
    text = " ".join(seen)
    for name in ("restore", ".play", ".before", ".after", ".seek", "download"):
        assert name in text, name
    page.focus("#compared button.before")
    page.keyboard.press("Enter")
    assert page.get_attribute("#compared button.before", "aria-pressed") == "true"


def test_contrast_of_the_text(open_page: Any, excerpt: Path, contrast: Callable[[Any, str], float]) -> None:
    page = open_page()
    upload(page, excerpt)
    restored(page)
    selectors = ["#restore", "#download", "h1", ".prose p", "#uploaded label", "#examples .label", ".label-wrap span"]
    selectors += [f"#compared button.{name}" for name in ("play", "before", "after")] + ["#compared .time"]
    assert {selector: contrast(page, selector) for selector in selectors if contrast(page, selector) < 4.5} == {}


def test_limits_are_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(8000 * 700), 8000)
    with pytest.raises(ValueError, match="long.wav lasts 11.7 minutes: 10 at most here"):
        studio.check([path])
    with pytest.raises(ValueError, match="5 recordings are too many: 4 at most"):
        studio.check([path] * 5)
    monkeypatch.setattr(studio, "MAX_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="long.wav has 11 MB: 1 MB at most"):
        studio.check([path])


def test_old_runs_are_removed(tmp_path: Path) -> None:
    runs = app.Runs()
    old, new = runs.new(), runs.new()
    os.utime(old, (time.time() - app.KEPT_S - 1,) * 2)
    runs.sweep()
    assert not old.exists() and new.exists()
    runs.close()
    assert not runs.root.exists()
    assert threading.active_count() < 100
