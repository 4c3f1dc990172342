'use strict';
// The page's data stand in it as JSON; everything that comes of the text is put into the page as text, never as markup.
const byid = id => document.getElementById(id);
const data = JSON.parse(byid('data').textContent);

function bytes(base64) {
  const raw = atob(base64), out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}
const indices = base64 => data.wide ? new Uint32Array(bytes(base64).buffer) : new Uint16Array(bytes(base64).buffer);
const text = indices(data.text), chars = data.chars, T = text.length, newline = data.newline;
const shares = data.shares ? new Float32Array(bytes(data.shares).buffer) : null;
const likeliest = shares ? indices(data.likeliest) : null;
const chances = shares ? new Uint16Array(bytes(data.chances).buffer) : null, K = shares ? likeliest.length / T : 0;
for (const group of data.groups)
  group.values = group.signed ? new Int8Array(bytes(group.values).buffer) : bytes(group.values);

// The view: group -1 is surprise.
let group = data.start ? data.start[0] : shares ? -1 : 0, unit = data.start ? data.start[1] : 0, at = -1;
const wanted = new URLSearchParams(location.hash.slice(1));
const whole = (word, most) => /^\d{1,9}$/.test(word || '') && Number(word) < most;
if (whole(wanted.get('layer'), data.groups.length)) group = Number(wanted.get('layer'));
if (shares && wanted.get('show') === 'surprise') group = -1;
if (group >= 0 && whole(wanted.get('neuron'), data.groups[group].units)) unit = Number(wanted.get('neuron'));

const sign = c => chars[c][0] === ' ' ? '\u2423' : chars[c][0];         // where a blank alone couldn't be seen
const put = (parent, tag, words, kind) => {
  const element = document.createElement(tag);
  if (words !== undefined) element.textContent = words;
  if (kind) element.className = kind;
  parent.append(element);
  return element;
};

// The text: a line a block, a span a character, its sign, and for line ends and tabs a visible one.
const spans = new Array(T), starts = [];
{
  const all = document.createDocumentFragment();
  let line = null;
  for (let i = 0; i < T; i++) {
    if (!line) { line = put(all, 'div', undefined, 'line'); starts.push(i); }
    spans[i] = put(line, 'span', chars[text[i]][0]);
    spans[i].at = i;
    if (text[i] === newline) { spans[i].sign = 'end'; line = null; }
  }
  byid('text').append(all);
}
const lineof = i => {
  let low = 0, high = starts.length;
  while (high - low > 1) { const middle = (low + high) >> 1; if (starts[middle] <= i) low = middle; else high = middle; }
  return low;
};

// Colours.
const value = i => { const g = data.groups[group]; return g.values[unit * T + i] / (g.signed ? 127 : 255); };
let reach = 1;
function level(i) {
  if (group < 0) return Math.min(8, Math.max(0, Math.floor(shares[i] / Math.LN2)));
  return Math.round(value(i) / reach * (data.groups[group].signed ? 9 : 8));
}
function kindof(level) {
  if (!level) return '';
  return group >= 0 && data.groups[group].signed ? (level > 0 ? 'p' : 'm') + Math.abs(level) : 'a' + level;
}
function colour() {
  reach = 1;
  if (group >= 0 && byid('stretch').checked) {
    reach = 0;
    for (let i = 0; i < T; i++) reach = Math.max(reach, Math.abs(value(i)));
    reach = reach || 1;
  }
  for (let i = 0; i < T; i++) {
    const kind = [kindof(level(i)), spans[i].sign, i === at ? 'at' : ''].filter(Boolean).join(' ');
    if (spans[i].className !== kind) spans[i].className = kind;
  }
  const many = group >= 0 && data.groups[group].units > 1;
  byid('units').hidden = !many;
  byid('stretchlabel').hidden = group < 0;
  byid('view').value = String(group);
  byid('unit').value = String(unit);
  if (many) byid('unit').max = String(data.groups[group].units - 1);
  byid('found').value = String(data.found.findIndex(each => each[1] === group && each[2] === unit));
  if (byid('found').selectedIndex < 0) byid('found').selectedIndex = 0;
  key();
  details();
}
function key() {
  const box = byid('key');
  box.replaceChildren();
  const show = (level, words) => put(box, 'span', words, kindof(level));
  if (group < 0) {
    put(box, 'span', 'bits, each shade half as likely:');
    for (let n = 0; n < 9; n++) show(n, n === 8 ? '8+' : String(n));
  } else if (data.groups[group].signed) {
    for (let n = -9; n < 10; n++) show(n, n % 9 ? '' : (n / 9 * reach).toFixed(reach < 1 && n ? 2 : 0));
  } else {
    put(box, 'span', 'shut');
    for (let n = 0; n < 9; n++) show(n, n % 4 ? '' : (n / 8 * reach).toFixed(n % 8 || reach < 1 ? 2 : 0));
    put(box, 'span', 'open');
  }
}
function choose(newgroup, newunit) {
  group = newgroup;
  if (group >= 0) unit = Math.min(Math.max(newunit, 0), data.groups[group].units - 1);
  colour();
}

// A character's numbers.
const percent = p => p < 0.001 ? '< 0.1 %' : (100 * p).toFixed(p < 0.0995 ? 1 : 0) + ' %';
function details() {
  if (at < 0) return;
  const box = byid('details'), line = lineof(at);
  box.replaceChildren();
  const who = put(box, 'p', undefined, 'who');
  put(who, 'b', sign(text[at]));
  put(who, 'span', ` ${chars[text[at]][1]}, line ${line + 1}, character ${at - starts[line] + 1}`);
  if (group >= 0) {
    const g = data.groups[group];
    put(box, 'p', `${g.name}${g.units > 1 ? (g.signed ? ', neuron ' : ', unit ') + unit : ''}: ${value(at).toFixed(2)}`);
  }
  if (!shares) return;
  const nats = shares[at];
  put(box, 'p', `surprise ${nats.toFixed(2)} nats, ${(nats / Math.LN2).toFixed(2)} bits: it was given ${percent(Math.exp(-nats))}`);
  const list = put(box, 'div', undefined, 'likely');
  for (let k = 0; k < K; k++) {
    const p = chances[at * K + k] / 65535;
    put(list, 'b', sign(likeliest[at * K + k]), likeliest[at * K + k] === text[at] ? 'came' : '');
    put(list, 'i', percent(p));
    put(list, 'div').style.width = `${Math.round(100 * p)}%`;
  }
}
function go(i, scroll) {
  if (i < 0 || i >= T) return;
  if (at >= 0) spans[at].classList.remove('at');
  at = i;
  spans[at].classList.add('at');
  if (scroll) spans[at].scrollIntoView({ block: 'center' });
  details();
}

// Controls.
const view = byid('view');
const option = (number, words) => { const each = put(view, 'option', words); each.value = String(number); };
if (shares) option(-1, 'surprise');
data.groups.forEach((each, i) => option(i, each.name));
view.addEventListener('change', () => choose(Number(view.value), unit));
byid('unit').addEventListener('change', () => choose(group, Math.round(Number(byid('unit').value)) || 0));
byid('before').addEventListener('click', () => choose(group, unit - 1));
byid('next').addEventListener('click', () => choose(group, unit + 1));
byid('stretch').addEventListener('change', colour);
data.found.forEach(([property, layer, neuron, r], i) => {
  put(byid('found'), 'option', `${property}: layer ${layer}, neuron ${neuron} (r ${r.toFixed(2)})`).value = String(i);
});
byid('foundlabel').hidden = !data.found.length;
byid('found').addEventListener('change', () => {
  const chosen = data.found[byid('found').value];
  if (chosen) choose(chosen[1], chosen[2]);
});
byid('text').addEventListener('mouseover', event => { if (event.target.at !== undefined) go(event.target.at); });
byid('text').addEventListener('click', event => { if (event.target.at !== undefined) go(event.target.at); });
byid('text').addEventListener('focus', () => { if (at < 0) go(0); });
byid('text').addEventListener('keydown', event => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const line = at < 0 ? 0 : lineof(at), column = at - starts[line];
  const end = l => (l + 1 < starts.length ? starts[l + 1] : T) - 1;
  const moves = {
    ArrowLeft: () => go(at - 1, true), ArrowRight: () => go(at + 1, true),
    Home: () => go(starts[line], true), End: () => go(end(line), true),
    ArrowUp: () => line && go(Math.min(starts[line - 1] + column, end(line - 1)), true),
    ArrowDown: () => line + 1 < starts.length && go(Math.min(starts[line + 1] + column, end(line + 1)), true),
    ',': () => group >= 0 && choose(group, unit - 1), '.': () => group >= 0 && choose(group, unit + 1),
  };
  if (Object.hasOwn(moves, event.key)) { moves[event.key](); event.preventDefault(); }
});

// Light and dark: as the system has it, until the button says otherwise.
const dark = matchMedia('(prefers-color-scheme: dark)');
function theme(isdark) {
  document.documentElement.dataset.theme = isdark ? 'dark' : 'light';
  byid('theme').textContent = isdark ? 'Light' : 'Dark';
  byid('theme').setAttribute('aria-pressed', String(isdark));
}
const follow = () => theme(dark.matches);
dark.addEventListener('change', follow);
byid('theme').addEventListener('click', () => {
  dark.removeEventListener('change', follow);
  theme(document.documentElement.dataset.theme !== 'dark');
});
theme(['dark', 'light'].includes(wanted.get('theme')) ? wanted.get('theme') === 'dark' : dark.matches);
colour();
if (whole(wanted.get('at'), T)) go(Number(wanted.get('at')), true);
