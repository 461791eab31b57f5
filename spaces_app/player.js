// Both elements play all the time; the one that is not heard is muted and brought back where it drifts away.
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
