// The verification, from docs/PROTOCOL.md: RFC 9162 inclusion proofs (section 2.1.3.2), the fixed layouts of the result
// and the header, and the C2SP signed note of the checkpoint. Nothing here talks to anybody.
'use strict';

const crypto = require('node:crypto');

const RESULT_BYTES = 174;
const HEADER_BYTES = 185;

class ProofError extends Error {}

function need(condition, problem) {
  if (!condition) throw new ProofError(problem);
}

const sha256 = (...parts) => crypto.createHash('sha256').update(Buffer.concat(parts)).digest();
const leafHash = (data) => sha256(Buffer.from([0]), data);
const nodeHash = (left, right) => sha256(Buffer.from([1]), left, right);

// The root that `path` leads to from `leaf` at `index` of a tree of `size` (BigInt: a log may be large).
function rootFromPath(leaf, index, size, path) {
  need(index >= 0n && index < size, `leaf ${index} is not in a tree of ${size}`);
  let position = index;
  let last = size - 1n;
  let node = leaf;
  for (const sibling of path) {
    need(sibling.length === 32, 'a hash in the path does not have 32 bytes');
    need(last !== 0n, 'the path is too long');
    if ((position & 1n) === 1n || position === last) {
      node = nodeHash(sibling, node);
      while ((position & 1n) === 0n && position !== 0n) {
        position >>= 1n;
        last >>= 1n;
      }
    } else {
      node = nodeHash(node, sibling);
    }
    position >>= 1n;
    last >>= 1n;
  }
  need(last === 0n, 'the path is too short');
  return node;
}

// version | 32 task_id | u32 job | 33 worker_key | 32 result_hash | 32 proof_hash | u64 nonce | 32 authorisation
function parseResult(data) {
  need(data.length === RESULT_BYTES, `a result has ${RESULT_BYTES} bytes, not ${data.length}`);
  need(data[0] === 1, 'unknown version of a result');
  return {
    taskId: data.subarray(1, 33).toString('hex'),
    job: data.readUInt32BE(33),
    workerKey: data.subarray(37, 70).toString('hex'),
    resultHash: data.subarray(70, 102).toString('hex'),
  };
}

// version | 32 chain | u64 height | 32 previous | u64 time | 32 tx_root | 32 compute_root | 32 state_root | u32 txs | u32 results
function parseHeader(data) {
  need(data.length === HEADER_BYTES, `a header has ${HEADER_BYTES} bytes, not ${data.length}`);
  need(data[0] === 1, 'unknown version of a header');
  return {
    chainHash: data.subarray(1, 33),
    height: data.readBigUInt64BE(33),
    computeRoot: data.subarray(113, 145),
    resultCount: BigInt(data.readUInt32BE(181)),
  };
}

function decodeBase64(text, what) {
  const raw = Buffer.from(text, 'base64');
  need(raw.toString('base64') === text, `${what} is not canonical base64`);
  return raw;
}

// vkey: name+keyhash+base64(0x01 || Ed25519 key); keyhash = SHA-256(name || 0x0A || 0x01 || key)[:4] in hexadecimal.
function parseVkey(vkey) {
  const [name, hash, ...rest] = vkey.split('+');
  const key = decodeBase64(rest.join('+'), 'the verifier key');
  need(key.length === 33 && key[0] === 1, 'the verifier key is not Ed25519');
  const expected = sha256(Buffer.from(`${name}\n`), key).subarray(0, 4).toString('hex');
  need(expected === hash, "the verifier key's hash does not match it");
  const spki = Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), key.subarray(1)]); // RFC 8410
  return { name, hash, key: crypto.createPublicKey({ key: spki, format: 'der', type: 'spki' }) };
}

// The checkpoint in a signed note that the key signed: text, blank line, lines "— name base64(keyhash || signature)".
function openCheckpoint(note, vkey, chain) {
  const trusted = parseVkey(vkey);
  const at = note.lastIndexOf('\n\n');
  need(at >= 0 && note.endsWith('\n'), 'the note has no signature block');
  const text = note.slice(0, at + 1);
  let signed = false;
  for (const line of note.slice(at + 2, -1).split('\n')) {
    const match = /^\u2014 (\S+) (\S+)$/.exec(line);
    need(match, 'the note has a malformed signature line');
    const signature = decodeBase64(match[2], 'the note signature');
    if (match[1] !== trusted.name || signature.subarray(0, 4).toString('hex') !== trusted.hash) continue;
    need(
      crypto.verify(null, Buffer.from(text), trusted.key, signature.subarray(4)),
      `the note signature of ${trusted.name} is wrong`,
    );
    signed = true;
  }
  need(signed, 'the note has no signature of the trusted key');
  const [origin, size, root] = text.split('\n');
  need(origin === `${chain}/blocks`, `the checkpoint is of ${origin}, not of ${chain}/blocks`);
  need(/^(0|[1-9][0-9]*)$/.test(size), 'the checkpoint size is not a number');
  const raw = decodeBase64(root, 'the checkpoint root');
  need(raw.length === 32, 'the checkpoint root does not have 32 bytes');
  return { origin, size: BigInt(size), root: raw };
}

// Result in block, block in log, log signed. `proof` is a GetInclusionProofResponse; throws ProofError.
function verifyInclusion(proof, taskId, job, vkey, chain) {
  const proven = proof.result;
  const result = parseResult(proven.result);
  need(result.taskId === taskId && result.job === job, 'the result is of another job');
  const header = parseHeader(proven.header);
  need(header.chainHash.equals(sha256(Buffer.from(chain))), 'the block is of another chain');
  const computeRoot = rootFromPath(
    leafHash(proven.result), BigInt(proven.leaf_index), header.resultCount, proven.compute_path,
  );
  need(computeRoot.equals(header.computeRoot), "the result is not under the block's compute root");
  const point = openCheckpoint(proof.checkpoint.note, vkey, chain);
  const logRoot = rootFromPath(leafHash(proven.header), header.height, point.size, proven.header_path);
  need(logRoot.equals(point.root), "the block is not in the checkpoint's tree");
  return { result, header, point };
}

module.exports = { ProofError, verifyInclusion };
