"""Headless Chromium. Where it is missing its tests are skipped, unless CI_REQUIRES_BROWSER says that it is there."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if os.environ.get("CI_REQUIRES_BROWSER") != "1":
        pytest.importorskip("playwright", reason="needs Playwright: pip install .[test]")
        if program is None:
            pytest.skip("needs Chromium")
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options.append("--autoplay-policy=no-user-gesture-required")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens an address as a new visitor; no request may leave the machine, and no script may fail."""
    contexts: list[Any] = []
    outside: list[str] = []
    failures: list[str] = []

    def new_page(address: str, width: int = 1200) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: outside.append(request.url))
        page.on("pageerror", lambda failure: failures.append(str(failure)))
        page.goto(address)
        return page

    yield new_page
    for context in contexts:
        context.close()
    assert [url for url in outside if not url.startswith(("http://127.0.0.1:", "blob:", "data:"))] == []
    assert failures == []


COLOURS = """selector => {
  const element = document.querySelector(selector);
  const clear = each => /rgba?[(].*, 0[)]|transparent/.test(getComputedStyle(each).backgroundColor);
  let ground = element;
  while (ground && clear(ground)) ground = ground.parentElement;
  return [getComputedStyle(element).color, ground ? getComputedStyle(ground).backgroundColor : 'rgb(255, 255, 255)'];
}"""


@pytest.fixture
def contrast() -> Callable[[Any, str], float]:
    """Contrast of an element's text with what is behind it, as rendered (WCAG 2.2); AA wants 4.5."""

    def luminance(colour: str) -> float:
        parts = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def contrast(page: Any, selector: str) -> float:
        first, second = sorted(luminance(colour) for colour in page.evaluate(COLOURS, selector))
        return (second + 0.05) / (first + 0.05)

    return contrast
