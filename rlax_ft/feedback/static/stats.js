// The statistics page: what /api/stats says, drawn anew every few seconds.

import { make } from './markdown.js';
import { get } from './net.js';
import { applyTheme } from './settings.js';

const EVERY = 5000;
applyTheme();

// Numbers that are not there yet are a dash.
const show = (value, kind) => {
  if (value === null || value === undefined) return '–';
  if (kind === 'share') return `${(100 * value).toFixed(0)} %`;
  if (kind === 'seconds') return `${value.toFixed(1)} s`;
  return Number.isInteger(value) ? String(value) : value.toFixed(3);
};

function table(parent, title, heads, rows) {
  const card = make('section', parent, undefined, 'card');
  make('h2', card, title);
  const box = make('div', card, undefined, 'wide');
  box.tabIndex = 0;
  box.setAttribute('role', 'group');
  box.setAttribute('aria-label', title);
  const node = make('table', box);
  const head = make('tr', make('thead', node));
  for (const text of heads) make('th', head, text).scope = 'col';
  const body = make('tbody', node);
  for (const cells of rows) {
    const row = make('tr', body);
    cells.forEach(([text, flagged]) => make('td', row, text, flagged ? 'flagged' : ''));
  }
}

function draw(stats) {
  const box = document.querySelector('#stats');
  const parts = document.createDocumentFragment();
  const card = make('section', parts, undefined, 'card');
  make('h2', card, 'So far');
  const list = make('dl', card, undefined, 'numbers');
  for (const [name, value, kind] of stats.numbers) {
    const cell = make('div', list);
    make('dt', cell, name);
    make('dd', cell, show(value, kind));
  }
  table(parts, 'Annotators', stats.annotators.heads, stats.annotators.rows.map((row) => row.map(([value, kind, flagged]) => [
    typeof value === 'string' ? value : show(value, kind), flagged])));
  table(parts, 'Agreement', ['', 'value', 'items'], stats.agreement.map(([name, value, items]) => [[name], [show(value)], [show(items)]]));
  box.replaceChildren(parts);
  document.querySelector('#updated').textContent = `as of ${new Date().toLocaleTimeString()}`;
}

async function update() {
  try {
    draw(await get('stats'));
  } catch (error) {
    const status = document.querySelector('#updated');
    status.textContent = error.status === 401 ? 'say who you are on the page where one judges, then come back' : 'the server does not answer';
  }
}

update();
setInterval(() => { if (!document.hidden) update(); }, EVERY);
