import { call, pages } from '../api.js';
import { card, el } from '../dom.js';
import { cryptographyAvailable } from '../proof.js';
import { assemble, changed, parts, verify } from '../receipt.js';

const PIN = 'computemesh.logkey.';

// The log's key as this browser saw it first: a ledger that later names another one is not believed.
function pinned(chain, vkey) {
  const name = PIN + chain;
  if (!localStorage.getItem(name)) localStorage.setItem(name, vkey);
  return localStorage.getItem(name);
}

// The receipt of a completed task, fetched when asked for.
export function receiptPanel(place, task, signal) {
  const body = el('div', {}, el('p', { class: 'soft' }, 'Recompute in this browser every signature and Merkle path, from your order to the ledger\u2019s signed checkpoint.'));
  const button = el('button', { type: 'button', class: 'primary', id: 'verify' }, 'Verify the receipt');
  button.addEventListener('click', async () => {
    button.disabled = true;
    try {
      const ledger = await call('/ledger', { signal });
      const { escrow } = await call(`/ledger/escrows/${task.task_id}`, { signal });
      const found = await pages(`/ledger/results/${task.task_id}?with_proofs=true&page_size=500`, 'proven', 100000, signal);
      const receipt = assemble(ledger, task, escrow, found.items, found.first.checkpoint.note);
      await judged(body, receipt, pinned(receipt.chain, ledger.vkey), signal);
      button.remove();
    } catch (error) {
      body.replaceChildren(el('div', { class: 'note bad', role: 'alert' }, error.message));
      button.disabled = false;
    }
  });
  place.replaceChildren(card('Receipt', body, button));
}

// A receipt from a file: nothing is asked of anybody.
export async function verifyFile(place) {
  const result = el('div');
  const vkey = el('input', { id: 'vkey', placeholder: 'name+hash+key', spellcheck: false });
  const file = el('input', { id: 'file', type: 'file', accept: '.json,application/json' });
  const known = Object.entries(localStorage).find(([name]) => name.startsWith(PIN));
  if (known) vkey.value = known[1];
  file.addEventListener('change', async () => {
    result.replaceChildren();
    try {
      const receipt = JSON.parse(await file.files[0].text());
      await judged(result, receipt, vkey.value.trim() || receipt.vkey, null, !vkey.value.trim());
    } catch (error) {
      result.replaceChildren(el('div', { class: 'note bad', role: 'alert' }, `This is not a receipt: ${error.message}`));
    }
  });
  place.append(el('div', { class: 'head' }, el('div', {}, el('h1', {}, 'Verify a receipt'),
    el('p', { class: 'soft' }, 'A receipt file from this page or from `mesh task receipt`. It does not leave this browser.'))),
  card('Receipt', el('form', {}, el('div', { class: 'field' }, el('label', { for: 'vkey' }, 'Log key you trust'), vkey,
    el('p', { class: 'hint' }, 'The ledger\u2019s C2SP verifier key, which you know from elsewhere. Empty: the receipt\u2019s own, which shows that it is consistent but not whose log it is in.')),
  el('div', { class: 'field' }, el('label', { for: 'file' }, 'Receipt file'), file))), result);
}

async function judged(place, receipt, vkey, signal, ownKey = false) {
  if (!cryptographyAvailable()) {
    place.replaceChildren(el('div', { class: 'note warn', role: 'alert' }, el('strong', {}, 'This browser offers no cryptography here'),
      'Browsers offer it to pages over HTTPS and from this machine only. Open this page so, or use `mesh verify`.'));
    return;
  }
  const shownSteps = el('div', { id: 'steps' });
  place.replaceChildren(shownSteps, tamper(receipt, (document) => run(shownSteps, document, vkey, ownKey), () => run(shownSteps, receipt, vkey, ownKey)), save(receipt));
  await run(shownSteps, receipt, vkey, ownKey);
}

async function run(place, document, vkey, ownKey) {
  const verdict = el('div', { class: 'verdict', role: 'status' }, el('span', { class: 'sign', 'aria-hidden': 'true' }, '…'), el('span', {}, 'Verifying'));
  const list = el('ol', { class: 'steps' });
  const rest = el('div', {});
  place.replaceChildren(verdict, list, rest);
  const all = [];
  for await (const step of verify(document, vkey)) {
    all.push(step);
    if (all.length <= 40 || !step.ok) list.append(row(step));
  }
  const wrong = all.filter((step) => !step.ok);
  if (all.length > 40) rest.append(el('p', { class: 'soft small' }, `${all.length} steps were done; shown are the first 40 and those that failed.`));
  const good = wrong.length === 0;
  verdict.className = `verdict ${good ? 'good' : 'bad'}`;
  verdict.replaceChildren(el('span', { class: 'sign', 'aria-hidden': 'true' }, good ? '✓' : '✗'), el('span', {},
    good ? (ownKey ? 'Consistent, by its own key' : 'Verified') : 'Refused',
    el('div', { class: 'small' }, good ? `all ${all.length} steps hold${ownKey ? '; whose log this is, you have to know' : ''}` : `${wrong.length} of ${all.length} steps fail: ${wrong[0].name}`)));
}

const row = (step) => el('li', { class: step.ok ? 'ok' : 'no' }, el('span', { class: 'sign', 'aria-label': step.ok ? 'holds' : 'fails' }, step.ok ? '✓' : '✗'),
  el('span', {}, step.name), el('span', { class: 'detail small' }, step.detail));

const named = (path) => path.map((part) => (typeof part === 'number' ? `[${part}]` : part)).join('.').replaceAll('.[', '[');

function tamper(receipt, changedTo, restored) {
  const all = parts(receipt).slice(0, 400);
  const select = el('select', { id: 'part' }, all.map((path, at) => el('option', { value: String(at) }, named(path))));
  select.value = String(Math.max(0, all.findIndex((path) => named(path).endsWith('.result'))));
  const said = el('p', { class: 'small mono', 'aria-live': 'polite' });
  const hex = (byte) => byte.toString(16).padStart(2, '0');
  const flip = el('button', { type: 'button', id: 'tamper', onclick: async () => {
    const path = all[Number(select.value)];
    const one = changed(receipt, path, crypto.getRandomValues(new Uint32Array(1))[0]);
    said.replaceChildren(`byte ${one.at} of ${named(path)}: `, el('span', { class: 'bytes' }, el('s', {}, hex(one.before)), ' → ', hex(one.after)));
    await changedTo(one.document);
    back.disabled = false;
  } }, 'Change one byte');
  const back = el('button', { type: 'button', disabled: true, onclick: async () => { said.replaceChildren(); back.disabled = true; await restored(); } }, 'Restore');
  return el('div', {}, el('h3', {}, 'Try to cheat'), el('div', { class: 'row' }, el('span', { class: 'inline' }, el('label', { for: 'part' }, 'Part'), select), flip, back), said);
}

function save(receipt) {
  const url = URL.createObjectURL(new Blob([`${JSON.stringify(receipt, null, 2)}\n`], { type: 'application/json' }));
  return el('p', {}, el('a', { class: 'button', href: url, download: 'receipt.json', id: 'save-receipt' }, 'Save the receipt'),
    ' ', el('span', { class: 'soft small' }, 'mesh verify receipt.json judges it too'));
}
