import { call, pages } from '../api.js';
import { card, cpc, el, hash, link, status, table } from '../dom.js';

const PATH = '/ledger/disputes';

// The view is offered where the ledger lists disputes.
export const disputesOffered = async () => PATH in (await call('/openapi.json')).paths;

export async function disputes(place, signal) {
  const [{ items }, ledger] = await Promise.all([pages(`${PATH}?page_size=200`, 'disputes', 1000, signal), call('/ledger', { signal })]);
  place.append(el('div', { class: 'head' }, el('div', {}, el('h1', {}, 'Disputes'),
    el('p', { class: 'soft' }, `Whoever has stake may contest a result within ${ledger.dispute_window_blocks} blocks; validators compute it again and vote. The loser pays.`))),
  card('Contested results', table('Disputes', [
    ['Task', (one) => link(`#/tasks/${one.task_id}`, hash(one.task_id))], ['Job', (one) => one.job, true], ['Status', (one) => status(one.status)],
    ['Contestant', (one) => link(`#/account/${one.contestant}`, hash(one.contestant, 12))], ['Accused', (one) => link(`#/account/${one.accused}`, hash(one.accused, 12))],
    ['Votes', (one) => `${one.votes.filter((vote) => vote.revealed).length} of ${one.votes.length} open`], ['Bond, CPC', (one) => cpc(one.bond_units), true],
    ['Slashed, CPC', (one) => cpc(one.slashed_units), true], ['Why', (one) => one.detail || '–'],
  ], items.reverse(), 'No result is contested.')));
}
