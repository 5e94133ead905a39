// Routes, navigation and colours. A view is `show(place, signal, ...parts)`; leaving it ends what it started.

import { call, key, Refused } from './api.js';
import { el } from './dom.js';
import { account } from './views/account.js';
import { block, blocks } from './views/blocks.js';
import { disputes, disputesOffered } from './views/disputes.js';
import { overview } from './views/overview.js';
import { publish } from './views/publish.js';
import { task, tasks } from './views/tasks.js';
import { verifyFile } from './views/verify.js';
import { workers } from './views/workers.js';

const NAV = [['Overview', '#/'], ['Tasks', '#/tasks'], ['Workers', '#/workers'], ['Blocks', '#/blocks'],
  ['Account', '#/account'], ['Verify', '#/verify']];
const VIEWS = [
  [/^#\/$/, overview, 'Overview'], [/^#\/tasks$/, tasks, 'Tasks'], [/^#\/tasks\/([0-9a-f]{64})$/, task, 'Task'],
  [/^#\/publish$/, publish, 'Publish a task'], [/^#\/workers$/, workers, 'Workers'], [/^#\/blocks$/, blocks, 'Blocks'],
  [/^#\/blocks\/(\d+)$/, block, 'Block'], [/^#\/account(?:\/(cpc1\w+))?$/, account, 'Account'],
  [/^#\/disputes$/, disputes, 'Disputes'], [/^#\/verify$/, verifyFile, 'Verify a receipt'],
];
const main = document.getElementById('main');
let leave = new AbortController();

function navigation(items) {
  const here = `#/${location.hash.split('/')[1] || ''}`;
  document.getElementById('nav').replaceChildren(...items.map(([name, href]) => el('a', {
    href, 'aria-current': href === here ? 'page' : null }, name)));
}

// What went wrong, with what to do about it.
export function failure(error) {
  const needsKey = error instanceof Refused && error.status === 401;
  return el('div', { class: 'note bad', role: 'alert' },
    el('strong', {}, needsKey ? 'This needs an API key' : error.message),
    needsKey ? el('p', {}, error.message) : (error.violations || []).map((one) => el('div', {}, `${one.field}: ${one.description}`)),
    needsKey ? keyForm() : null);
}

function keyForm() {
  const input = el('input', { id: 'key', type: 'password', autocomplete: 'off', required: true });
  const submit = (event) => { event.preventDefault(); key.set(input.value.trim()); route(); };
  return el('form', { onsubmit: submit }, el('label', { for: 'key' }, 'API key (kept in this tab only)'),
    el('div', { class: 'inline' }, input, el('button', { type: 'submit' }, 'Use it')));
}

async function route(event) {
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const hash = location.hash || '#/';
  const [found, match] = VIEWS.map((one) => [one, one[0].exec(hash)]).find(([, it]) => it) || [];
  document.title = `${found ? found[2] : 'Not found'} · computemesh`;
  navigation(await items);
  if (signal.aborted) return;
  const place = el('div');
  main.replaceChildren(place);
  if (event) { main.focus({ preventScroll: true }); scrollTo(0, 0); }
  try {
    if (!found) throw new Error(`There is nothing at ${hash}`);
    await found[1](place, signal, ...match.slice(1));
  } catch (error) {
    if (!signal.aborted) place.prepend(failure(error));
  }
}

function colours() {
  const button = document.getElementById('theme');
  const order = ['auto', 'light', 'dark'];
  const apply = (theme) => {
    if (theme === 'auto') delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = theme;
    button.textContent = { auto: '◐', light: '☀', dark: '☾' }[theme];
    button.setAttribute('aria-label', `Colours: ${theme}`);
    button.title = `Colours: ${theme}`;
    localStorage.setItem('computemesh.theme', theme);
  };
  let now = localStorage.getItem('computemesh.theme') || 'auto';
  apply(now);
  button.addEventListener('click', () => { now = order[(order.indexOf(now) + 1) % 3]; apply(now); });
}

const items = disputesOffered().then((offered) => (offered ? [...NAV, ['Disputes', '#/disputes']] : NAV), () => NAV);
colours();
addEventListener('hashchange', route);
route();
call('/market').then((market) => { document.getElementById('chain').textContent = `chain ${market.chain_id}`; }, () => {});
