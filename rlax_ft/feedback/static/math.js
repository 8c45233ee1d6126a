// TeX as MathML, for what answers usually hold; what it does not know is shown as its source.

const SPACE = 'http://www.w3.org/1998/Math/MathML';
const LONGEST = 3000;
const DEEPEST = 30;

const LETTERS = Object.fromEntries(('alpha α beta β gamma γ delta δ epsilon ϵ varepsilon ε zeta ζ eta η theta θ vartheta ϑ iota ι kappa κ '
  + 'lambda λ mu μ nu ν xi ξ pi π rho ρ sigma σ tau τ upsilon υ phi ϕ varphi φ chi χ psi ψ omega ω Gamma Γ Delta Δ Theta Θ '
  + 'Lambda Λ Xi Ξ Pi Π Sigma Σ Phi Φ Psi Ψ Omega Ω ell ℓ hbar ℏ infty ∞ partial ∂ nabla ∇ emptyset ∅ aleph ℵ Re ℜ Im ℑ '
  + 'dots … ldots … cdots ⋯ vdots ⋮ ddots ⋱ angle ∠ triangle △ degree °').split(' ').reduce(pairs, []));
const OPERATORS = Object.fromEntries(('cdot ⋅ times × div ÷ pm ± mp ∓ ast ∗ star ⋆ circ ∘ bullet • oplus ⊕ otimes ⊗ leq ≤ le ≤ geq ≥ ge ≥ '
  + 'neq ≠ ne ≠ approx ≈ equiv ≡ sim ∼ simeq ≃ cong ≅ propto ∝ ll ≪ gg ≫ in ∈ notin ∉ ni ∋ subset ⊂ subseteq ⊆ supset ⊃ supseteq ⊇ '
  + 'cup ∪ cap ∩ setminus ∖ wedge ∧ land ∧ vee ∨ lor ∨ neg ¬ lnot ¬ forall ∀ exists ∃ to → rightarrow → leftarrow ← gets ← '
  + 'Rightarrow ⇒ implies ⟹ Leftarrow ⇐ iff ⟺ Leftrightarrow ⇔ leftrightarrow ↔ mapsto ↦ uparrow ↑ downarrow ↓ mid ∣ parallel ∥ perp ⊥ '
  + 'colon : prime ′ langle ⟨ rangle ⟩ lfloor ⌊ rfloor ⌋ lceil ⌈ rceil ⌉ lbrace { rbrace } lvert | rvert | vert | Vert ‖ backslash \\ '
  + 'therefore ∴ because ∵').split(' ').reduce(pairs, []));
const LARGE = Object.fromEntries('sum ∑ prod ∏ int ∫ iint ∬ oint ∮ bigcup ⋃ bigcap ⋂ coprod ∐'.split(' ').reduce(pairs, []));
const FUNCTIONS = new Set(('sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp lim max min sup inf det dim ker '
  + 'gcd arg argmax argmin Pr deg hom limsup liminf').split(' '));
const ACCENTS = { hat: '^', widehat: '^', bar: '‾', overline: '‾', vec: '→', dot: '˙', ddot: '¨', tilde: '~', widetilde: '~' };
const SPACES = { ',': '0.17em', ':': '0.22em', ';': '0.28em', '!': '0', ' ': '0.3em', quad: '1em', qquad: '2em' };
const VARIANTS = { mathbb: 'double', mathcal: 'script', mathscr: 'script', mathbf: 'bold', boldsymbol: 'bold', mathrm: 'roman', mathit: '', mathsf: 'roman', operatorname: 'roman' };
const DOUBLE = { C: 'ℂ', H: 'ℍ', N: 'ℕ', P: 'ℙ', Q: 'ℚ', R: 'ℝ', Z: 'ℤ' };
const SCRIPT = { B: 'ℬ', E: 'ℰ', F: 'ℱ', H: 'ℋ', I: 'ℐ', L: 'ℒ', M: 'ℳ', R: 'ℛ' };
const FENCES = { matrix: ['', ''], pmatrix: ['(', ')'], bmatrix: ['[', ']'], vmatrix: ['|', '|'], cases: ['{', ''], aligned: ['', ''], align: ['', ''], 'align*': ['', ''], array: ['', ''] };

function pairs(all, word, i, words) {
  if (i % 2 === 0) all.push([word, words[i + 1]]);
  return all;
}

function make(name, children = [], attributes = {}) {
  const node = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export function mathNode(tex, display, parent) {
  const source = tex.trim();
  try {
    if (source.length > LONGEST) throw new Error('too long');
    const tokens = source.match(/\\[a-zA-Z]+\*?|\\[\s\S]|[\s\S]/g) || [];
    const reader = { tokens, at: 0, depth: 0 };
    const row = readRow(reader, () => false);
    const attributes = { 'aria-label': source, ...(display ? { display: 'block' } : {}) };
    parent.append(make('math', [row], attributes));
  } catch {
    const code = document.createElement(display ? 'p' : 'span');
    code.className = 'tex';
    code.textContent = source;
    parent.append(code);
  }
}

function readRow(reader, ends) {
  const nodes = [];
  if (++reader.depth > DEEPEST) throw new Error('too deep');
  while (reader.at < reader.tokens.length && !ends(reader.tokens[reader.at])) {
    const base = readAtom(reader);
    if (base) nodes.push(withScripts(reader, base));
  }
  reader.depth -= 1;
  return nodes.length === 1 ? nodes[0] : make('mrow', nodes);
}

function withScripts(reader, base) {
  let sub, sup;
  for (;;) {
    const token = reader.tokens[reader.at];
    if (token === '_' && !sub) { reader.at += 1; sub = readArgument(reader); }
    else if (token === '^' && !sup) { reader.at += 1; sup = readArgument(reader); }
    else if (token === "'" && !sup) { reader.at += 1; sup = make('mo', ['′']); }
    else break;
  }
  const above = base.dataset?.limits;
  if (sub && sup) return make(above ? 'munderover' : 'msubsup', [base, sub, sup]);
  if (sub) return make(above ? 'munder' : 'msub', [base, sub]);
  return sup ? make(above ? 'mover' : 'msup', [base, sup]) : base;
}

function readArgument(reader) {
  skipBlanks(reader);
  if (reader.at >= reader.tokens.length) throw new Error('an argument is missing');
  if (reader.tokens[reader.at] !== '{') return readAtom(reader) || make('mrow');
  reader.at += 1;
  const row = readRow(reader, (token) => token === '}');
  expect(reader, '}');
  return row;
}

function readText(reader) {
  skipBlanks(reader);
  expect(reader, '{');
  let text = '';
  for (let open = 1; ;) {
    const token = reader.tokens[reader.at++];
    if (token === undefined) throw new Error('a brace is missing');
    if (token === '{') open += 1;
    if (token === '}' && --open === 0) return text;
    text += token;
  }
}

function skipBlanks(reader) {
  while (/^\s$/.test(reader.tokens[reader.at] || '')) reader.at += 1;
}

function expect(reader, token) {
  if (reader.tokens[reader.at] !== token) throw new Error(`${token} is missing`);
  reader.at += 1;
}

function readAtom(reader) {
  const token = reader.tokens[reader.at++];
  if (/^\s$/.test(token) || token === '&') return null;
  if (token === '{') {
    reader.at -= 1;
    return readArgument(reader);
  }
  if (/^[0-9]$/.test(token)) {
    let digits = token;
    while (/^[0-9]$/.test(reader.tokens[reader.at] || '') || (reader.tokens[reader.at] === '.' && /^[0-9]$/.test(reader.tokens[reader.at + 1] || ''))) digits += reader.tokens[reader.at++];
    return make('mn', [digits]);
  }
  if (token.startsWith('\\')) return readCommand(reader, token.slice(1));
  if (/^\p{L}$/u.test(token)) return make('mi', [token]);
  if ('}^_#%'.includes(token)) throw new Error(`${token} here`);
  return make('mo', [token === '-' ? '−' : token], '()[]|'.includes(token) ? { stretchy: 'false' } : {});
}

function readCommand(reader, name) {
  if (name in LETTERS) return make('mi', [LETTERS[name]]);
  if (name in OPERATORS) return make('mo', [OPERATORS[name]], { stretchy: 'false' });
  if (name in LARGE) return limits(make('mo', [LARGE[name]], { largeop: 'true' }), !name.includes('int'));
  if (FUNCTIONS.has(name)) {
    // An operator, so that it stands a little apart: n log n.
    const named = make('mo', [name], { form: 'prefix', lspace: '0.167em', rspace: '0.167em', stretchy: 'false' });
    return limits(named, /^(lim|max|min|sup|inf|arg)/.test(name));
  }
  if (name in SPACES) return make('mspace', [], { width: SPACES[name] });
  if (name in VARIANTS) return variant(readText(reader), VARIANTS[name]);
  if (name in ACCENTS) return make('mover', [readArgument(reader), make('mo', [ACCENTS[name]])], { accent: 'true' });
  if (/^[dt]?frac$/.test(name)) return make('mfrac', [readArgument(reader), readArgument(reader)]);
  if (/^[dt]?binom$/.test(name)) {
    const inner = make('mfrac', [readArgument(reader), readArgument(reader)], { linethickness: '0' });
    return make('mrow', [make('mo', ['(']), inner, make('mo', [')'])]);
  }
  if (name === 'sqrt') return root(reader);
  if (/^(text|textbf|textit|textrm|mbox)$/.test(name)) return make('mtext', [readText(reader)]);
  if (name === 'boxed') return readArgument(reader);
  if (name === 'left') return fenced(reader);
  if (/^([bB]ig+[lrm]?|displaystyle|textstyle|limits|nolimits|nonumber|middle)$/.test(name)) return null;
  if (name === 'not') { const next = readAtom(reader); next.append('̸'); return next; }
  if (name === 'begin') return environment(reader);
  if ('{}%$#&_'.includes(name)) return make('mo', [name], { stretchy: 'false' });
  if (name === '|') return make('mo', ['‖']);
  if (name === '\\') return make('mspace', [], { linebreak: 'newline' });
  throw new Error(`\\${name}`);
}

function limits(node, above) {
  if (above) node.dataset.limits = '1';
  return node;
}

function variant(text, kind) {
  const letters = kind === 'double' ? DOUBLE : kind === 'script' ? SCRIPT : {};
  const shown = [...text].map((letter) => letters[letter] || letter).join('');
  const node = make('mi', [shown.replace(/\\,|\\ /g, ' ')], kind ? { mathvariant: 'normal' } : {});
  if (kind === 'bold') node.append('');
  return node;
}

function root(reader) {
  skipBlanks(reader);
  if (reader.tokens[reader.at] !== '[') return make('msqrt', [readArgument(reader)]);
  reader.at += 1;
  const index = readRow(reader, (token) => token === ']');
  expect(reader, ']');
  return make('mroot', [readArgument(reader), index]);
}

function delimiter(reader) {
  skipBlanks(reader);
  const token = reader.tokens[reader.at++] || '';
  if (token === '.') return '';
  if (!token.startsWith('\\')) return token;
  const name = token.slice(1);
  if (name in OPERATORS) return OPERATORS[name];
  if ('{}|'.includes(name)) return name === '|' ? '‖' : name;
  throw new Error(`\\left\\${name}`);
}

function fenced(reader) {
  const open = delimiter(reader);
  const row = readRow(reader, (token) => token === '\\right');
  expect(reader, '\\right');
  const close = delimiter(reader);
  return make('mrow', [make('mo', [open]), row, make('mo', [close])]);
}

function environment(reader) {
  const name = readText(reader);
  if (!(name in FENCES)) throw new Error(name);
  if (name === 'array') readText(reader);
  const rows = [[]];
  const stops = (token) => token === '&' || token === '\\\\' || token === '\\end';
  for (;;) {
    rows.at(-1).push(make('mtd', [readRow(reader, stops)]));
    const token = reader.tokens[reader.at++];
    if (token === '\\\\') rows.push([]);
    else if (token === '\\end') break;
    else if (token === undefined) throw new Error('\\end is missing');
  }
  if (readText(reader) !== name) throw new Error('\\end of another');
  const [open, close] = FENCES[name];
  const table = make('mtable', rows.map((cells) => make('mtr', cells)), name.startsWith('align') || name === 'cases' ? { columnalign: 'left' } : {});
  return make('mrow', [make('mo', [open]), table, make('mo', [close])]);
}
