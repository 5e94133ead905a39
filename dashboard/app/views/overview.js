import { call, lines, pages, pause } from '../api.js';
import { bars } from '../charts.js';
import { card, count, cpc, el, hash, link, show, status, table, tile, time } from '../dom.js';

const WINDOW_S = 60;
const POLL_MS = 2000;

// Live: results settled per second from the stream of blocks; queue, workers and money by asking again.
export async function overview(place, signal) {
  const [tiles, chart, recent, chain] = [el('div', { class: 'grid tiles' }), el('div'), el('div'), el('div')];
  place.append(el('div', { class: 'head' }, el('div', {}, el('h1', {}, 'Overview'),
    el('p', { class: 'soft' }, 'A market for computation in which every result is checked before it is paid.'))),
  tiles, card(['Throughput', el('span', { class: 'soft small' }, `results settled a second, last ${WINDOW_S} s`)], chart),
  el('div', { class: 'grid two' }, card(['Your tasks', link('#/tasks', 'all')], recent), card(['Blocks', link('#/blocks', 'all')], chain)));
  const sealed = [];
  const { block_height: height } = await call('/ledger', { signal });
  follow(Math.max(0, Number(height) - 200), sealed, signal);
  while (!signal.aborted) {
    await refresh({ tiles, chart, recent, chain }, sealed, signal);
    await pause(POLL_MS, signal);
  }
}

async function follow(from, sealed, signal) {
  let next = from;
  while (!signal.aborted) {
    try {
      for await (const { block } of lines(`/ledger/blocks:watch?from_height=${next}`, signal)) {
        sealed.push(block);
        next = Number(block.height) + 1;
        if (sealed.length > 2000) sealed.splice(0, 1000);
      }
    } catch { /* the next try continues after the last block */ }
    await pause(1000, signal);
  }
}

async function refresh(places, sealed, signal) {
  const ask = (path) => call(path, { signal });
  const [workers, supply, running, waiting, recent] = await Promise.all([pages('/workers?page_size=1000', 'workers', 5000, signal),
    ask('/ledger/supply'), ask('/tasks?status=IN_PROGRESS&limit=1000'), ask('/tasks?status=PENDING&limit=1000'), ask('/tasks?limit=8')]);
  const here = workers.items.filter((one) => one.status !== 'WORKER_STATUS_GONE');
  const left = (tasks) => tasks.reduce((sum, one) => sum + one.jobs_total - one.jobs_settled - one.jobs_running, 0);
  const queue = left(running.tasks) + left(waiting.tasks);
  const busy = here.reduce((sum, one) => sum + one.jobs_running, 0);
  const now = Date.now();
  const slots = Array(WINDOW_S).fill(0);
  for (const block of sealed) {
    const age = Math.floor((now - Number(block.time_ms)) / 1000);
    if (age >= 0 && age < WINDOW_S) slots[WINDOW_S - 1 - age] += block.result_count;
  }
  const total = slots.reduce((sum, one) => sum + one, 0);
  show(places.tiles, tile('Results, last minute', count(total)), tile('Jobs waiting, yours', count(queue)), tile('Jobs running', count(busy)),
    tile('Workers', count(here.length)), tile('Held for tasks, CPC', cpc(supply.escrowed_units)), tile('Burned, CPC', cpc(supply.burned_units)));
  show(places.chart, bars(slots, 'Results settled each second of the last minute', `${WINDOW_S} s ago`, 'now'));
  show(places.recent, table('Your newest tasks', [
    ['Task', (one) => link(`#/tasks/${one.task_id}`, one.challenge_type)], ['Status', (one) => status(one.status)],
    ['Jobs', (one) => el('progress', { max: one.jobs_total || 1, value: one.jobs_settled, 'aria-label': `${one.jobs_settled} of ${one.jobs_total} jobs` })],
    ['CPC', (one) => one.reward, true],
  ], recent.tasks, 'Nothing yet. Publish the first task.'));
  const newest = sealed.slice(-8).reverse();
  show(places.chain, table('Newest blocks', [
    ['Height', (one) => link(`#/blocks/${one.height}`, one.height)], ['Results', (one) => count(one.result_count), true],
    ['Compute root', (one) => hash(one.compute_root, 10)], ['Sealed', (one) => time(one.time_ms)],
  ], newest, 'No block yet.'));
}
