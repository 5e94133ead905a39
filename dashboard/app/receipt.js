// A task's receipt, verified here: docs/PROTOCOL.md section 8, step by step. The one thing needed besides the receipt is
// the log's key, which the reader knows from elsewhere.

import {
  InvalidProof, concat, digest, equal, fromBase64, fromHex, leafHash, need, openCheckpoint, payloadDigest, rootFromPath,
  sha256, signedBy, tagged, toHex, u32, utf8,
} from './proof.js';
import { ORDER_WITH_TERMS, SIZES, same, unpack } from './statements.js';

export const FORMAT = 'computemesh.receipt.v2';
// Without the places of transactions, and of whole tasks only. It is read, and not made any more.
const FIRST_FORMAT = 'computemesh.receipt.v1';
const SIGNATURE = 64;
const KEY = 33;
const ID = 16;
const JOB_BYTES = { result: SIZES.result, commitment: SIZES.commitment, worker_signature: SIGNATURE,
  orchestrator_key: KEY, settle_id: ID, settle_signature: SIGNATURE, header: SIZES.header };
const JOB = [JOB_BYTES, ['commitment_position', 'commitment_count', 'settle_count', 'settle_position', 'leaf_index'],
  ['commitment_path', 'settle_path', 'compute_path', 'header_path']];
const JOB_PLACED = [JOB_BYTES, [...JOB[1], 'settle_index'], [...JOB[2], 'settle_tx_path']];
const ASSIGNMENT = [{ assignment: SIZES.assignment, tx_id: ID, signature: SIGNATURE }, [], []];
const ASSIGNMENT_PLACED = [{ ...ASSIGNMENT[0], header: SIZES.header }, ['tx_index'], ['tx_path', 'header_path']];
const FIELDS = ['format', 'chain', 'vkey', 'challenge_type', 'payload', 'order', 'customer_signature', 'assignments',
  'jobs', 'checkpoint'];
const SECOND_FIELDS = ['partial', 'orders_id', 'orders_count', 'orders_position', 'orders_path'];

// --- made of what market and ledger answer ---------------------------------------------------------------------------

const hexOf = (base64) => toHex(fromBase64(base64));

// The receipt's JSON form from a task that ended, its escrow, its proven results and the checkpoint they lead to.
export function assemble(ledger, task, escrow, proven, note) {
  const assignments = new Map(proven.map((one) => [one.assignment_id, {
    assignment: hexOf(one.assignment), tx_id: hexOf(one.assignment_id), signature: hexOf(one.assignment_signature),
    header: hexOf(one.assignment_header), tx_index: one.assignment_index, tx_path: one.assignment_tx_path.map(hexOf),
    header_path: one.assignment_header_path.map(hexOf) }]));
  const [data, numbers, paths] = JOB_PLACED;
  return {
    format: FORMAT, chain: ledger.chain_id, vkey: ledger.vkey, challenge_type: task.challenge_type,
    payload: task.payload, order: hexOf(escrow.order), customer_signature: hexOf(escrow.order_signature),
    assignments: [...assignments.values()],
    jobs: proven.map((one) => ({
      ...Object.fromEntries(Object.keys(data).map((name) => [name, hexOf(one[name])])),
      ...Object.fromEntries(numbers.map((name) => [name, one[name]])),
      ...Object.fromEntries(paths.map((name) => [name, one[name].map(hexOf)])),
    })),
    checkpoint: note, partial: task.status !== 'TASK_STATUS_COMPLETED', orders_id: hexOf(escrow.orders_id),
    orders_count: escrow.orders_count, orders_position: escrow.orders_position,
    orders_path: escrow.orders_path.map(hexOf),
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

function count(value, path) {
  need(Number.isInteger(value) && value >= 0 && value < 2 ** 32, `${path} is not an integer 0..2^32-1`);
  return value;
}

function hashes(value, path) {
  need(Array.isArray(value) && value.length <= 64, `${path} is not a list of at most 64 hashes`);
  return value.map((one, at) => bytes(one, 32, `${path}[${at}]`));
}

function record(value, [data, numbers, paths], path) {
  fieldsOf(value, [...Object.keys(data), ...numbers, ...paths], path);
  return Object.fromEntries([
    ...Object.entries(data).map(([name, size]) => [name, bytes(value[name], size, `${path}.${name}`)]),
    ...numbers.map((name) => [name, count(value[name], `${path}.${name}`)]),
    ...paths.map((name) => [name, hashes(value[name], `${path}.${name}`)]),
  ]);
}

const orderSize = (text) => (String(text).startsWith('02') ? ORDER_WITH_TERMS : SIZES.order);

// A receipt with its bytes decoded; `placed` says whether it shows the places of its transactions. Throws InvalidProof
// naming the field.
export function load(document) {
  const placed = document === null || document.format !== FIRST_FORMAT;
  fieldsOf(document, placed ? [...FIELDS, ...SECOND_FIELDS] : FIELDS, 'receipt');
  need(document.format === FORMAT || document.format === FIRST_FORMAT, `format is not ${FORMAT} or ${FIRST_FORMAT}`);
  for (const name of ['chain', 'vkey', 'challenge_type', 'checkpoint']) {
    need(typeof document[name] === 'string', `${name} is not text`);
  }
  need(Array.isArray(document.assignments) && Array.isArray(document.jobs), 'assignments and jobs are lists');
  const read = {
    ...document,
    placed,
    partial: false,
    orders_id: new Uint8Array(),
    order: bytes(document.order, orderSize(document.order), 'order'),
    customer_signature: bytes(document.customer_signature, SIGNATURE, 'customer_signature'),
    assignments: document.assignments.map((one, at) => record(one, placed ? ASSIGNMENT_PLACED : ASSIGNMENT, `assignments[${at}]`)),
    jobs: document.jobs.map((one, at) => record(one, placed ? JOB_PLACED : JOB, `jobs[${at}]`)),
  };
  if (!placed) return read;
  need(typeof document.partial === 'boolean', 'partial is not true or false');
  return {
    ...read,
    partial: document.partial,
    orders_id: bytes(document.orders_id, document.orders_id === '' ? 0 : ID, 'orders_id'),
    orders_count: count(document.orders_count, 'orders_count'),
    orders_position: count(document.orders_position, 'orders_position'),
    orders_path: hashes(document.orders_path, 'orders_path'),
  };
}

// --- the steps -------------------------------------------------------------------------------------------------------

const short = (data) => `${toHex(data).slice(0, 16)}\u2026`;
const transaction = (kind, chain, id, body) => digest(`tx/${kind}`, chain, concat(id, body));

// What the customer signed: the order alone, or the root of a batch of orders that holds it.
async function ordered(receipt, task) {
  if (receipt.orders_id.length === 0) return task;
  const root = await rootFromPath(await leafHash(receipt.order), BigInt(receipt.orders_position),
    BigInt(receipt.orders_count), receipt.orders_path);
  return transaction('orders', receipt.chain, receipt.orders_id, concat(u32(receipt.orders_count), root));
}

async function checkOrder(receipt) {
  const order = unpack('order', receipt.order);
  const task = await digest('order', receipt.chain, receipt.order);
  need(await signedBy(order.customer_key, await ordered(receipt, task), receipt.customer_signature),
    "the customer's signature is not over this order on this chain");
  const batch = receipt.orders_id.length ? ` in a batch of ${receipt.orders_count}` : '';
  return `task ${short(task)} ordered by key ${short(order.customer_key)}${batch}`;
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
  const found = new Set(results.map((one) => one.job));
  if (receipt.partial) need(results.length > 0 && results.length < last.jobs, `it says that it is partial and has ${results.length} of ${last.jobs} jobs`);
  else need(results.length === last.jobs, `${results.length} of ${last.jobs} jobs are present`);
  need(results.every((one) => equal(one.task_id, task)), 'a result is of another task');
  need(found.size === results.length, 'a job is present twice');
  need([...found].every((one) => one < last.jobs), `a job is not among the task's ${last.jobs}`);
  return receipt.partial ? `PARTIAL: ${found.size} of ${last.jobs}; nothing is shown of the others` : `present, each once: ${last.jobs} of ${last.jobs}`;
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

async function settleDigest(receipt, one) {
  const root = await rootFromPath(await leafHash(one.result), BigInt(one.settle_position), BigInt(one.settle_count),
    one.settle_path);
  return transaction('settle', receipt.chain, one.settle_id, concat(u32(one.settle_count), root));
}

async function checkSettlement(receipt, one) {
  need(await signedBy(one.orchestrator_key, await settleDigest(receipt, one), one.settle_signature),
    "the orchestrator's signature is not over the settlement with this result");
  return `settled in a batch of ${one.settle_count}: ${one.settle_path.length} hashes lead to the signed root`;
}

// The header under whose tx_root a transaction (digest || signature) stands.
async function placed(receipt, packed, signed, index, path) {
  const header = unpack('header', packed);
  need(equal(header.chain_hash, await sha256(utf8(receipt.chain))), 'the block is of another chain');
  const root = await rootFromPath(await leafHash(signed), BigInt(index), BigInt(header.tx_count), path);
  need(equal(root, header.tx_root), "the transaction is not under the block's transaction root");
  return `transaction ${index} of ${header.tx_count} in block ${header.height}`;
}

async function checkAssigned(receipt, one, point) {
  const signed = concat(await transaction('assign', receipt.chain, one.tx_id, one.assignment), one.signature);
  const where = await placed(receipt, one.header, signed, one.tx_index, one.tx_path);
  await checkLog(one, point);
  return `assigned by ${where}`;
}

async function checkSettled(receipt, one) {
  const signed = concat(await settleDigest(receipt, one), one.settle_signature);
  return `settled by ${await placed(receipt, one.header, signed, one.settle_index, one.settle_tx_path)}`;
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
    return document.format;
  });
  yield read;
  if (!read.ok) return;
  const point = checkpointOf(receipt, trustedKey);
  point.catch(() => {}); // awaited below, in each step that needs it
  yield step('order', () => checkOrder(receipt));
  yield step('payload', () => checkPayload(receipt));
  yield step('assignments', () => checkAssignments(receipt));
  for (const [at, one] of receipt.placed ? receipt.assignments.entries() : []) {
    yield step(`assignment ${at}: log`, async () => checkAssigned(receipt, one, await point));
  }
  yield step('jobs', () => checkJobs(receipt));
  for (const [at, one] of receipt.jobs.entries()) {
    yield step(`job ${at}: commitment`, () => checkCommitment(receipt, one));
    yield step(`job ${at}: worker`, () => checkWorker(receipt, one));
    yield step(`job ${at}: binding`, () => checkAuthorisation(receipt, one));
    yield step(`job ${at}: orchestrator`, () => checkOrchestrator(receipt, one));
    yield step(`job ${at}: settlement`, () => checkSettlement(receipt, one));
    if (receipt.placed) yield step(`job ${at}: transaction`, () => checkSettled(receipt, one));
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
  const paths = [['order'], ['customer_signature'], ['checkpoint']];
  const hexIn = (value, path) => {
    if (typeof value === 'string' && value) paths.push(path);
    else if (value && typeof value === 'object') for (const [name, one] of Object.entries(value)) hexIn(one, [...path, Array.isArray(value) ? Number(name) : name]);
  };
  hexIn(document.assignments, ['assignments']);
  hexIn(document.jobs, ['jobs']);
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
