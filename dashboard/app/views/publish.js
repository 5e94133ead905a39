import { call } from '../api.js';
import { card, count, el, facts } from '../dom.js';
import { toHex } from '../proof.js';

const EXAMPLES = {
  rendering: { scene: 'spheres', width: 256, height: 160, samples_per_pixel: 8, seed: 'page' },
  synthetic: { matrix_size: 1024, iterations: 1 },
  simulation: { system: 'reaction_diffusion', steps: 1000, frames: 8, seed: 'page', parameters: { width: 64, height: 64, feed: 0.0367, kill: 0.0649 } },
  training: { model_architecture: { name: 'char_transformer', hidden: 32, layers: 1, context: 64 }, dataset: 'DIGEST OF A TEXT', examples: 4096,
    batch_size: 32, learning_rate: 0.01, optimizer: 'adamw', rounds: 2, workers: 2, seed: 'page' },
  inference: { model_id: 'NAME OF A MODEL', prompts: ['The market '], max_tokens: 64, temperature: 0.8, seed: 'page' },
  function: { function: 'NAME', inputs: [{}] },
  program: { program: 'DIGEST OF A PROGRAM', inputs: 'DIGEST OF THE INPUTS' },
};
const MINUTES = [['10', '10 minutes'], ['60', '1 hour'], ['1440', '1 day']];

export async function publish(place, signal) {
  const { challenge_types: types } = await call('/market', { signal });
  const order = [...Object.keys(EXAMPLES).filter((one) => types.includes(one)), ...types.filter((one) => !(one in EXAMPLES))];
  const type = el('select', { id: 'type' }, order.map((one) => el('option', { value: one }, one)));
  const payload = el('textarea', { id: 'payload', spellcheck: false });
  const reward = el('input', { id: 'reward', inputmode: 'decimal', required: true, value: '5.0' });
  const deadline = el('select', { id: 'deadline' }, MINUTES.map(([value, text]) => el('option', { value }, text)));
  deadline.value = '60';
  const said = el('div', { id: 'said' });
  const fields = { challenge_type: type, payload, reward, deadline };
  const fill = () => { payload.value = JSON.stringify(EXAMPLES[type.value] || {}, null, 2); said.replaceChildren(); };
  type.addEventListener('change', fill);
  fill();
  const asked = (work) => async (event) => {
    event.preventDefault();
    for (const field of Object.values(fields)) field.removeAttribute('aria-invalid');
    try {
      let parsed;
      try { parsed = JSON.parse(payload.value); } catch (error) { throw Object.assign(new Error(`The payload is not JSON: ${error.message}`), { violations: [{ field: 'payload' }] }); }
      await work(parsed);
    } catch (error) {
      if (signal.aborted) return;
      for (const { field } of error.violations || []) (fields[field] || payload).setAttribute('aria-invalid', 'true');
      said.replaceChildren(el('div', { class: 'note bad', role: 'alert' }, el('strong', {}, error.message), error.status === 401 ? 'Give your API key on the account page.' : ''));
    }
  };
  // The same request id for every try of this form: a repeated click is the same task.
  let once = {};
  for (const field of Object.values(fields)) field.addEventListener('input', () => { once = {}; });
  const send = asked(async (parsed) => {
    if (!once.deadline) once = { request_id: toHex(crypto.getRandomValues(new Uint8Array(16))), deadline: Math.floor(Date.now() / 1000) + 60 * Number(deadline.value) };
    const body = { challenge_type: type.value, payload: parsed, reward: reward.value.trim(), ...once };
    const made = await call('/tasks', { method: 'POST', body, signal });
    location.hash = `#/tasks/${made.task_id}`;
  });
  const price = asked(async (parsed) => {
    const quote = await call('/tasks:quote', { method: 'POST', body: { challenge_type: type.value, payload: parsed }, signal });
    reward.value = quote.price;
    said.replaceChildren(el('div', { class: 'note' }, el('strong', {}, `About ${quote.price} CPC`), facts([['Jobs', count(quote.jobs)], ['Operations', count(quote.operations)],
      ['Checked', `${count(quote.checked_units_per_job)} of ${count(quote.units_per_job)} units of each job`]])));
  });
  place.append(el('div', { class: 'head' }, el('div', {}, el('h1', {}, 'Publish a task'),
    el('p', { class: 'soft' }, 'The reward is held now and paid job by job, each after its audit. What is unspent comes back.'))),
  card('Order', el('form', { onsubmit: send }, el('div', { class: 'field' }, el('label', { for: 'type' }, 'Type'), type),
    el('div', { class: 'field' }, el('label', { for: 'payload' }, 'Payload, JSON'), payload, el('p', { class: 'hint' }, 'Parameters of the type; what is left out has a default.')),
    el('div', { class: 'grid tiles' }, el('div', { class: 'field' }, el('label', { for: 'reward' }, 'Reward, CPC'), reward),
      el('div', { class: 'field' }, el('label', { for: 'deadline' }, 'Deadline in'), deadline)),
    said, el('div', { class: 'row' }, el('button', { type: 'submit', class: 'primary', id: 'publish' }, 'Publish'), el('button', { type: 'button', onclick: price }, 'Suggest a price')))));
}
