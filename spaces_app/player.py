"""The result on the page: a player with a switch between before and after, what was heard, the pictures; or an error.

Both recordings run, one is heard, and the switch says which.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from spaces_app.studio import Outcome, facts

STYLE = """
.player, .error, .hint, .working { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 12px; }
.working progress { display: block; width: 100%; height: 12px; margin-top: 8px; appearance: none; border: 0;
  background: #c9d3dd; }
.working progress::-webkit-progress-bar { background: #c9d3dd; }
.working progress::-webkit-progress-value { background: #1f4e79; }
.working progress::-moz-progress-bar { background: #1f4e79; }
.error { border-color: #b3261e; border-left-width: 8px; }
.error h3, .player p { margin: 0; }
.player .row { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin-top: 8px; }
.player .now { font-weight: 600; overflow-wrap: anywhere; }
.player button, .switch span, a.download { box-sizing: border-box; min-height: 44px; padding: 8px 16px;
  cursor: pointer; border: 2px solid #1f4e79; border-radius: 8px; font: inherit; font-size: 16px; font-weight: 600; }
.player button, a.download { background: #1f4e79; color: #ffffff; }
.player button { min-width: 96px; }
.switch { display: flex; margin: 0; padding: 0; border: 0; }
.switch legend, .switch input { position: absolute; opacity: 0; width: 1px; height: 1px; overflow: hidden; }
.switch span { display: block; min-width: 88px; text-align: center; background: #ffffff; color: #1f4e79; }
.switch label:first-of-type span { border-radius: 8px 0 0 8px; border-right-width: 1px; }
.switch label:last-of-type span { border-radius: 0 8px 8px 0; border-left-width: 1px; }
.switch input:checked + span { background: #1f4e79; color: #ffffff; }
.player button:focus-visible, .player .seek:focus-visible, .switch input:focus-visible + span,
a.download:focus-visible { outline: 3px solid #d95f02; outline-offset: 2px; }
.player .seek { flex: 1 1 160px; min-width: 0; min-height: 44px; accent-color: #1f4e79; }
.player .time { font-variant-numeric: tabular-nums; }
a.download { display: block; margin: 12px 0; text-align: center; text-decoration: none; overflow-wrap: anywhere; }
h3 { margin: 16px 0 4px; font-size: 16px; font-weight: 600; }
ul { margin: 0; padding-left: 20px; list-style: disc; overflow-wrap: anywhere; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: 4px 8px 4px 0; border-top: 1px solid var(--border-color-primary); text-align: left;
  font-weight: 400; vertical-align: top; }
td:nth-child(2) { white-space: nowrap; font-variant-numeric: tabular-nums; }
figure { margin: 16px 0 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 8px; }
.spectrograms img { max-width: 480px; margin: 0 auto; }
"""

# Both elements play all the time; the one that is not heard is muted and brought back where it drifts away.
SCRIPT = """
function connect() {
  const find = (name) => element.querySelector(name);
  const heard = { before: find('audio.before'), after: find('audio.after') };
  if (!heard.before || !heard.after) return;
  const play = find('button.play'), seek = find('input.seek'), time = find('.time'), now = find('.now');
  let chosen = 'after';
  const other = () => heard[chosen === 'after' ? 'before' : 'after'];
  const say = () => {
    const paused = heard[chosen].paused;
    play.textContent = paused ? 'Play' : 'Pause';
    now.textContent = (paused ? 'Paused: ' : 'Playing: ') + heard[chosen].title;
  };
  const choose = (name) => {
    chosen = name;
    other().muted = true;
    if (Math.abs(heard[name].currentTime - other().currentTime) > 0.02) heard[name].currentTime = other().currentTime;
    heard[name].muted = false;
    say();
  };
  const label = (seconds) => Math.floor(seconds / 60) + ':' + String(Math.floor(seconds % 60)).padStart(2, '0');
  const tick = () => {
    const at = heard[chosen].currentTime, length = heard.after.duration || 0;
    if (!heard[chosen].paused && Math.abs(other().currentTime - at) > 0.05) other().currentTime = at;
    seek.max = length;
    seek.value = at;
    time.textContent = label(at) + ' / ' + label(length);
    seek.setAttribute('aria-valuetext', time.textContent);
  };
  for (const radio of element.querySelectorAll('.switch input')) radio.onchange = () => choose(radio.value);
  play.onclick = () => {
    if (heard[chosen].paused) {
      other().currentTime = heard[chosen].currentTime;
      Promise.all([heard.before.play(), heard.after.play()]).then(say).catch(say);
    } else {
      heard.before.pause(); heard.after.pause(); say();
    }
  };
  seek.oninput = () => { for (const each of Object.values(heard)) each.currentTime = Number(seek.value); tick(); };
  for (const each of Object.values(heard)) { each.ontimeupdate = tick; each.onloadedmetadata = tick; }
  heard.after.onended = () => { heard.before.pause(); say(); };
  choose('after');
  tick();
}
connect();
watch('value', () => {
  connect();
  element.querySelector('.player, .error, .waiting')?.scrollIntoView({ block: 'nearest' });
});

// Gradio would refuse a file that is too large in words of its own, which vanish.
function weigh(event) {
  if (!event.target.closest || !event.target.closest('#uploaded')) return;
  const files = event.type === 'drop' ? event.dataTransfer.files : event.target.files;
  const large = [...(files || [])].find((file) => file.size > props.max_bytes);
  if (!large) return;
  event.preventDefault();
  event.stopPropagation();
  const name = document.createElement('span');
  name.textContent = large.name;
  props.value = props.too_large.replace('{name}', name.innerHTML)
    .replace('{megabytes}', Math.round(large.size / 1e6));
}
for (const kind of ['change', 'drop']) document.addEventListener(kind, weigh, true);
"""

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
