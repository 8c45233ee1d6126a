// The labelling page: who is at work, one item after the other, keys, the clock. Drawing is in view.js, the server in net.js.

import { clearDifferences, markDifferences } from './diff.js';
import { ApiError, forget, onTrouble, post, session, setCsrf } from './net.js';
import { Ranking } from './ranking.js';
import { applyTheme, settings, store } from './settings.js';
import { $, LETTERS, drawBody, drawChoices, drawGuidelines, drawResponses, drawStrength, drawText, textOf } from './view.js';

const VERSION = '1';
const KEYS = [
  ['A, B (or ← →)', 'A or B is better'], ['T', 'tie'], ['X', 'both are bad'], ['S', 'skip, with a reason'],
  ['1 … 7', 'how much better; while ranking, the place of the marked response'], ['← →', 'while ranking, mark another response'],
  ['Enter', 'save; Ctrl+Enter from within a text'], ['U', 'undo the last judgement'], ['E', 'edit the response to fix it'],
  ['N', 'note'], ['C', 'to the ratings'], ['D', 'mark the differences'], ['R', 'text as it was written'],
  ['L', 'scroll together or apart'], ['P', 'pause'], ['G', 'guidelines'], ['?', 'this list'], ['Esc', 'out of a text field'],
];

let me = null; // What the server says of the session.
let item = null; // What is asked, with its ticket.
let draft = null; // What has been entered.
let clock = null;
let ranking = null;
let lesson = false;
let busy = false;
let showing = false; // Differences.
const before = new Map(); // Drafts of what was judged, for an undo.

const fresh = (count) => ({
  choice: null, strength: null, ranks: Array(count).fill(null), ratings: Array.from({ length: count }, () => ({})),
  edits: Array(count).fill(null), note: '', reason: '',
});

// The clock: it stands while the page is paused or hidden.
const ticking = () => !document.hidden && !$('#pause-dialog').open;
function tick() {
  if (!clock) return;
  const now = performance.now();
  if (clock.running) clock.active += now - clock.since;
  clock.since = now;
  clock.running = ticking();
}
function startClock(saved) {
  clock = { start: saved?.start ?? Date.now(), active: saved?.active ?? 0, since: performance.now(), running: ticking() };
}

function say(text, kind = '') {
  $('#status').textContent = text;
  $('#status').className = kind;
}

function keep() {
  if (!item || lesson) return;
  tick();
  store('draft', { ticket: item.ticket, draft, start: clock.start, active: clock.active });
}

function show(part) {
  for (const id of ['login', 'rest', 'work', 'judgement']) $(`#${id}`).hidden = !(id === part || (part === 'work' && id === 'judgement'));
  for (const node of [$('header > nav'), $('.progress-box')]) node.hidden = part === 'login';
}

async function begin() {
  applyTheme();
  try {
    me = await session();
  } catch (error) {
    // A page that the browser kept, and a server that is not there: it may come back.
    setTimeout(() => begin().catch(trouble), 3000);
    if (error instanceof ApiError) return rest({}, 'The server refuses', error.message);
    return rest({}, 'The server does not answer', 'It is asked again every few seconds; what you entered is kept.');
  }
  if (!me.name) return showLogin();
  welcome();
  const pending = store('pending');
  if (pending) {
    // It was being saved as the page was left: the same id again is the same judgement.
    try { await post('judge', pending, true); } catch { /* Judged already, or not asked any more. */ }
    store('pending', null);
    store('draft', null);
  }
  await next(store('draft')?.ticket);
}

function showLogin(message = '') {
  show('login');
  $('#token-box').hidden = !me?.token_needed;
  const hash = new URLSearchParams(location.hash.slice(1));
  if (hash.get('token')) {
    $('#token').value = hash.get('token');
    history.replaceState(null, '', location.pathname + location.search);
  }
  $('#name').value ||= new URLSearchParams(location.search).get('annotator') || '';
  $('#login-error').textContent = message;
  ($('#name').value && me?.token_needed && !$('#token').value ? $('#token') : $('#name')).focus();
}

function welcome() {
  setCsrf(me.csrf);
  $('#who').textContent = `You are ${me.name}.`;
  drawGuidelines(me.guidelines);
}

$('#login').addEventListener('submit', async (event) => {
  event.preventDefault();
  try {
    me = await post('login', { name: $('#name').value, token: $('#token').value });
    welcome();
    await next(store('draft')?.ticket);
  } catch (error) {
    $('#login-error').textContent = error.message;
  }
});

async function next(ticket) {
  try {
    await ask(await post('next', ticket ? { ticket } : {}));
  } catch (error) {
    trouble(error);
  }
}

async function ask(given) {
  progress(given);
  lesson = false;
  if (!given.ticket) return rest(given);
  item = given;
  const count = given.responses.length;
  const saved = store('draft');
  const restored = saved?.ticket === given.ticket ? saved : null;
  draft = restored?.draft ?? before.get(given.item) ?? fresh(count);
  startClock(restored);
  show('work');
  document.body.dataset.mode = count > 2 ? 'ranking' : 'pair';
  $('#training-note').hidden = !given.training;
  $('#training-note').textContent = given.training ? 'Training: after you have judged, you see what others agreed on.' : '';
  $('#lesson').hidden = true;
  drawBody($('#prompt .body'), given.prompt, settings.raw);
  $('#prompt .body').scrollTop = typeof given.prompt === 'string' ? 0 : $('#prompt .body').scrollHeight; // What was asked last.
  drawResponses(given.responses, me.criteria, { changed, edit, current: (i) => ranking?.mark(i) });
  drawChoices(count, (choice) => choose(choice));
  drawStrength((value) => { draft.strength = value; changed(); });
  $('#ranking').hidden = count < 3;
  ranking = count > 2 ? new Ranking(draft.ranks, ranksChanged) : null;
  $('#note').value = draft.note;
  $('#reason').value = draft.reason;
  $('#more').open = Boolean(draft.note);
  saveLabel('Save');
  for (const set of document.querySelectorAll('#judgement fieldset')) set.disabled = false;
  $('#fault').textContent = '';
  showing = false;
  fill();
  redraw();
  window.scrollTo(0, 0);
  $('#responses').focus({ preventScroll: true });
  keep();
}

function saveLabel(text) {
  $('#save').firstChild.data = `${text} `;
}

function progress({ progress: p, can_undo: canUndo }) {
  if (!p) return;
  const training = p.training[0] < p.training[1];
  const [done, all] = training ? p.training : [p.done, p.done + p.left];
  $('#progress').max = Math.max(all, 1);
  $('#progress').value = done;
  $('#progress-text').textContent = training ? `Training ${done} of ${all}` : `${done} done, ${p.left} left`;
  if (canUndo !== undefined) $('#undo').disabled = !canUndo;
}

function rest(given, title = '', text = '') {
  item = null;
  if (!title) store('draft', null);
  show('rest');
  $('#rest-again').hidden = Boolean(title);
  if (title) {
    $('#rest-title').textContent = title;
    $('#rest-text').textContent = text;
    return;
  }
  $('#rest-title').textContent = given.waiting ? 'Others have the last ones' : 'All done, thank you';
  $('#rest-text').textContent = given.waiting
    ? 'If one of them gives up, an item comes back to you.'
    : 'Nothing is left for you to judge. What comes later is shown here.';
  $('#rest').focus();
}
$('#rest-again').addEventListener('click', () => next());
setInterval(() => { if (me && !$('#rest').hidden && !document.hidden) next(); }, 15000);

// What is entered.
function choose(choice) {
  if (!item || lesson || busy) return;
  draft.choice = choice;
  changed();
  if (choice === 'skip') return $('#reason').focus();
  if (settings.fast && ['A', 'B', 'tie'].includes(choice) && !(me.strength === 'required' && choice !== 'tie')) save();
}

function ranksChanged(ranks) {
  draft.ranks = ranks;
  const whole = ranks.every((rank) => rank !== null);
  if (whole && draft.choice !== 'skip') draft.choice = 'ranking';
  if (!whole && draft.choice === 'ranking') draft.choice = null;
  changed();
}

function changed() {
  $('#fault').textContent = '';
  fill();
  keep();
}

function fill() {
  for (const input of $('#choice').querySelectorAll('input')) input.checked = input.value === draft.choice;
  const scaled = me.strength !== 'off' && ['A', 'B'].includes(draft.choice);
  $('#strength').hidden = !scaled;
  for (const input of $('#strength').querySelectorAll('input')) input.checked = Number(input.value) === draft.strength;
  $('#reason-box').hidden = draft.choice !== 'skip';
  document.querySelectorAll('.response').forEach((node, i) => {
    node.classList.toggle('picked', draft.choice === LETTERS[i]);
    node.querySelector('.edited').hidden = !draft.edits[i];
    for (const input of node.querySelectorAll('.ratings input')) input.checked = draft.ratings[i][input.dataset.criterion] === Number(input.value);
  });
}

$('#note').addEventListener('input', () => { draft.note = $('#note').value; keep(); });
$('#reason').addEventListener('input', () => { draft.reason = $('#reason').value; keep(); });
document.addEventListener('change', (event) => {
  const criterion = event.target.dataset?.criterion;
  if (!criterion || !item) return;
  draft.ratings[Number(event.target.dataset.response)][criterion] = Number(event.target.value);
  changed();
});

function edit(i) {
  const node = document.querySelectorAll('.response')[i];
  const area = node.querySelector('textarea');
  const open = area.hidden;
  if (open) {
    area.value = draft.edits[i] ?? textOf(item.responses[i]);
    area.oninput = () => {
      draft.edits[i] = area.value !== textOf(item.responses[i]) && area.value.trim() ? area.value : null;
      changed();
    };
  }
  area.hidden = !open;
  node.querySelector('.body').hidden = open;
  node.querySelector('.edit').setAttribute('aria-expanded', String(open));
  node.querySelector('.edit').textContent = open ? 'Show' : 'Edit';
  if (open) {
    area.focus();
    area.setSelectionRange(0, 0);
    area.scrollTop = 0;
  } else redraw();
}

function redraw() {
  document.querySelectorAll('.response').forEach((node, i) => {
    drawText(node.querySelector('.body'), item.responses[i], draft.edits[i], settings.raw);
  });
  if (showing) differences();
}

function differences() {
  const bodies = [...document.querySelectorAll('.response .body')];
  bodies.forEach(clearDifferences);
  if (!showing) return;
  const other = ranking ? Math.max(ranking.current, 1) : 1;
  markDifferences(bodies[0], bodies[other]);
}

// Saving: the page says saved after the commit. Until the server answers, the same id is tried again.
function fault() {
  const count = item.responses.length;
  if (!draft.choice) return count > 2 ? 'Give every response a place first.' : 'Choose first: A, B, tie, both bad or skip.';
  if (draft.choice === 'skip' && !draft.reason.trim()) return 'Say why you skip it.';
  if (me.strength === 'required' && ['A', 'B'].includes(draft.choice) && !draft.strength) return 'Say how much better, 1 to 7.';
  return '';
}

async function save() {
  if (!item || busy) return;
  if (lesson) return next();
  const wrong = fault();
  $('#fault').textContent = wrong;
  if (wrong) {
    if (draft.choice === 'skip') $('#reason').focus();
    return;
  }
  tick();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const judged = {
    id: [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join(''), ticket: item.ticket, page: VERSION,
    choice: draft.choice, ranks: draft.choice === 'ranking' ? draft.ranks : null,
    strength: ['A', 'B'].includes(draft.choice) ? draft.strength : null,
    ratings: draft.ratings, edits: draft.edits, note: draft.note, reason: draft.choice === 'skip' ? draft.reason : '',
    start_ms: clock.start, end_ms: Date.now(), active_ms: Math.round(clock.active),
  };
  store('pending', judged);
  busy = true;
  say('Saving');
  try {
    const answer = await post('judge', judged, true);
    store('pending', null);
    store('draft', null);
    before.set(item.item, draft);
    if (answer.lesson) {
      progress(answer);
      return teach(answer.lesson);
    }
    await ask(answer.next);
    say('Saved', 'good');
  } catch (error) {
    store('pending', null);
    trouble(error);
  } finally {
    busy = false;
  }
}

function teach({ right, answer, why }) {
  lesson = true;
  say('Saved', 'good');
  const best = answer.map((rank, i) => (rank === 0 ? LETTERS[i] : '')).filter(Boolean).join(' and ');
  $('#lesson').textContent = `${right ? 'Yes.' : 'Others saw it differently.'} ${best} ${best.includes(' and ') ? 'are' : 'is'} the best here. ${why}`;
  $('#lesson').hidden = false;
  saveLabel('Next');
  for (const set of document.querySelectorAll('#judgement fieldset')) set.disabled = true;
  $('#lesson').focus();
  $('#lesson').scrollIntoView({ block: 'nearest' });
}

async function undo() {
  if (busy || $('#undo').disabled) return;
  busy = true;
  try {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    const answer = await post('undo', { id: [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('') }, true);
    store('draft', null);
    await (answer.reload ? next() : ask(answer));
    say('Undone: judge it again', 'good');
  } catch (error) {
    trouble(error);
  } finally {
    busy = false;
  }
}

function trouble(error) {
  if (!(error instanceof ApiError)) throw error;
  if (error.status === 401) {
    me = { ...me, name: null };
    return showLogin('Say again who you are; what you entered is kept.');
  }
  say(error.message, 'bad');
  if (error.status === 409) next();
  else if (!$('#judgement').hidden) $('#fault').textContent = error.message;
}
onTrouble((text) => say(text, 'bad'));

// Dialogs and settings.
function pause() {
  tick();
  $('#pause-dialog').showModal();
  tick();
  keep();
}
$('#pause-dialog').addEventListener('close', () => { if (clock) { clock.since = performance.now(); clock.running = ticking(); } });
document.addEventListener('visibilitychange', () => { tick(); if (document.hidden) keep(); });
window.addEventListener('pagehide', keep);
const openMenu = () => $('#menu-dialog').showModal();
const openGuidelines = () => $('#guidelines-dialog').showModal();
$('#pause').addEventListener('click', pause);
$('#undo').addEventListener('click', undo);
$('#guidelines-open').addEventListener('click', openGuidelines);
$('#menu').addEventListener('click', openMenu);
$('#judgement').addEventListener('submit', (event) => { event.preventDefault(); save(); });
$('#logout').addEventListener('click', async () => {
  try { await post('logout', {}); } catch { /* The session was over. */ }
  forget();
  location.reload();
});
for (const [keys, meaning] of KEYS) {
  const row = $('#keys').insertRow();
  row.insertCell().textContent = keys;
  row.insertCell().textContent = meaning;
}
for (const name of ['keys', 'fast', 'sync', 'raw']) {
  $(`#set-${name}`).checked = settings[name];
  $(`#set-${name}`).addEventListener('change', (event) => set(name, event.target.checked));
}
$('#set-theme').value = settings.theme;
$('#set-theme').addEventListener('change', (event) => { set('theme', event.target.value); applyTheme(); });
function set(name, value) {
  settings[name] = value;
  if (typeof value === 'boolean') $(`#set-${name}`).checked = value;
  if (name === 'raw' && item) { drawBody($('#prompt .body'), item.prompt, value); redraw(); }
}

// Long answers scroll together, by the share that is behind.
let leader = null;
document.addEventListener('scroll', (event) => {
  const body = event.target;
  if (!settings.sync || !(body instanceof Element) || !body.matches('.response > .body') || (leader && leader !== body)) return;
  leader = body;
  const share = body.scrollTop / Math.max(1, body.scrollHeight - body.clientHeight);
  for (const other of document.querySelectorAll('.response > .body')) {
    if (other !== body) other.scrollTop = share * (other.scrollHeight - other.clientHeight);
  }
  clearTimeout(body.timer);
  body.timer = setTimeout(() => { leader = null; }, 80);
}, true);

// Keys.
const ACTIONS = {
  t: () => choose('tie'), '=': () => choose('tie'), x: () => choose('both_bad'), s: () => choose('skip'), u: undo, p: pause, g: openGuidelines, '?': openMenu,
  n: () => { $('#more').open = true; $('#note').focus(); },
  e: () => edit(ranking ? ranking.current : draft.choice === 'B' ? 1 : 0),
  c: () => document.querySelector('.ratings input')?.focus(),
  d: () => { showing = !showing; differences(); say(showing ? 'Differences are marked' : ''); },
  r: () => { set('raw', !settings.raw); say(settings.raw ? 'As it was written' : 'Formatted'); },
  l: () => { set('sync', !settings.sync); say(settings.sync ? 'Responses scroll together' : 'Responses scroll apart'); },
};

document.addEventListener('keydown', (event) => {
  const target = event.target;
  const dialog = document.querySelector('dialog[open]');
  if (dialog) {
    if (event.key === 'p' && dialog.id === 'pause-dialog') { event.preventDefault(); dialog.close(); }
    return;
  }
  if (!item || $('#work').hidden) return;
  if (busy) return void event.preventDefault(); // It would go to what is already being saved.
  const typing = target.matches?.('textarea, select, input:not([type=radio])');
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) { event.preventDefault(); return void save(); }
  if (typing) {
    if (event.key === 'Escape') { target.blur(); $('#responses').focus({ preventScroll: true }); }
    if (event.key === 'Enter' && target.id === 'reason') { event.preventDefault(); save(); }
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === 'Enter' && (lesson || !target.closest?.('button:not(.chip), a, summary'))) { event.preventDefault(); return void save(); }
  if (!settings.keys || lesson) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const rating = target.dataset?.criterion;
  const digit = /^[1-9]$/.test(key) ? Number(key) : 0;
  if (digit && rating && digit <= 5) {
    const input = target.closest('fieldset').querySelectorAll('input')[digit - 1];
    input.click();
    input.focus();
  } else if (digit && ranking) {
    if (digit <= item.responses.length) ranking.place(digit - 1);
  } else if (digit && digit <= 7 && ['A', 'B'].includes(draft.choice) && me.strength !== 'off') {
    draft.strength = digit;
    changed();
  } else if (!ranking && (key === 'a' || key === 'b')) {
    choose(key.toUpperCase());
  } else if ((key === 'ArrowLeft' || key === 'ArrowRight') && !target.matches?.('input[type=radio]')) {
    if (ranking) ranking.step(key === 'ArrowRight' ? 1 : -1);
    else choose(key === 'ArrowLeft' ? 'A' : 'B');
  } else if (ACTIONS[key] && !(ranking && (key === 't' || key === '='))) {
    ACTIONS[key]();
  } else {
    return;
  }
  event.preventDefault();
});

begin().catch(trouble);
