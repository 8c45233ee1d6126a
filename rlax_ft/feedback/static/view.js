// Drawing: texts, conversations, responses with their ratings, the options of a judgement.

import { make, renderMarkdown } from './markdown.js';

export const LETTERS = 'ABCDEFGHI';
export const $ = (selector) => document.querySelector(selector);

const PAIR = [['A', 'A is better', 'A'], ['tie', 'Tie', 'T'], ['B', 'B is better', 'B'], ['both_bad', 'Both bad', 'X'], ['skip', 'Skip', 'S']];
const MANY = [['ranking', 'As ranked', ''], ['both_bad', 'All bad', 'X'], ['skip', 'Skip', 'S']];

// A response as one text: what its last message says where it is a list.
export const textOf = (value) => (typeof value === 'string' ? value : value.at(-1)?.content ?? '');

export function drawBody(node, value, raw) {
  node.replaceChildren();
  if (typeof value === 'string') return text(node, value, raw);
  const box = make('div', node, undefined, 'bubbles');
  for (const message of value) {
    const role = ['user', 'assistant', 'system', 'tool'].includes(message.role) ? message.role : 'other';
    const bubble = make('div', box, undefined, `bubble ${role}`);
    make('span', bubble, message.role, 'role');
    if (message.content || !message.calls) {
      const said = make('div', bubble);
      said.dir = 'auto';
      text(said, message.content, raw);
    }
    if (message.calls) make('code', make('pre', bubble), message.calls);
  }
}

export function drawText(node, value, edit, raw) {
  if (edit !== null) return drawBody(node, edit, raw);
  // The one answer of the assistant needs no bubble.
  const single = typeof value !== 'string' && value.length === 1 && !value[0].calls;
  drawBody(node, single ? value[0].content : value, raw);
}

function text(node, value, raw) {
  if (!value.trim()) make('p', node, 'This is empty.', 'empty');
  else if (raw) make('pre', node, value, 'raw');
  else renderMarkdown(value, node);
}

export function drawGuidelines(value) {
  const body = $('#guidelines-dialog .body');
  body.replaceChildren();
  renderMarkdown(value || 'There are none.', body);
}

export function drawResponses(responses, criteria, { edit, current }) {
  const box = $('#responses');
  box.replaceChildren();
  box.classList.toggle('many', responses.length > 2);
  box.dataset.count = responses.length;
  responses.forEach((_, i) => {
    const node = make('section', box, undefined, 'response');
    node.setAttribute('aria-labelledby', `title-${i}`);
    const head = make('header', node);
    make('h2', head, `Response ${LETTERS[i]}`).id = `title-${i}`;
    make('span', head, 'edited', 'edited').hidden = true;
    make('span', head, '', 'place');
    const button = make('button', head, 'Edit', 'edit');
    button.type = 'button';
    button.title = 'Edit to fix it (E)';
    button.setAttribute('aria-expanded', 'false');
    button.setAttribute('aria-label', `Edit response ${LETTERS[i]}`);
    button.addEventListener('click', () => edit(i));
    const body = make('div', node, undefined, 'body');
    body.dir = 'auto';
    body.tabIndex = 0;
    body.setAttribute('role', 'group');
    body.setAttribute('aria-label', `Text of response ${LETTERS[i]}`);
    const area = make('textarea', node);
    area.hidden = true;
    area.dir = 'auto';
    area.setAttribute('aria-label', `Edited text of response ${LETTERS[i]}`);
    if (criteria.length) drawRatings(node, criteria, i);
    node.addEventListener('click', () => current(i));
  });
}

function drawRatings(parent, criteria, i) {
  const box = make('div', parent, undefined, 'ratings');
  for (const criterion of criteria) {
    const set = make('fieldset', box);
    make('legend', set, criterion);
    const scale = make('div', set, undefined, 'scale');
    for (let value = 1; value <= 5; value += 1) {
      const input = option(scale, `rating-${i}-${criterion}`, value, String(value), `${criterion} of response ${LETTERS[i]}: ${value} of 5`);
      input.dataset.criterion = criterion;
      input.dataset.response = i;
    }
  }
}

function option(parent, name, value, label, spoken, key) {
  const node = make('label', parent, undefined, 'option');
  const input = make('input', node);
  input.type = 'radio';
  input.name = name;
  input.value = value;
  if (spoken) input.setAttribute('aria-label', spoken);
  const shown = make('span', node, label);
  if (key) make('kbd', shown, key).setAttribute('aria-hidden', 'true');
  return input;
}

export function drawChoices(count, chosen) {
  const box = $('#choice .choices');
  box.replaceChildren();
  for (const [value, label, key] of count > 2 ? MANY : PAIR) {
    option(box, 'choice', value, label, '', key).addEventListener('change', () => chosen(value));
  }
}

export function drawStrength(chosen) {
  const box = $('#strength .scale');
  box.replaceChildren();
  for (let value = 1; value <= 7; value += 1) {
    option(box, 'strength', value, String(value), `${value} of 7`).addEventListener('change', () => chosen(value));
  }
}
