import { call, pages, pause } from '../api.js';
import { bytes, card, count, cpc, el, hash, link, many, show, status, table, time } from '../dom.js';

const POLL_MS = 3000;

// Devices and record from the orchestrator, earnings from the ledger.
export async function workers(place, signal) {
  const list = el('div');
  place.append(el('div', { class: 'head' }, el('div', {}, el('h1', {}, 'Workers'),
    el('p', { class: 'soft' }, 'Who computes, on what, how often audits found them right, and what they earned. Reputation, 0 to 1,000, is derived from the ledger alone.'))), list);
  while (!signal.aborted) {
    const { items, total } = await pages('/workers?page_size=200', 'workers', 1000, signal);
    const accounts = new Map(await Promise.all(items.slice(0, 50).map(async (one) => [one.address,
      await Promise.all([call(`/ledger/accounts/${one.address}`, { signal }), call(`/ledger/stakes/${one.address}`, { signal })])])));
    const said = (one, field) => { const [money, trust] = accounts.get(one.address) || []; return money ? field(money.account, trust.stake) : '–'; };
    show(list, card([many(total, 'worker')], table('Workers', [
      ['Worker', (one) => el('div', {}, el('div', {}, one.capabilities?.display_name || 'unnamed'), link(`#/account/${one.address}`, hash(one.address, 12)))],
      ['Status', (one) => status(one.status)],
      ['Devices', (one) => (one.capabilities?.devices || []).map((device) => el('div', {}, device.kind, device.memory_bytes !== '0' ? el('span', { class: 'soft small' }, ` ${bytes(device.memory_bytes)}`) : null))],
      ['Busy', (one) => (one.utilisation.length ? `${Math.round(100 * one.utilisation.reduce((sum, part) => sum + part, 0) / one.utilisation.length)} %` : '–'), true],
      ['Running', (one) => count(one.jobs_running), true], ['Settled', (one) => count(one.jobs_settled), true],
      ['Audits failed', (one) => count(one.jobs_wrong), true], ['Late', (one) => count(one.jobs_late), true], ['Passed', passed, true],
      ['Reputation', (one) => said(one, (_, stake) => el('span', { title: stake.reputation_reasons.join('\n') }, count(stake.reputation))), true],
      ['Stake, CPC', (one) => said(one, (_, stake) => cpc(stake.units)), true], ['Earned, CPC', (one) => said(one, (money) => cpc(money.earned_units)), true],
      ['Seen', (one) => time(one.last_seen_ms)],
    ], items, 'No worker has joined yet: mesh worker join HOST:PORT')));
    await pause(POLL_MS, signal);
  }
}

// The share of attempts that came in time and passed.
function passed(one) {
  const [good, bad] = [Number(one.jobs_settled), Number(one.jobs_wrong) + Number(one.jobs_late)];
  return good + bad === 0 ? '–' : `${(100 * good / (good + bad)).toFixed(bad ? 1 : 0)} %`;
}
