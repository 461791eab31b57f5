"""The result on the page: a player with a switch between before and after, what was heard, the pictures; or an error.

Both recordings run, one is heard, and the switch says which.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from spaces_app.studio import Outcome, facts

HERE = Path(__file__).parent
STYLE = (HERE / "player.css").read_text(encoding="utf-8")
SCRIPT = (HERE / "player.js").read_text(encoding="utf-8")

HINT = '<p class="hint">The result comes here: before and after to compare, and a file to download.</p>'
WAITING = '<div class="working waiting" role="status">Waiting for its turn</div>'


def working(what: str, seconds: tuple[int, int] | None) -> str:
    """What is being done, and how many of how many seconds of audio."""
    if seconds is None:
        return f'<div class="working" role="status">{what}<progress aria-label="{what}"></progress></div>'
    done, total = seconds
    text = f"{what}: {done} of {total} s of audio"
    bar = f'<progress aria-label="{what}" value="{done}" max="{total}"></progress>'
    return f'<div class="working" role="status">{text}{bar}</div>'


def error(text: str) -> str:
    """An error that stays until the next attempt; `text` is a plain sentence."""
    return f'<div class="error" role="alert"><h3>Not restored</h3>{html.escape(text)}</div>'


def result(outcome: Outcome) -> str:
    """The finished restoration; its files have to be served by the app."""
    done = outcome.result
    kind = f"{done.suffix[1:].upper()}, {_FORMS[outcome.subtype]}, {done.stat().st_size / 1e6:.1f} MB"
    parts = [
        player(outcome.name, outcome.before, outcome.after),
        f'<a class="download" href="{_address(done)}" download="{html.escape(done.name)}">Download {kind}</a>',
    ]
    if outcome.notices:
        parts.append('<section class="notices"><h3>Worth knowing</h3>' + _list(outcome.notices) + "</section>")
    if outcome.facts:
        rows = "".join(
            f'<tr><th scope="row">{a}</th><td>{b}</td><td>{c}</td></tr>' for a, b, c in facts(outcome.facts)
        )
        parts.append(f'<section class="facts"><h3>Guessed from the recording</h3><table>{rows}</table></section>')
    parts.append(_figure("spectrograms", outcome.spectrograms, "Spectrograms before and after"))
    if outcome.lags is not None:
        parts.append(_figure("lags", outcome.lags, "How the recordings lie against each other"))
    return "".join(parts)


def player(name: str, before: Path, after: Path) -> str:
    """Two audio elements, and what commands them."""
    audio = "".join(
        f'<audio class="{kind}" preload="auto" src="{_address(path)}"'
        f' title="{html.escape(f"{kind.title()} ({name}, {what})")}"></audio>'
        for kind, path, what in (("before", before, "as recorded"), ("after", after, "restored"))
    )
    switch = "".join(
        f'<label><input type="radio" name="heard" value="{kind}"{checked}><span>{kind.title()}</span></label>'
        for kind, checked in (("before", ""), ("after", " checked"))
    )
    return f"""<div class="player" role="group" aria-label="Compare before and after">
  <p class="now" aria-live="polite"></p>
  <div class="row">
    <button type="button" class="play">Play</button>
    <fieldset class="switch"><legend>Listen to</legend>{switch}</fieldset>
  </div>
  <div class="row">
    <input type="range" class="seek" min="0" max="1" step="0.5" value="0" aria-label="Position">
    <span class="time" aria-live="off"></span>
  </div>
  {audio}
</div>"""


_FORMS = {"PCM_16": "16 bit", "PCM_24": "24 bit", "FLOAT": "32-bit float"}


def _address(path: Path) -> str:
    return html.escape(f"gradio_api/file={quote(str(path))}")


def _list(sentences: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _figure(kind: str, path: Path, text: str) -> str:
    address = _address(path)
    return (
        f'<figure class="{kind}"><a href="{address}" target="_blank"><img src="{address}" alt="{text}"></a></figure>'
    )
