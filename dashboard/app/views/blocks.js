import { call, pause } from '../api.js';
import { card, count, cpc, el, facts, hash, link, many, show, table, time } from '../dom.js';
import { cryptographyAvailable, fromBase64, leafHash, toHex } from '../proof.js';

const POLL_MS = 2500;

export async function blocks(place, signal) {
  const list = el('div');
  const tokens = [''];
  const [newer, older] = [el('button', { type: 'button', onclick: () => { tokens.pop(); again(); } }, 'Newer'),
    el('button', { type: 'button', onclick: () => { tokens.push(next); again(); } }, 'Older')];
  let next = '';
  place.append(el('div', { class: 'head' }, el('div', {}, el('h1', {}, 'Blocks'),
    el('p', { class: 'soft' }, 'Sealed batches of transactions. The compute root is the Merkle root over a block\u2019s results.'))),
  el('section', { class: 'card' }, list, el('div', { class: 'row' }, newer, older)));
  async function again() {
    const page = await call(`/ledger/blocks?page_size=25&page_token=${encodeURIComponent(tokens[tokens.length - 1])}`, { signal });
    next = page.next_page_token;
    newer.disabled = tokens.length === 1;
    older.disabled = !next;
    show(list, table('Blocks', [
      ['Height', (one) => link(`#/blocks/${one.height}`, one.height)], ['Results', (one) => count(one.result_count), true], ['Transactions', (one) => count(one.tx_count), true],
      ['Compute root', (one) => hash(one.compute_root, 16)], ['Burned, CPC', (one) => cpc(one.burned_units), true], ['Sealed', (one) => time(one.time_ms)],
    ], page.blocks, 'No block yet.'));
  }
  while (!signal.aborted) {
    await again();
    await pause(POLL_MS, signal);
  }
}

export async function block(place, signal, height) {
  const [{ block: one, results, transaction_ids: ids }, legacy, ledger] = await Promise.all([call(`/ledger/blocks/${height}?full=true`, { signal }),
    call(`/ledger/blocks/${height}/compute-root`, { signal }), call('/ledger', { signal })]);
  const step = (to, name) => el('a', { class: 'button', href: `#/blocks/${to}` }, name);
  const own = cryptographyAvailable() ? toHex(await leafHash(fromBase64(one.header))) : '';
  place.append(el('div', { class: 'head' }, el('div', {}, el('h1', {}, `Block ${one.height}`), el('div', { class: 'soft' }, 'sealed ', time(one.time_ms))),
    el('div', { class: 'row' }, Number(one.height) > 0 ? step(Number(one.height) - 1, '← Previous') : null,
      Number(one.height) < Number(ledger.block_height) ? step(Number(one.height) + 1, 'Next →') : null)),
  card('Header', facts([
    ['Compute root', el('strong', { class: 'mono' }, one.compute_root)], ['Hash', el('span', { class: 'mono' }, one.hash)],
    own && ['Recomputed here', own === one.hash ? el('span', { class: 'badge good' }, 'the same hash from the header\u2019s 185 bytes') : el('span', { class: 'badge bad' }, `another hash: ${own}`)],
    ['Previous', el('span', { class: 'mono' }, one.previous_hash)], ['Transactions root', el('span', { class: 'mono' }, one.tx_root)], ['State root', el('span', { class: 'mono' }, one.state_root)],
    legacy.legacy_poc_root && ['ComputeChain\u2019s root', el('span', { class: 'mono' }, legacy.legacy_poc_root)],
    ['Burned', `${cpc(one.burned_units)} CPC`], one.minted_units !== '0' && ['Minted', `${cpc(one.minted_units)} CPC`]])),
  card([many(results.length, 'result')], table('Results', [
    ['Leaf', (it) => it.leaf_index, true], ['Task', (it) => link(`#/tasks/${it.task_id}`, hash(it.task_id))], ['Job', (it) => it.job, true],
    ['Worker', (it) => link(`#/account/${it.worker_address}`, hash(it.worker_address, 14))], ['Result', (it) => hash(it.result_hash)],
    ['Reward, CPC', (it) => cpc(it.reward_units), true], ['Worker\u2019s share', (it) => cpc(it.worker_units), true],
  ], results.slice(0, 200), 'No result in this block: its compute root is that of the empty tree.')),
  card([many(ids.length, 'transaction')], ids.length ? el('div', {}, ids.slice(0, 100).map((id) => el('div', { class: 'mono small' }, id))) : el('p', { class: 'empty' }, 'None.')));
}
