// Markdown to DOM nodes. Every character of the text gets into the page through text nodes: markup in it stays text.

import { mathNode } from './math.js';

const DEEPEST = 8; // Lists in lists in quotes; further in, text stays as it is.
const LONGEST_PARAGRAPH = 20000;
const LIST = /^( *)([-*+]|\d{1,9}[.)])( +)(.*)$/;
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const TABLE_LINE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const MATH_OPEN = /^ *(\$\$|\\\[)(.*)$/;

const INLINE = new RegExp([
  /(?<ticks>`+)(?<code>[^`]|[^`][\s\S]*?[^`])\k<ticks>(?!`)/,
  /\\\((?<round>[\s\S]+?)\\\)/,
  /\\\[(?<square>[\s\S]+?)\\\]/,
  /\$\$(?<dollars>[^$]+?)\$\$/,
  /(?<![\\$\w])\$(?=[^\s$])(?<dollar>[^$\n]*?[^\s$\\])\$(?![\d$])/,
  /\\(?<escaped>[\\`*_{}[\]()#+.!~|<>$-])/,
  /\*\*(?=\S)(?<bold>[\s\S]*?\S)\*\*(?!\*)/,
  /(?<!\w)__(?=\S)(?<strong>[\s\S]*?\S)__(?!\w)/,
  /\*(?=[^\s*])(?<italic>[^*]*?[^\s*])\*(?!\*)/,
  /(?<!\w)_(?=[^\s_])(?<em>[^_]*?[^\s_])_(?!\w)/,
  /~~(?=\S)(?<struck>[\s\S]*?\S)~~/,
  /(?<bang>!?)\[(?<label>[^\]\n]*)\]\((?<target>[^\s()]+)(?:\s+"[^"]*")?\)/,
  /(?<url>https?:\/\/[^\s<>"'`]*[^\s<>"'`.,;:!?)\]])/,
].map((part) => part.source).join('|'), 'g');

export function make(name, parent, text, className) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  if (parent) parent.append(node);
  return node;
}

export function renderMarkdown(text, parent) {
  blocks(text.replace(/\r\n?/g, '\n').replace(/\t/g, '    ').split('\n'), parent, 0);
}

function blocks(lines, parent, depth) {
  let at = 0;
  if (depth > DEEPEST) return void make('p', parent, lines.join('\n'));
  while (at < lines.length) {
    const line = lines[at];
    let match;
    if (!line.trim()) {
      at += 1;
    } else if ((match = FENCE.exec(line))) {
      at = fence(lines, at, match, parent);
    } else if ((match = MATH_OPEN.exec(line)) && displayEnd(lines, at, match)) {
      const { end, tex } = displayEnd(lines, at, match);
      mathNode(tex, true, parent);
      at = end + 1;
    } else if ((match = HEADING.exec(line))) {
      inline(match[2], make(`h${Math.min(match[1].length + 2, 6)}`, parent), depth);
      at += 1;
    } else if (RULE.test(line)) {
      make('hr', parent);
      at += 1;
    } else if (QUOTE.test(line)) {
      const inner = [];
      while (at < lines.length && QUOTE.test(lines[at])) inner.push(QUOTE.exec(lines[at++])[1]);
      blocks(inner, make('blockquote', parent), depth + 1);
    } else if (LIST.test(line)) {
      at = list(lines, at, parent, depth);
    } else if (line.includes('|') && at + 1 < lines.length && lines[at + 1].includes('-') && TABLE_LINE.test(lines[at + 1])) {
      at = table(lines, at, parent, depth);
    } else {
      const words = [line.trim()];
      while (++at < lines.length && !startsBlock(lines, at)) words.push(lines[at].trim());
      inline(words.join('\n'), make('p', parent), depth);
    }
  }
}

function startsBlock(lines, at) {
  const line = lines[at];
  return !line.trim() || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || LIST.test(line)
    || (MATH_OPEN.test(line) && displayEnd(lines, at, MATH_OPEN.exec(line)))
    || (line.includes('|') && at + 1 < lines.length && lines[at + 1].includes('|') && TABLE_LINE.test(lines[at + 1]));
}

function fence(lines, at, match, parent) {
  const close = new RegExp(`^ {0,3}${match[1][0]}{${match[1].length},}\\s*$`);
  let end = at + 1;
  while (end < lines.length && !close.test(lines[end])) end += 1;
  const pre = make('pre', parent);
  pre.tabIndex = 0; // It may scroll sideways, which a keyboard must reach.
  if (match[2]) pre.dataset.language = match[2];
  make('code', pre, lines.slice(at + 1, end).join('\n'));
  return end + 1;
}

function displayEnd(lines, at, match) {
  const close = match[1] === '$$' ? '$$' : '\\]';
  const tex = [];
  for (let end = at; end < Math.min(lines.length, at + 60); end += 1) {
    const text = end === at ? match[2] : lines[end];
    const found = text.indexOf(close);
    if (found >= 0) {
      if (text.slice(found + 2).trim()) return null; // Text follows: it stands within a line.
      return { end, tex: [...tex, text.slice(0, found)].join('\n') };
    }
    tex.push(text);
  }
  return null;
}

function list(lines, at, parent, depth) {
  const first = LIST.exec(lines[at]);
  const indent = first[1].length;
  const ordered = /\d/.test(first[2]);
  const node = make(ordered ? 'ol' : 'ul', parent);
  if (ordered) node.start = parseInt(first[2], 10);
  while (at < lines.length) {
    const match = LIST.exec(lines[at]);
    if (!match || match[1].length < indent || match[1].length > indent + 3 || /\d/.test(match[2]) !== ordered) break;
    if (RULE.test(lines[at])) break;
    const width = match[1].length + match[2].length + 1;
    const inner = [match[4]];
    at += 1;
    while (at < lines.length) {
      const line = lines[at];
      const lead = line.length - line.trimStart().length;
      if (!line.trim()) {
        const next = lines.slice(at + 1).find((other) => other.trim());
        if (next === undefined || next.length - next.trimStart().length < width) break;
        inner.push('');
      } else if (lead >= Math.min(width, indent + 2)) {
        inner.push(line.slice(Math.min(lead, width)));
      } else if (LIST.test(line) || startsBlock(lines, at) || !inner.at(-1)) {
        break;
      } else {
        inner.push(line.trim());
      }
      at += 1;
    }
    const entry = make('li', node);
    blocks(inner, entry, depth + 1);
    // A tight list: the one paragraph of an entry needs no margins.
    if (entry.firstElementChild?.tagName === 'P') entry.firstElementChild.replaceWith(...entry.firstElementChild.childNodes);
    while (at + 1 < lines.length && !lines[at].trim() && LIST.test(lines[at + 1])) at += 1;
  }
  return at;
}

function table(lines, at, parent, depth) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, '').split('|').map((cell) => cell.trim());
  const node = make('table', parent);
  node.tabIndex = 0;
  const head = make('tr', make('thead', node));
  for (const cell of cells(lines[at])) inline(cell, make('th', head), depth);
  const body = make('tbody', node);
  for (at += 2; at < lines.length && lines[at].includes('|') && lines[at].trim(); at += 1) {
    const row = make('tr', body);
    for (const cell of cells(lines[at])) inline(cell, make('td', row), depth);
  }
  return at;
}

function inline(text, parent, depth) {
  if (text.length > LONGEST_PARAGRAPH || depth > DEEPEST) return void plain(text, parent);
  let from = 0;
  for (const match of text.matchAll(INLINE)) {
    plain(text.slice(from, match.index), parent);
    from = match.index + match[0].length;
    const found = match.groups;
    const nested = (name, value) => inline(value, make(name, parent), depth + 1);
    const tex = found.round ?? found.square ?? found.dollars ?? found.dollar;
    if (found.code !== undefined) make('code', parent, found.code);
    else if (tex !== undefined) mathNode(tex, false, parent);
    else if (found.escaped) parent.append(found.escaped);
    else if (found.bold ?? found.strong) nested('strong', found.bold ?? found.strong);
    else if (found.italic ?? found.em) nested('em', found.italic ?? found.em);
    else if (found.struck) nested('s', found.struck);
    else if (found.target) link(found, match[0], parent);
    else if (found.url) anchor(found.url, found.url, parent);
    else plain(match[0], parent);
  }
  plain(text.slice(from), parent);
}

function link(found, whole, parent) {
  // An image would be fetched from somewhere: it stays a link with its description.
  if (!/^https?:\/\//i.test(found.target)) return void plain(whole, parent);
  anchor(found.target, (found.bang ? 'image: ' : '') + (found.label || found.target), parent);
  if (found.label && found.label !== found.target) make('span', parent, ` (${found.target})`, 'url');
}

function anchor(target, label, parent) {
  const node = make('a', parent, label);
  node.href = target;
  node.target = '_blank';
  node.rel = 'noopener noreferrer nofollow';
}

function plain(text, parent) {
  text.split('\n').forEach((line, i) => {
    if (i) make('br', parent);
    if (line) parent.append(line);
  });
}
