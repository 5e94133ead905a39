import { call, pages, pause, steady } from '../api.js';
import { inOrder, shown } from '../artifacts.js';
import { bare, card, count, duration, el, ended, facts, hash, link, many, show, status, table, time } from '../dom.js';
import { receiptPanel } from './verify.js';

const PAGE = 25;
const POLL_MS = 2500;
const STATUSES = ['PENDING', 'IN_PROGRESS', 'COMPLETED', 'FAILED', 'CANCELLED', 'EXPIRED'];

const progress = (one) => el('progress', { max: one.jobs_total || 1, value: one.jobs_settled,
  'aria-label': `${one.jobs_settled} of ${one.jobs_total} jobs settled` });

export async function tasks(place, signal) {
  let offset = 0;
  const { challenge_types: types } = await call('/market', { signal });
  const option = (value, text = value) => el('option', { value }, text);
  const wanted = el('select', { id: 'status' }, option('', 'any'), STATUSES.map((one) => option(one, one.toLowerCase().replace('_', ' '))));
  const type = el('select', { id: 'type' }, option('', 'any'), types.map((one) => option(one)));
  const list = el('div', { 'aria-live': 'off' });
  const [back, forth] = [-PAGE, PAGE].map((step) => el('button', { type: 'button', onclick: () => { offset = Math.max(0, offset + step); again(); } }, step < 0 ? 'Newer' : 'Older'));
  const where = el('span', { class: 'soft small' });
  async function again() {
    const page = await call(`/tasks?limit=${PAGE}&offset=${offset}${wanted.value && `&status=${wanted.value}`}${type.value && `&challenge_type=${type.value}`}`, { signal });
    show(list, table('Tasks', [
      ['Task', (one) => link(`#/tasks/${one.task_id}`, hash(one.task_id))], ['Type', (one) => one.challenge_type],
      ['Status', (one) => status(one.status)], ['Progress', progress], ['Jobs', (one) => `${count(one.jobs_settled)} / ${count(one.jobs_total)}`, true],
      ['Reward, CPC', (one) => one.reward, true], ['Created', (one) => time(one.created_ms)],
    ], page.tasks, 'No task matches.'));
    back.disabled = offset === 0;
    forth.disabled = offset + PAGE >= page.total;
    where.textContent = page.total ? `${offset + 1}–${Math.min(page.total, offset + PAGE)} of ${page.total}` : '';
  }
  for (const select of [wanted, type]) select.addEventListener('change', () => { offset = 0; again(); });
  place.append(el('div', { class: 'head' }, el('h1', {}, 'Tasks'), el('div', { class: 'row' },
    el('span', { class: 'inline' }, el('label', { for: 'status' }, 'Status'), wanted), el('span', { class: 'inline' }, el('label', { for: 'type' }, 'Type'), type))),
  el('section', { class: 'card' }, list, el('div', { class: 'row' }, back, forth, where)));
  while (!signal.aborted) {
    await again();
    await pause(POLL_MS, signal);
  }
}

// One task as it goes: every event of its stream redraws what changed.
export async function task(place, signal, id) {
  const parts = { head: el('div'), state: el('div'), order: el('div'), files: el('div'), jobs: el('div'), receipt: el('div') };
  place.append(parts.head, parts.state, el('div', { class: 'grid two even' }, el('div', {}, parts.files, parts.order), el('div', {}, parts.receipt, parts.jobs)));
  let preview = '';
  for await (const { task: now } of steady((last) => `/tasks/${id}:watch?cursor=${last ? last.cursor : 0}`, signal)) {
    draw(parts, now, signal);
    if (!ended(now) && now.preview && now.preview.digest !== preview) {
      preview = now.preview.digest;
      shown(now.preview, signal, 'Preview').then((figure) => {
        if (now.preview.digest === preview) parts.files.replaceChildren(card('So far', figure));
      }, () => {});
    }
    if (ended(now)) await finish(parts, now, signal);
    else if (bare(now.status) !== 'PENDING') jobs(parts, now, signal).catch(() => {}); // no orchestrator knows it before
  }
}

function draw({ head, state, order }, now, signal) {
  const left = ended(now) ? duration(now.ended_ms - now.created_ms) : null;
  show(head, el('div', { class: 'head' }, el('div', {}, el('h1', {}, now.challenge_type, ' ', status(now.status)),
    el('div', { class: 'mono soft small' }, now.task_id)), ended(now) ? null : cancelButton(now, signal)));
  show(state, card(['Progress', el('span', { class: 'soft' }, `${count(now.jobs_settled)} of ${count(now.jobs_total)} jobs settled, ${count(now.jobs_running)} running`)],
    progress(now), now.status_detail ? el('p', { class: 'note warn' }, now.status_detail) : null));
  show(order, card('Order', facts([['Reward', `${now.reward} CPC`], now.refunded !== '0.0' && ['Given back', `${now.refunded} CPC`], ['Created', time(now.created_ms)],
      left && ['Took', left], !left && ['Deadline', time(now.deadline * 1000)], ['Customer', link(`#/account/${now.customer}`, hash(now.customer, 16))],
      Number(now.block_height) > 0 && ['Block', link(`#/blocks/${now.block_height}`, now.block_height)], now.result_hash && ['Result root', hash(now.result_hash, 16)]]),
    el('h3', {}, 'Payload'), el('pre', { tabindex: '0', 'aria-label': 'Payload' }, JSON.stringify(now.payload, null, 1))));
}

async function finish(parts, now, signal) {
  if (now.orchestrator_key) await jobs(parts, now, signal).catch(() => {});
  if (now.jobs_settled > 0) receiptPanel(parts.receipt, now, signal);
  const files = inOrder(now.artifacts);
  if (files.length === 0) return;
  const figures = await Promise.all(files.slice(0, 24).map((file) => shown(file, signal)));
  parts.files.replaceChildren(card(['Result', el('span', { class: 'soft small' }, many(files.length, 'file'))], figures));
}

async function jobs(parts, now, signal) {
  const { items, total } = await pages(`/tasks/${now.task_id}/jobs?page_size=200`, 'jobs', 200, signal);
  show(parts.jobs, card(['Jobs', el('span', { class: 'soft small' }, `${items.length} of ${total}`)], table('Jobs', [
    ['Job', (one) => one.index, true], ['Status', (one) => status(one.status)], ['Worker', (one) => (one.worker ? hash(one.worker, 10) : '–')],
    ['Tries', (one) => one.attempts, true]], items.slice(0, 100), 'Not divided yet.')));
}

function cancelButton(now, signal) {
  const sure = el('dialog', { 'aria-label': 'Cancel the task?' }, el('p', {}, 'Cancel this task? What is unspent comes back; jobs already settled stay paid.'),
    el('div', { class: 'row' }, el('button', { type: 'button', class: 'danger', onclick: async () => {
      sure.close();
      try { await call(`/tasks/${now.task_id}:cancel`, { method: 'POST', signal }); } catch (error) { sure.after(el('p', { class: 'note bad', role: 'alert' }, error.message)); }
    } }, 'Cancel the task'), el('button', { type: 'button', onclick: () => sure.close() }, 'Keep it')));
  return el('span', {}, el('button', { type: 'button', class: 'danger', onclick: () => sure.showModal() }, 'Cancel…'), sure);
}
