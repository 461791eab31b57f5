"""Two recordings in one player: both run, one is heard, and a switch says which."""

from __future__ import annotations

import html
from pathlib import Path
from urllib.parse import quote

STYLE = """
.player { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 12px; }
.player .row { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; }
.player button { min-height: 44px; min-width: 88px; border-radius: 8px; border: 2px solid #1f4e79; cursor: pointer;
  background: #ffffff; color: #1f4e79; font-weight: 600; }
.player button[aria-pressed="true"], .player button.play { background: #1f4e79; color: #ffffff; }
.player button:focus-visible, .player input:focus-visible { outline: 3px solid #d95f02; outline-offset: 2px; }
.player input[type=range] { flex: 1 1 160px; min-height: 44px; accent-color: #1f4e79; }
.player .time { font-variant-numeric: tabular-nums; min-width: 5.5em; }
"""

TEMPLATE = """
<div class="player" role="group" aria-label="Compare before and after" style="${value ? '' : 'display:none'}">
  <div class="row">
    <button type="button" class="play">Play</button>
    <button type="button" class="before" aria-pressed="false">Before</button>
    <button type="button" class="after" aria-pressed="true">After</button>
    <input type="range" class="seek" min="0" max="1" step="0.01" value="0" aria-label="Position in seconds">
    <span class="time" aria-live="off">0:00</span>
  </div>
  ${value}
</div>
"""

# Both elements play all the time; the one that is not heard is muted and brought back where it drifts away.
SCRIPT = """
function connect() {
  const find = (name) => element.querySelector(name);
  const heard = { before: find('audio.before'), after: find('audio.after') };
  if (!heard.before || !heard.after) return;
  const play = find('button.play'), seek = find('input.seek'), time = find('.time');
  let chosen = 'after';
  const other = () => heard[chosen === 'after' ? 'before' : 'after'];
  const choose = (name) => {
    chosen = name;
    other().muted = true;
    if (Math.abs(heard[name].currentTime - other().currentTime) > 0.02) heard[name].currentTime = other().currentTime;
    heard[name].muted = false;
    for (const each of ['before', 'after']) find('button.' + each).setAttribute('aria-pressed', each === name);
  };
  const label = (seconds) => Math.floor(seconds / 60) + ':' + String(Math.floor(seconds % 60)).padStart(2, '0');
  const tick = () => {
    const now = heard[chosen].currentTime;
    if (!heard[chosen].paused && Math.abs(other().currentTime - now) > 0.05) other().currentTime = now;
    seek.value = now;
    time.textContent = label(now);
  };
  const paused = (state) => { play.textContent = state ? 'Play' : 'Pause'; };
  find('button.before').onclick = () => choose('before');
  find('button.after').onclick = () => choose('after');
  play.onclick = () => {
    if (heard[chosen].paused) {
      other().currentTime = heard[chosen].currentTime;
      Promise.all([heard.before.play(), heard.after.play()]).then(() => paused(false)).catch(() => paused(true));
    } else {
      heard.before.pause(); heard.after.pause(); paused(true);
    }
  };
  seek.oninput = () => { for (const each of Object.values(heard)) each.currentTime = Number(seek.value); tick(); };
  heard.after.onloadedmetadata = () => { seek.max = heard.after.duration; };
  if (heard.after.readyState > 0) seek.max = heard.after.duration;
  for (const each of Object.values(heard)) { each.ontimeupdate = tick; }
  heard.after.onended = () => { heard.before.pause(); paused(true); };
  choose('after');
}
connect();
watch('value', connect);
"""


def player(before: Path, after: Path) -> str:
    """The value of the player: two audio elements; the files have to be served by the app."""
    elements = []
    for name, path in (("before", before), ("after", after)):
        address = html.escape(f"gradio_api/file={quote(str(path))}", quote=True)
        elements.append(f'<audio class="{name}" preload="auto" src="{address}"></audio>')
    return "".join(elements)
