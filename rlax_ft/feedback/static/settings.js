// What this browser remembers: settings for good, drafts for this tab.

const DEFAULTS = { keys: true, fast: false, sync: true, raw: false, theme: '' };

function read(storage, name) {
  try {
    return JSON.parse(storage.getItem(`rlax-${name}`));
  } catch {
    return null;
  }
}

function write(storage, name, value) {
  try {
    if (value === null) storage.removeItem(`rlax-${name}`);
    else storage.setItem(`rlax-${name}`, JSON.stringify(value));
  } catch { /* A full or forbidden storage: nothing is remembered. */ }
}

// store('draft') reads, store('draft', value) writes, null removes.
export function store(name, ...value) {
  if (!value.length) return read(sessionStorage, name);
  return write(sessionStorage, name, value[0]);
}

export const settings = new Proxy({ ...DEFAULTS, ...read(localStorage, 'settings') }, {
  set(target, name, value) {
    target[name] = value;
    write(localStorage, 'settings', target);
    return true;
  },
});

export function applyTheme() {
  if (settings.theme) document.documentElement.dataset.theme = settings.theme;
  else delete document.documentElement.dataset.theme;
}
