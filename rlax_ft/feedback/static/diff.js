// What two responses do not share, marked word by word within what is shown of them.

const MOST_CELLS = 4e6;

export function markDifferences(left, right) {
  const [a, b] = [words(left), words(right)];
  const [onlyA, onlyB] = differing(a.map((word) => word.text), b.map((word) => word.text));
  wrap(a, onlyA);
  wrap(b, onlyB);
}

export function clearDifferences(node) {
  for (const mark of node.querySelectorAll('mark.differs')) {
    const parent = mark.parentNode;
    mark.replaceWith(...mark.childNodes);
    parent.normalize();
  }
}

function words(node) {
  const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const text = walker.currentNode;
    if (text.parentElement.closest('math')) continue;
    for (const match of text.data.matchAll(/[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu)) {
      found.push({ node: text, start: match.index, end: match.index + match[0].length, text: match[0] });
    }
  }
  return found;
}

// Indices of the words of each side that the longest common subsequence leaves out.
function differing(a, b) {
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a.at(-1 - end) === b.at(-1 - end)) end += 1;
  const n = a.length - start - end;
  const m = b.length - start - end;
  if (n * m > MOST_CELLS) {
    const [inA, inB] = [new Set(a), new Set(b)];
    return [a.map((w, i) => (inB.has(w) ? -1 : i)).filter((i) => i >= 0), b.map((w, i) => (inA.has(w) ? -1 : i)).filter((i) => i >= 0)];
  }
  const width = m + 1;
  const longest = new Uint16Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i -= 1) {
    for (let j = m - 1; j >= 0; j -= 1) {
      longest[i * width + j] = a[start + i] === b[start + j]
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  const [onlyA, onlyB] = [[], []];
  let [i, j] = [0, 0];
  while (i < n || j < m) {
    if (i < n && j < m && a[start + i] === b[start + j]) { i += 1; j += 1; }
    else if (j >= m || (i < n && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) onlyA.push(start + i++);
    else onlyB.push(start + j++);
  }
  return [onlyA, onlyB];
}

function wrap(found, indices) {
  // From the end, so that what stands before keeps its place; neighbours in one line become one mark.
  const ranges = [];
  for (const index of indices) {
    const word = found[index];
    const last = ranges.at(-1);
    if (last && last.node === word.node && /^[^\S\n]*$/.test(word.node.data.slice(last.end, word.start))) last.end = word.end;
    else ranges.push({ ...word });
  }
  for (const { node, start, end } of ranges.reverse()) {
    const range = document.createRange();
    range.setStart(node, start);
    range.setEnd(node, end);
    const mark = document.createElement('mark');
    mark.className = 'differs';
    range.surroundContents(mark);
  }
}
