import { call, key } from '../api.js';
import { card, count, cpc, el, facts, hash, link, status, table, tile, time } from '../dom.js';

// An account of the ledger; the caller's own where no address is given, with what its tasks cost.
export async function account(place, signal, address) {
  const ask = (path) => call(path, { signal });
  const own = await ask('/caller').catch((error) => { if (address) return null; throw error; });
  const shown = address || own.address;
  const [{ account: held }, { stake }, tasks] = await Promise.all([ask(`/ledger/accounts/${shown}`), ask(`/ledger/stakes/${shown}`), own && own.address === shown ? ask('/tasks?limit=100') : null]);
  place.append(el('div', { class: 'head' }, el('div', {}, el('h1', {}, tasks ? 'Your account' : 'Account'), el('div', { class: 'mono soft' }, shown)),
    key.get() ? el('button', { type: 'button', onclick: () => { key.set(''); location.reload(); } }, 'Forget the API key') : null),
  el('div', { class: 'grid tiles' }, tile('Balance, CPC', cpc(held.balance_units)), tile('Held for tasks', cpc(held.escrow_units)),
    tile('Spent', cpc(held.spent_units)), tile('Earned', cpc(held.earned_units)), tile('Not yet free', cpc(held.pending_units)), tile('At stake', cpc(held.staked_units))));
  if (stake.results !== '0' || stake.reputation) place.append(card('Reputation', facts([['Of 1,000', count(stake.reputation)], ['Settled results', count(stake.results)],
    ['Disputes', `${count(stake.disputes_won)} won, ${count(stake.disputes_lost)} lost`], ['Grounds', stake.reputation_reasons.map((reason) => el('div', {}, reason))]])));
  if (!tasks) return;
  place.append(card('Key', facts([['Held by', own.market_held ? 'the market, which signs for your API key' : 'you: your token is signed by it']])),
    card(['History', el('span', { class: 'soft small' }, `${tasks.tasks.length} of ${tasks.total} tasks`)], table('What your tasks cost', [
      ['When', (one) => time(one.created_ms)], ['Task', (one) => link(`#/tasks/${one.task_id}`, hash(one.task_id))], ['Type', (one) => one.challenge_type],
      ['Status', (one) => status(one.status)], ['Reward, CPC', (one) => one.reward, true], ['Given back', (one) => one.refunded, true],
    ], tasks.tasks, 'No task was paid from this account.')));
}
