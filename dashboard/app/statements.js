// The fixed layouts of docs/PROTOCOL.md section 4: one length and one version each, checked before anything is read.

import { need, toHex } from './proof.js';

const hash = { size: 32, read: (view, bytes) => bytes };
const bytesOf = (size) => ({ size, read: (view, bytes) => bytes });
const u8 = { size: 1, read: (view) => view.getUint8(0) };
const u32 = { size: 4, read: (view) => view.getUint32(0) };
const u64 = { size: 8, read: (view) => view.getBigUint64(0) };

const LAYOUTS = {
  order: { request_id: bytesOf(16), customer_key: bytesOf(33), market_key: bytesOf(33), challenge_type_hash: hash,
    payload_digest: hash, reward_units: u64, deadline_ms: u64, priority: u8 },
  assignment: { task_id: hash, orchestrator_key: bytesOf(33), epoch: u32, jobs: u32 },
  commitment: { task_id: hash, job: u32, task_epoch: u32, attempt: u32, worker_key: bytesOf(33), result_hash: hash,
    nonce: u64 },
  result: { task_id: hash, job: u32, worker_key: bytesOf(33), result_hash: hash, proof_hash: hash, nonce: u64,
    authorisation: hash },
  header: { chain_hash: hash, height: u64, previous: hash, time_ms: u64, tx_root: hash, compute_root: hash,
    state_root: hash, tx_count: u32, result_count: u32 },
};

export const SIZES = Object.fromEntries(Object.entries(LAYOUTS).map(([kind, layout]) => [
  kind, 1 + Object.values(layout).reduce((sum, field) => sum + field.size, 0)]));

// An order of version 2 says its terms after the fields of version 1: u8 delivery | u8 responses | u32 window |
// 20 payer | 32 model.
export const ORDER_WITH_TERMS = SIZES.order + 58;
const plain = (order) => (order[0] === 2 && order.length === ORDER_WITH_TERMS
  ? Uint8Array.of(1, ...order.subarray(1, SIZES.order)) : order);

// The fields of a statement; numbers of 64 bits are BigInt.
export function unpack(kind, statement) {
  const data = kind === 'order' ? plain(statement) : statement;
  need(data.length === SIZES[kind], `${kind} has ${data.length} bytes, not ${SIZES[kind]}`);
  need(data[0] === 1, `${kind}.version is ${data[0]}, not 1`);
  const fields = {};
  let at = 1;
  for (const [name, field] of Object.entries(LAYOUTS[kind])) {
    const bytes = data.subarray(at, at + field.size);
    fields[name] = field.read(new DataView(bytes.buffer, bytes.byteOffset, bytes.length), bytes);
    at += field.size;
  }
  return fields;
}

export const same = (a, b) => (a instanceof Uint8Array ? toHex(a) === toHex(b) : a === b);
