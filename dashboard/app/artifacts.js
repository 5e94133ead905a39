// A task's files, shown: pictures and animations, texts, curves; whatever else can be saved. What is shown has the
// digest that the task names.

import { artifact } from './api.js';
import { curves } from './charts.js';
import { bytes, el, hash } from './dom.js';
import { cryptographyAvailable, toHex } from './proof.js';

const SHOWN_BYTES = 32 * 1024 * 1024;
const SHOWN_TEXT = 64 * 1024;
const SHOWN_LINES = 40;

async function fetched(file, signal) {
  const blob = await artifact(file.digest, signal);
  if (cryptographyAvailable()) {
    const found = toHex(new Uint8Array(await crypto.subtle.digest('SHA-256', await blob.arrayBuffer())));
    if (found !== file.digest) throw new Error(`${file.name} arrived with another digest, ${found.slice(0, 12)}…, and is not shown`);
  }
  return new Blob([blob], { type: file.media_type });
}

function saveButton(file, signal) {
  const save = async (event) => {
    const button = event.currentTarget;
    button.disabled = true;
    try {
      const url = URL.createObjectURL(await fetched(file, signal));
      el('a', { href: url, download: file.name.split('/').pop() }).click();
      setTimeout(() => URL.revokeObjectURL(url), 60000);
    } catch (error) {
      button.after(el('span', { class: 'note bad', role: 'alert' }, error.message));
    }
    button.disabled = false;
  };
  return el('button', { type: 'button', onclick: save, 'aria-label': `Save ${file.name}` }, 'Save');
}

const caption = (file, signal) => el('figcaption', {}, el('span', {}, file.name, ' · ', bytes(file.size), ' · ', hash(file.digest, 10)), saveButton(file, signal));

function picture(file, url, signal, what) {
  const image = el('img', { src: url, alt: `${what}: ${file.name}` });
  const figure = el('figure', {}, image, caption(file, signal));
  image.addEventListener('load', () => {
    if (image.naturalWidth < 400) figure.classList.add('pixel');
    image.classList.add('wide');
  });
  signal.addEventListener('abort', () => URL.revokeObjectURL(url));
  return figure;
}

// Lines of answers: generated texts read as texts, the rest as JSON.
function answers(text) {
  const rows = text.trim().split('\n');
  return [...rows.slice(0, SHOWN_LINES).map((row) => {
    let value;
    try { value = JSON.parse(row); } catch { return el('pre', {}, row.slice(0, 2000)); }
    const said = ['text', 'generated', 'translation', 'completion', 'output'].find((name) => typeof value[name] === 'string');
    if (!said) return el('pre', {}, JSON.stringify(value).slice(0, 2000));
    return el('p', { class: 'text' }, typeof value.prompt === 'string' ? el('b', {}, value.prompt) : null, value[said]);
  }), rows.length > SHOWN_LINES ? el('p', { class: 'soft' }, `${rows.length - SHOWN_LINES} more lines in the file`) : null];
}

// loss.csv: round, shard, step, loss; one line per shard.
function lossCurve(text) {
  const [head, ...rows] = text.trim().split('\n').map((row) => row.split(','));
  const [shard, loss] = [head.indexOf('shard'), head.indexOf('loss')];
  if (loss < 0) return el('pre', {}, text.slice(0, 4000));
  const series = new Map();
  for (const row of rows) {
    const line = series.get(row[shard]) || series.set(row[shard], []).get(row[shard]);
    if (Number.isFinite(Number(row[loss]))) line.push([line.length, Number(row[loss])]);
  }
  const lines = [...series.values()].filter((line) => line.length);
  const steps = Math.max(...lines.map((line) => line.length));
  return curves(lines, `Loss over ${steps} steps, a line for each of ${lines.length} shards`, 'step 0', `step ${steps}`);
}

async function text(file, blob, signal) {
  const all = await blob.slice(0, file.name.endsWith('.csv') ? blob.size : SHOWN_TEXT).text();
  if (file.name === 'loss.csv') return el('figure', {}, lossCurve(all), caption(file, signal));
  if (file.media_type === 'application/jsonl') return el('figure', {}, answers(all), caption(file, signal));
  let pretty = all;
  if (file.media_type === 'application/json' && blob.size <= SHOWN_TEXT) {
    try { pretty = JSON.stringify(JSON.parse(all), null, 1); } catch { /* as it is */ }
  }
  return el('figure', {}, el('pre', { tabindex: '0', 'aria-label': file.name }, pretty), caption(file, signal));
}

// One file as a figure.
export async function shown(file, signal, what = 'Result') {
  const type = file.media_type;
  const visible = /^(image\/(png|jpeg|webp|gif|avif|svg\+xml)|video\/|text\/|application\/jsonl?$)/.test(type);
  if (!visible || Number(file.size) > SHOWN_BYTES) return el('figure', {}, caption(file, signal));
  try {
    const blob = await fetched(file, signal);
    if (type.startsWith('image/')) return picture(file, URL.createObjectURL(blob), signal, what);
    if (type.startsWith('video/')) return el('figure', {}, el('video', { src: URL.createObjectURL(blob), controls: true, 'aria-label': file.name }), caption(file, signal));
    return await text(file, blob, signal);
  } catch (error) {
    if (signal.aborted) throw error;
    return el('figure', {}, el('div', { class: 'note bad', role: 'alert' }, error.message), caption(file, signal));
  }
}

// Pictures first: that is what people want to see.
export const inOrder = (files) => [...files].sort((a, b) => rank(a) - rank(b));
const rank = (file) => ['image/', 'video/', 'text/', 'application/json'].findIndex((kind) => file.media_type.startsWith(kind)) >>> 0;
