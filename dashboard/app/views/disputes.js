import { call } from '../api.js';
import { bare, card, el, hash, link, status, table, time } from '../dom.js';

const PATH = '/ledger/disputes';

// The view is offered where the ledger has disputes to list.
export const disputesOffered = async () => PATH in (await call('/openapi.json')).paths;

export async function disputes(place, signal) {
  const page = await call(`${PATH}?page_size=100`, { signal });
  place.append(el('div', { class: 'head' }, el('div', {}, el('h1', {}, 'Disputes'),
    el('p', { class: 'soft' }, 'Results that somebody with stake contests; validators compute them again and vote.'))),
  card('Contested results', table('Disputes', [
    ['Task', (one) => link(`#/tasks/${one.task_id}`, hash(one.task_id))], ['Job', (one) => one.job, true],
    ['Status', (one) => status(bare(one.status || ''))], ['Opened', (one) => time(one.opened_ms || one.time_ms || 0)],
  ], page.disputes || [], 'No result is contested.')));
}
