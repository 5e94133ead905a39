// Elements and texts. Whatever comes from a service becomes text nodes, never markup.

export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else if (key in node && typeof value !== 'string') node[key] = value;
    else node.setAttribute(key, value === true ? '' : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const card = (title, ...children) => el('section', { class: 'card' },
  el('header', {}, ...(Array.isArray(title) ? [el('h2', {}, title[0]), ...title.slice(1)] : [el('h2', {}, title)])),
  ...children);

export const tile = (label, value) => el('div', { class: 'card tile' }, el('div', { class: 'label' }, label),
  el('div', { class: 'value' }, value));

export const badge = (text, kind = '') => el('span', { class: `badge ${kind}` }, text);

export const link = (href, ...children) => el('a', { href }, ...children);

// A table that scrolls by itself on a narrow screen, reachable by keyboard. Columns: [title, cell(row), numeric].
export function table(label, columns, rows, empty) {
  if (rows.length === 0) return el('p', { class: 'empty' }, empty);
  return el('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': label }, el('table', {},
    el('thead', {}, el('tr', {}, columns.map(([title, , num]) => el('th', { scope: 'col', class: num ? 'num' : '' }, title)))),
    el('tbody', {}, rows.map((row) => el('tr', {}, columns.map(([, cell, num]) => el('td', { class: num ? 'num' : '' }, cell(row))))))));
}

export const facts = (entries) => el('dl', {}, entries.filter(Boolean).map(([name, value]) => [el('dt', {}, name),
  el('dd', {}, value)]));

// Replaces what a place shows, unless it shows just that: a reader's selection and scroll stay.
export function show(place, ...children) {
  const next = el('div', {}, ...children);
  if (place.innerHTML !== next.innerHTML || place.querySelector('canvas, img, video')) place.replaceChildren(...next.childNodes);
}

export function hash(text, shown = 12) {
  return el('span', { class: 'mono', title: text }, text.length > shown + 2 ? `${text.slice(0, shown)}…` : text);
}

export const cpc = (units) => {
  const value = BigInt(units);
  const [whole, rest] = [(value < 0n ? -value : value) / 1000000n, (value < 0n ? -value : value) % 1000000n];
  const decimals = String(rest).padStart(6, '0').replace(/0+$/, '');
  return `${value < 0n ? '-' : ''}${whole.toLocaleString('en-GB')}${decimals ? `.${decimals}` : ''}`;
};

export const many = (number, name) => `${count(number)} ${name}${Number(number) === 1 ? '' : 's'}`;

export const count = (value) => BigInt(value).toLocaleString('en-GB');

export function bytes(value) {
  let [size, unit] = [Number(value), 0];
  while (size >= 1024 && unit < 4) [size, unit] = [size / 1024, unit + 1];
  return `${size.toFixed(unit && size < 10 ? 1 : 0)} ${['bytes', 'KiB', 'MiB', 'GiB', 'TiB'][unit]}`;
}

export const time = (ms) => (Number(ms) ? el('time', { datetime: new Date(Number(ms)).toISOString() },
  new Date(Number(ms)).toLocaleString('en-GB', { dateStyle: 'medium', timeStyle: 'medium' })) : '–');

export function duration(ms) {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  if (ms < 60000) return `${(ms / 1000).toFixed(1)} s`;
  return ms < 3600000 ? `${Math.floor(ms / 60000)} min ${Math.round((ms % 60000) / 1000)} s` : `${(ms / 3600000).toFixed(1)} h`;
}

const KINDS = { VOTING: 'run', REVEALING: 'run', UPHELD: 'bad', REJECTED: 'good', COMPLETED: 'good', SETTLED: 'good', READY: 'good', FAILED: 'bad', EXPIRED: 'bad', GONE: 'bad', CANCELLED: 'warn',
  DRAINING: 'warn', PENDING: '', QUEUED: '', IN_PROGRESS: 'run', RUNNING: 'run', AUDITING: 'run', SETTLING: 'run' };

// TASK_STATUS_IN_PROGRESS as "in progress".
export const bare = (value) => value.replace(/^[A-Z]+_STATUS_/, '');
export const status = (value) => badge(bare(value).toLowerCase().replaceAll('_', ' '), KINDS[bare(value)] || '');
export const ended = (task) => ['COMPLETED', 'FAILED', 'CANCELLED', 'EXPIRED'].includes(bare(task.status));
