"""The listening test in a browser: two listeners at once, a pause, a killed server, switching to the sample."""

import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from study_files import write_study

from spaces_app.listening_test import Server, Store, main
from spaces_app.study import build, load_study, read_config

PATIENCE_MS = 30_000
ARTEFACTS = Path("build") / "listening-test"


class Running:
    """The server in a process of its own, so that it can be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = "0"
        self.start()

    def start(self) -> None:
        if self.port == "0":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = str(free.getsockname()[1])
        command = [sys.executable, "-m", "spaces_app.listening_test", "serve", "--folder", str(self.folder)]
        self.process = subprocess.Popen([*command, "--port", self.port], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split(" - ")[0]
        for _ in range(100):
            try:
                urllib.request.urlopen(self.address).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    build(read_config(write_study(tmp_path)), tmp_path / "study", progress=False)
    running = Running(tmp_path / "study")
    yield running
    running.kill()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that nobody kills."""
    folder = tmp_path_factory.mktemp("shared")
    build(read_config(write_study(folder)), folder / "study", progress=False)
    running = Running(folder / "study")
    yield running
    running.kill()


def begin(page: Any, code: str = "") -> str:
    if code:
        page.fill("#code", code)
        page.click("#return")
    else:
        page.click("#new")
    page.wait_for_selector("#page:not(.hidden), #end:not(.hidden)", timeout=PATIENCE_MS)
    loaded(page)
    return page.inner_text("#own") or page.inner_text("#last")


def loaded(page: Any) -> None:
    page.wait_for_function("() => players.length > 0 || !page", timeout=PATIENCE_MS)


def rate(page: Any, number: int, score: int) -> None:
    """Moves a slider, and waits until the server has stored it."""
    with page.expect_response("**/api/rate") as response:
        page.locator(".stimulus input[type=range]").nth(number).evaluate(
            "(slider, score) => { slider.value = score; slider.oninput(); slider.onchange(); }", score
        )
    assert response.value.ok


def next_page(page: Any) -> None:
    before = page.inner_text("#progress")
    page.click("#next")
    page.wait_for_function("text => document.querySelector('#progress').textContent !== text", arg=before)
    loaded(page)


@pytest.mark.slow
def test_two_listeners_at_once_a_pause_and_a_killed_server(server: Running, new_page: Callable[..., Any]) -> None:
    study = load_study(server.folder)
    first, second = new_page(server.address), new_page(server.address, 375)
    codes = [begin(first), begin(second)]
    assert len(set(codes)) == 2 and all(re.fullmatch("[A-Z2-9]{8}", code) for code in codes)
    assert first.inner_text("#progress") == "Page 1 of 5."  # training, two excerpts, two pairs
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    rate(first, 0, 33)  # does not count
    next_page(first)
    next_page(second)

    given: dict[str, dict[int, int]] = {codes[0]: {}, codes[1]: {}}
    for number in range(4):
        for listener, page in enumerate((first, second)):
            score = 10 * number + 5 * listener + 3
            rate(page, number, score)
            given[codes[listener]][number] = score
        if number == 1:
            server.kill()  # at a random place, for the database
            server.start()
    first.screenshot(path=ARTEFACTS / "mushra.png", full_page=True)
    second.screenshot(path=ARTEFACTS / "narrow.png", full_page=True)
    assert second.evaluate("document.documentElement.scrollWidth") <= 375

    # The second one goes away and comes back, on another device.
    again = new_page(server.address)
    assert begin(again, codes[1].lower()) == codes[1]
    assert again.inner_text("#progress") == "Page 2 of 5."
    values = again.locator(".stimulus input[type=range]").evaluate_all("all => all.map(each => Number(each.value))")
    assert values == [given[codes[1]][number] for number in range(4)]

    store = Store(server.folder / "ratings.sqlite")
    for code in codes:
        excerpt = study.order(code)[0]
        expected = {study.stimuli(code, excerpt)[number]: score for number, score in given[code].items()}
        assert {rating.condition: rating.score for rating in store.ratings(code)} == expected
        assert {rating.excerpt for rating in store.ratings(code)} == {excerpt}

    next_page(first)
    first.click("#next")  # nothing is rated on this page yet
    first.wait_for_selector("#error >> text=4 of the recordings on this page are not rated yet")
    for number in range(4):
        rate(first, number, 90 + number)
    next_page(first)
    first.screenshot(path=ARTEFACTS / "preference.png", full_page=True)
    first.locator("button.prefer").first.click()
    first.wait_for_function("() => document.querySelector('#progress').textContent === 'Page 5 of 5.'")
    loaded(first)
    first.locator("button.tie").click()
    first.wait_for_selector("#end:not(.hidden)")
    answers = {each.excerpt: each for each in store.preferences(codes[0])}
    one, two = study.order(codes[0])
    assert (answers[one].preferred, answers[one].tie) == (study.pair(codes[0], one)[0], 0)
    assert answers[two].tie == 1
    store.close()

    assert main(["analyze", "--folder", str(server.folder)]) == 0
    rows = (server.folder / "ratings.csv").read_text().splitlines()
    assert rows[0] == "code,excerpt,condition,score" and len(rows) == 1 + 8 + 4
    (row,) = [row for row in rows if row.startswith(f"{codes[0]},{one},reference,")]
    assert int(row.rsplit(",")[-1]) == given[codes[0]][study.stimuli(codes[0], one).index("reference")]
    assert (server.folder / "preferences.csv").read_text().splitlines()[0] == "code,excerpt,preferred,over,tie"
    assert (
        "| reference " in (server.folder / "analysis.md").read_text()
        or "left out" in (server.folder / "analysis.md").read_text()
    )


@pytest.mark.slow
def test_switching_keeps_all_recordings_on_one_clock(shared: Running, new_page: Callable[..., Any]) -> None:
    """All sources start at one instant and never stop: a switch continues at the same sample."""
    page = new_page(shared.address)
    begin(page)
    page.click("#play")
    page.wait_for_function("() => context.currentTime > startedAt + 0.3")
    page.evaluate("() => { window.kept = players.map(each => each.source); }")
    for number in (1, 2, 0, 3):
        page.locator(".stimulus button").nth(number).click()
        page.wait_for_timeout(80)
        gains = page.evaluate("() => players.map(each => each.gain.gain.value)")
        assert max(range(5), key=gains.__getitem__) == number + 1  # the open reference comes first
        assert gains[number + 1] > 0.99 and sorted(gains)[-2] < 0.01
    assert page.evaluate("() => players.every((each, index) => each.source === kept[index])")
    loops = "() => players.map(each => [each.buffer.length, each.source.loopStart, each.source.loopEnd])"
    lengths = page.evaluate(loops)
    assert len({tuple(each) for each in lengths}) == 1 and lengths[0][0] == 48_000
    page.click("#reference")
    assert page.get_attribute("#reference", "aria-pressed") == "true"


@pytest.mark.slow
def test_addresses_do_not_tell_what_is_heard(shared: Running, new_page: Callable[..., Any]) -> None:
    page = new_page(shared.address)
    begin(page)
    stimuli = page.evaluate("() => JSON.stringify(session.pages.map(page => page.stimuli))")
    assert [name for name in load_study(shared.folder).conditions if name in stimuli] == []


def test_bad_messages_get_a_sentence(tmp_path: Path) -> None:
    build(read_config(write_study(tmp_path)), tmp_path / "study", progress=False)
    study, store = load_study(tmp_path / "study"), Store(tmp_path / "study" / "ratings.sqlite")
    client = TestClient(Server(study, store).app())
    answer = client.post("/api/begin", json={"code": "nobody"})
    assert answer.status_code == 404 and "The code NOBODY is not known here" in answer.json()["error"]
    code = client.post("/api/begin", json={}).json()["code"]
    token = study.token(code, study.order(code)[0], "anchor")
    for path, content, status in [
        ("rate", {"code": code, "number": 1, "token": "x", "score": 3}, 404),
        ("rate", {"code": code, "number": 1, "token": token}, 400),
        ("rate", {"code": code, "number": 1, "token": token, "score": 101}, 400),
        ("rate", {"code": code, "number": 1, "token": token, "score": True}, 400),
        ("rate", {"code": "NOBODY", "number": 1, "token": token, "score": 3}, 404),
        ("rate", {"code": code, "number": "1", "token": token, "score": 3}, 400),
        ("rate", {"code": code, "number": 99, "token": token, "score": 3}, 404),
        ("finish", {"code": code, "number": 1}, 409),
        ("finish", [], 400),
        ("prefer", {"code": code, "number": 1, "token": "../../study.json"}, 404),
        ("prefer", {"code": code, "number": 1, "token": token}, 404),  # not one of the pair
    ]:
        answer = client.post(f"/api/{path}", json=content)
        assert answer.status_code == status and answer.json()["error"], (path, content)
    for address in ("audio/x/1/y.flac", f"audio/{code}/-1/open.flac", f"audio/{code}/1/..%2F..%2Fstudy.flac"):
        assert client.get(address).status_code == 404
    assert store.ratings() == []
    assert client.post("/api/rate", json={"code": code, "number": 1, "token": token, "score": 3}).json()["stored"]
    assert store.ratings(code) == [(code, study.order(code)[0], "anchor", 3)]
    pages = client.post("/api/begin", json={"code": code}).json()["pages"]
    page = next(page for page in pages if page["number"] == 1)
    assert {each["token"]: each["score"] for each in page["stimuli"]}[token] == 3
    assert client.get(page["reference"]).content == study.audio(study.order(code)[0], "reference").read_bytes()
    store.close()


@pytest.mark.slow
def test_contrast_and_keyboard(shared: Running, new_page: Callable[..., Any], contrast: Any) -> None:
    page = new_page(shared.address)
    begin(page)
    selectors = ["h1", "#task", "#play", "#reference", ".stimulus button", ".stimulus output", ".scale", "#next"]
    assert {selector: contrast(page, selector) for selector in selectors if contrast(page, selector) < 4.5} == {}
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        focused = "() => document.activeElement.id || document.activeElement.getAttribute('aria-label')"
        reached.append(page.evaluate(focused))
    assert {"play", "reference", "next", "Score of A, 0 to 100", "Score of D, 0 to 100"} <= set(reached)
    page.focus("[aria-label='Score of A, 0 to 100']")
    with page.expect_response("**/api/rate"):
        page.keyboard.press("ArrowRight")
    assert page.locator(".stimulus output").first.inner_text() == "51, fair"


def test_answers_are_not_built_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, folder = write_study(tmp_path), tmp_path / "study"
    assert main(["build", "--study", str(study), "--out", str(folder)]) == 0
    assert main(["build", "--study", str(study), "--out", str(folder)]) == 0  # nobody has answered yet
    Store(folder / "ratings.sqlite").close()
    capsys.readouterr()
    assert main(["build", "--study", str(study), "--out", str(folder)]) == 1
    assert "holds answers already" in capsys.readouterr().err
    assert main(["analyze", "--folder", str(folder)]) == 1
    assert "no ratings yet" in capsys.readouterr().err
