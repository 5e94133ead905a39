// A task's receipt, verified here: docs/PROTOCOL.md section 8, step by step. The one thing needed besides the receipt is
// the log's key, which the reader knows from elsewhere.

import {
  InvalidProof, concat, digest, equal, fromBase64, fromHex, leafHash, need, openCheckpoint, payloadDigest, rootFromPath,
  sha256, signedBy, tagged, toHex, u32, utf8,
} from './proof.js';
import { ORDER_WITH_TERMS, SIZES, same, unpack } from './statements.js';

export const FORMAT = 'computemesh.receipt.v1';
const SIGNATURE = 64;
const KEY = 33;
const ID = 16;
const JOB_BYTES = { result: SIZES.result, commitment: SIZES.commitment, worker_signature: SIGNATURE,
  orchestrator_key: KEY, settle_id: ID, settle_signature: SIGNATURE, header: SIZES.header };
const JOB_NUMBERS = ['commitment_position', 'commitment_count', 'settle_count', 'settle_position', 'leaf_index'];
const JOB_PATHS = ['commitment_path', 'settle_path', 'compute_path', 'header_path'];
const FIELDS = ['format', 'chain', 'vkey', 'challenge_type', 'payload', 'order', 'customer_signature', 'assignments',
  'jobs', 'checkpoint'];

// --- made of what market and ledger answer ---------------------------------------------------------------------------

const hexOf = (base64) => toHex(fromBase64(base64));

// The receipt's JSON form from a task, all its proven results and the checkpoint they lead to.
export function assemble(ledger, task, proven, note) {
  const assignments = new Map(proven.map((one) => [one.assignment_id, {
    assignment: hexOf(one.assignment), tx_id: hexOf(one.assignment_id), signature: hexOf(one.assignment_signature) }]));
  return {
    format: FORMAT, chain: ledger.chain_id, vkey: ledger.vkey, challenge_type: task.challenge_type,
    payload: task.payload, order: hexOf(task.order), customer_signature: hexOf(task.order_signature),
    assignments: [...assignments.values()],
    jobs: proven.map((one) => ({
      ...Object.fromEntries(Object.keys(JOB_BYTES).map((name) => [name, hexOf(one[name])])),
      ...Object.fromEntries(JOB_NUMBERS.map((name) => [name, one[name]])),
      ...Object.fromEntries(JOB_PATHS.map((name) => [name, one[name].map(hexOf)])),
    })),
    checkpoint: note,
  };
}

// --- the strict JSON form --------------------------------------------------------------------------------------------

function bytes(value, size, path) {
  need(typeof value === 'string' && /^[0-9a-f]*$/.test(value) && value.length === 2 * size,
    `${path} is not ${size} bytes of lower-case hex`);
  return fromHex(value);
}

function fieldsOf(value, names, path) {
  need(value !== null && typeof value === 'object' && !Array.isArray(value), `${path} is not an object`);
  for (const name of names) need(name in value, `${path}.${name} is missing`);
  for (const name of Object.keys(value)) need(names.includes(name), `${path}.${name} is not a field of a receipt`);
  return value;
}

function job(value, path) {
  fieldsOf(value, [...Object.keys(JOB_BYTES), ...JOB_NUMBERS, ...JOB_PATHS], path);
  const read = {};
  for (const [name, size] of Object.entries(JOB_BYTES)) read[name] = bytes(value[name], size, `${path}.${name}`);
  for (const name of JOB_NUMBERS) {
    need(Number.isInteger(value[name]) && value[name] >= 0 && value[name] < 2 ** 32,
      `${path}.${name} is not an integer 0..2^32-1`);
    read[name] = value[name];
  }
  for (const name of JOB_PATHS) {
    need(Array.isArray(value[name]) && value[name].length <= 64, `${path}.${name} is not a list of at most 64 hashes`);
    read[name] = value[name].map((one, at) => bytes(one, 32, `${path}.${name}[${at}]`));
  }
  return read;
}

// A receipt with its bytes decoded. Throws InvalidProof naming the field.
export function load(document) {
  fieldsOf(document, FIELDS, 'receipt');
  need(document.format === FORMAT, `format is not ${FORMAT}`);
  for (const name of ['chain', 'vkey', 'challenge_type', 'checkpoint']) {
    need(typeof document[name] === 'string', `${name} is not text`);
  }
  need(Array.isArray(document.assignments) && Array.isArray(document.jobs), 'assignments and jobs are lists');
  return {
    ...document,
    order: bytes(document.order, String(document.order).startsWith('02') ? ORDER_WITH_TERMS : SIZES.order, 'order'),
    customer_signature: bytes(document.customer_signature, SIGNATURE, 'customer_signature'),
    assignments: document.assignments.map((one, at) => {
      fieldsOf(one, ['assignment', 'tx_id', 'signature'], `assignments[${at}]`);
      return { assignment: bytes(one.assignment, SIZES.assignment, `assignments[${at}].assignment`),
        tx_id: bytes(one.tx_id, ID, `assignments[${at}].tx_id`),
        signature: bytes(one.signature, SIGNATURE, `assignments[${at}].signature`) };
    }),
    jobs: document.jobs.map((one, at) => job(one, `jobs[${at}]`)),
  };
}

// --- the steps -------------------------------------------------------------------------------------------------------

const short = (data) => `${toHex(data).slice(0, 16)}\u2026`;
const transaction = (kind, chain, id, body) => digest(`tx/${kind}`, chain, concat(id, body));

async function checkOrder(receipt) {
  const order = unpack('order', receipt.order);
  const task = await digest('order', receipt.chain, receipt.order);
  need(await signedBy(order.customer_key, task, receipt.customer_signature),
    "the customer's signature is not over this order on this chain");
  return `task ${short(task)} ordered by key ${short(order.customer_key)}`;
}

async function checkPayload(receipt) {
  const order = unpack('order', receipt.order);
  need(equal(await sha256(utf8(receipt.challenge_type)), order.challenge_type_hash),
    `the order is not for a task of type ${receipt.challenge_type}`);
  const found = await payloadDigest(receipt.payload);
  need(equal(found, order.payload_digest), 'the payload is not the one that was ordered');
  return `${receipt.challenge_type} with payload ${short(found)}`;
}

const byEpoch = (receipt) => receipt.assignments.map((one) => unpack('assignment', one.assignment))
  .sort((a, b) => a.epoch - b.epoch);

async function checkAssignments(receipt) {
  const order = unpack('order', receipt.order);
  const task = await digest('order', receipt.chain, receipt.order);
  for (const [at, one] of receipt.assignments.entries()) {
    const signed = await transaction('assign', receipt.chain, one.tx_id, one.assignment);
    need(await signedBy(order.market_key, signed, one.signature),
      `assignments[${at}] is not signed by the order's market key`);
  }
  const ordered = byEpoch(receipt);
  need(ordered.length > 0, 'there is no assignment');
  need(ordered.every((one) => equal(one.task_id, task)), 'an assignment is for another task');
  need(new Set(ordered.map((one) => one.jobs)).size === 1, 'the assignments divide the task differently');
  need(new Set(ordered.map((one) => one.epoch)).size === ordered.length, 'two assignments share an epoch');
  return `jobs: ${ordered[0].jobs}; assignments signed by the market: ${ordered.length}`;
}

async function checkJobs(receipt) {
  const [last] = byEpoch(receipt).slice(-1);
  need(last, 'there is no assignment');
  const task = await digest('order', receipt.chain, receipt.order);
  const results = receipt.jobs.map((one) => unpack('result', one.result));
  need(results.length === last.jobs, `${results.length} of ${last.jobs} jobs are present`);
  need(results.every((one) => equal(one.task_id, task)), 'a result is of another task');
  need(new Set(results.map((one) => one.job).filter((one) => one < last.jobs)).size === last.jobs,
    'a job is present twice');
  return `present, each once: ${last.jobs} of ${last.jobs}`;
}

const commitmentRoot = async (one) => rootFromPath(await leafHash(one.commitment), BigInt(one.commitment_position),
  BigInt(one.commitment_count), one.commitment_path);

async function checkCommitment(receipt, one) {
  const commitment = unpack('commitment', one.commitment);
  const result = unpack('result', one.result);
  for (const field of ['task_id', 'job', 'worker_key', 'result_hash', 'nonce']) {
    need(same(commitment[field], result[field]), `the commitment's ${field} is not the result's`);
  }
  need(equal(commitment.task_id, await digest('order', receipt.chain, receipt.order)),
    'the commitment is for another task');
  return `job ${result.job} has result ${short(result.result_hash)}`;
}

async function checkWorker(receipt, one) {
  const worker = unpack('commitment', one.commitment).worker_key;
  const body = concat(u32(one.commitment_count), await commitmentRoot(one));
  need(await signedBy(worker, await digest('commitment', receipt.chain, body), one.worker_signature),
    "the worker's signature is not over the batch with this commitment");
  return `signed by worker key ${short(worker)} in a batch of ${one.commitment_count}`;
}

async function checkAuthorisation(receipt, one) {
  const bound = concat(one.orchestrator_key, await commitmentRoot(one), u32(one.commitment_position));
  need(equal(unpack('result', one.result).authorisation, await tagged('computemesh.v1/authorisation', bound)),
    'the result is not bound to this commitment and orchestrator');
  return `the result is bound to commitment ${one.commitment_position} of the batch`;
}

async function checkOrchestrator(receipt, one) {
  const epoch = unpack('commitment', one.commitment).task_epoch;
  const [current] = byEpoch(receipt).filter((each) => each.epoch <= epoch).slice(-1);
  need(current, `no assignment was in force in epoch ${epoch}`);
  need(equal(current.orchestrator_key, one.orchestrator_key),
    `the orchestrator was not the one assigned in epoch ${epoch}`);
  return `orchestrator ${short(one.orchestrator_key)} was assigned in epoch ${epoch}`;
}

async function checkSettlement(receipt, one) {
  const root = await rootFromPath(await leafHash(one.result), BigInt(one.settle_position), BigInt(one.settle_count),
    one.settle_path);
  const signed = await transaction('settle', receipt.chain, one.settle_id, concat(u32(one.settle_count), root));
  need(await signedBy(one.orchestrator_key, signed, one.settle_signature),
    "the orchestrator's signature is not over the settlement with this result");
  return `settled in a batch of ${one.settle_count}: ${one.settle_path.length} hashes lead to the signed root`;
}

async function checkBlock(receipt, one) {
  const header = unpack('header', one.header);
  need(equal(header.chain_hash, await sha256(utf8(receipt.chain))), 'the block is of another chain');
  const root = await rootFromPath(await leafHash(one.result), BigInt(one.leaf_index), BigInt(header.result_count),
    one.compute_path);
  need(equal(root, header.compute_root), "the result is not under the block's compute root");
  return `result ${one.leaf_index} of ${header.result_count} in block ${header.height}: `
    + `${one.compute_path.length} hashes lead to compute root ${short(root)}`;
}

async function checkLog(one, point) {
  const header = unpack('header', one.header);
  const root = await rootFromPath(await leafHash(one.header), header.height, point.size, one.header_path);
  need(equal(root, point.root), "the block is not in the checkpoint's tree");
  return `block ${header.height} is one of the log's ${point.size}: ${one.header_path.length} hashes lead to its root`;
}

async function checkpointOf(receipt, trustedKey) {
  const point = await openCheckpoint(receipt.checkpoint, trustedKey);
  need(point.origin === `${receipt.chain}/blocks`, `the checkpoint is of ${point.origin}, not of ${receipt.chain}/blocks`);
  return point;
}

// Each step as {name, ok, detail}, as it is done. `trustedKey` is the log's verifier key as the reader knows it. The
// receipt holds if every step did.
export async function* verify(document, trustedKey) {
  async function step(name, check) {
    try {
      return { name, ok: true, detail: await check() };
    } catch (error) {
      if (!(error instanceof InvalidProof)) throw error;
      return { name, ok: false, detail: error.message };
    }
  }
  let receipt;
  const read = await step('format', async () => {
    receipt = load(document);
    return FORMAT;
  });
  yield read;
  if (!read.ok) return;
  const point = checkpointOf(receipt, trustedKey);
  point.catch(() => {}); // awaited below, in each step that needs it
  yield step('order', () => checkOrder(receipt));
  yield step('payload', () => checkPayload(receipt));
  yield step('assignments', () => checkAssignments(receipt));
  yield step('jobs', () => checkJobs(receipt));
  for (const [at, one] of receipt.jobs.entries()) {
    yield step(`job ${at}: commitment`, () => checkCommitment(receipt, one));
    yield step(`job ${at}: worker`, () => checkWorker(receipt, one));
    yield step(`job ${at}: binding`, () => checkAuthorisation(receipt, one));
    yield step(`job ${at}: orchestrator`, () => checkOrchestrator(receipt, one));
    yield step(`job ${at}: settlement`, () => checkSettlement(receipt, one));
    yield step(`job ${at}: block`, () => checkBlock(receipt, one));
    yield step(`job ${at}: log`, async () => checkLog(one, await point));
  }
  yield step('log key', async () => {
    need(receipt.vkey === trustedKey, 'the receipt names another log key than the trusted one');
    return 'the receipt names the trusted key';
  });
  yield step('checkpoint', async () => {
    const { origin, size } = await point;
    return `${origin} at ${size} blocks, Ed25519 signature of the trusted key`;
  });
}

// --- one changed byte ------------------------------------------------------------------------------------------------

// What can be changed: where it stands in the JSON form.
export function parts(document) {
  const paths = [['order'], ['customer_signature'], ['checkpoint'], ['assignments', 0, 'assignment']];
  document.jobs.forEach((one, at) => {
    for (const name of Object.keys(JOB_BYTES)) paths.push(['jobs', at, name]);
    for (const name of JOB_PATHS) one[name].forEach((_, index) => paths.push(['jobs', at, name, index]));
  });
  return paths;
}

// A copy of the receipt with the lowest bit of one byte of a part flipped, and what it was and became.
export function changed(document, path, position) {
  const copy = structuredClone(document);
  const holder = path.slice(0, -1).reduce((at, name) => at[name], copy);
  const name = path[path.length - 1];
  const old = holder[name];
  const data = name === 'checkpoint' ? utf8(old) : fromHex(old);
  const at = position % data.length;
  const before = data[at];
  data[at] ^= 1;
  holder[name] = name === 'checkpoint' ? new TextDecoder().decode(data) : toHex(data);
  return { document: copy, at, before, after: data[at] };
}
