// docs/PROTOCOL.md as far as a worker needs it: digests, trees, statements, samples, openings. Nothing here talks to
// anybody. Section numbers are that page's.
'use strict';

const crypto = require('node:crypto');
const { secp256k1 } = require('@noble/curves/secp256k1');
const { blake3 } = require('@noble/hashes/blake3');

const sha256 = (...parts) => crypto.createHash('sha256').update(Buffer.concat(parts)).digest();
const u32 = (number) => { const out = Buffer.alloc(4); out.writeUInt32BE(number); return out; };
const u64 = (number) => { const out = Buffer.alloc(8); out.writeBigUInt64BE(BigInt(number)); return out; };

// ---- section 1: digests and signatures

function tagged(tag, data) {
  const prefix = sha256(Buffer.from(tag));
  return sha256(prefix, prefix, data);
}

function digest(domain, chain, body) {
  return tagged(`computemesh.v1/${domain}`, Buffer.concat([sha256(Buffer.from(chain)), body]));
}

class Key {
  constructor(secret) {
    this.secret = secret;
    this.public = Buffer.from(secp256k1.getPublicKey(secret, true));
  }

  static generate() {
    return new Key(Buffer.from(secp256k1.utils.randomPrivateKey()));
  }

  // ECDSA, RFC 6979, low S, 64 bytes r || s.
  sign(domain, chain, body) {
    return Buffer.from(secp256k1.sign(digest(domain, chain, body), this.secret, { lowS: true }).toCompactRawBytes());
  }
}

// ---- section 2: RFC 9162 trees

const leafHash = (data) => sha256(Buffer.from([0]), data);
const nodeHash = (left, right) => sha256(Buffer.from([1]), left, right);

// The largest power of two smaller than `count`.
function split(count) {
  let half = 1;
  while (half * 2 < count) half *= 2;
  return half;
}

function root(leaves) {
  if (leaves.length === 0) return sha256();
  if (leaves.length === 1) return leaves[0];
  const half = split(leaves.length);
  return nodeHash(root(leaves.slice(0, half)), root(leaves.slice(half)));
}

// The path of leaf `index`, from the leaf upwards.
function path(leaves, index) {
  if (leaves.length <= 1) return [];
  const half = split(leaves.length);
  return index < half
    ? [...path(leaves.slice(0, half), index), root(leaves.slice(half))]
    : [...path(leaves.slice(half), index - half), root(leaves.slice(0, half))];
}

// ---- section 4: statements

function helloBody(nonce, theirKey, ownKey, capabilities) {
  return Buffer.concat([nonce, theirKey, ownKey, sha256(capabilities)]);
}

function commitment(job, key, resultHash, nonce) {
  return Buffer.concat([
    Buffer.from([1]), job.task_id, u32(job.index), u32(job.task_epoch), u32(job.attempt), key.public, resultHash, u64(nonce),
  ]);
}

// One signature for a batch: domain `commitment`, body u32 count || root.
function signCommitments(key, chain, commitments) {
  return key.sign('commitment', chain, Buffer.concat([u32(commitments.length), root(commitments.map(leafHash))]));
}

function bearerToken(key, chain, expiresMs) {
  const body = Buffer.concat([key.public, u64(expiresMs)]);
  return `cm1.${Buffer.concat([body, key.sign('token', chain, body)]).toString('base64url')}`;
}

// ---- section 5: units

// A unit's digest, and the result hash over all of a job's (one segment).
const unitDigest = (unit) => Buffer.from(blake3(unit));
const resultHash = (digests) => root(digests.map(leafHash));

// Params of a `function` job: u8 version | u8 name length | u32 timeout_s | u32 first | u32 items | 32 inputs | name | item
function functionParams(params) {
  if (params.length <= 46 || params[0] !== 1) throw new Error('not the params of a function job');
  const end = 46 + params[1];
  return {
    timeoutS: params.readUInt32BE(2),
    first: params.readUInt32BE(6),
    items: params.readUInt32BE(10),
    inputs: params.subarray(14, 46),
    name: params.subarray(46, end).toString('ascii'),
    item: params.subarray(end),
  };
}

// JSON in the one form that is hashed: keys by code point, no blanks, raw UTF-8, numbers as section 5 says.
function canonical(value) {
  if (typeof value === 'number') return canonicalNumber(value);
  if (typeof value === 'string') {
    if (!value.isWellFormed()) throw new Error('a lone surrogate is not text');
    return JSON.stringify(value);
  }
  if (value === null || typeof value === 'boolean') return String(value);
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
  const keys = Object.keys(value).sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  return `{${keys.map((key) => `${canonical(key)}:${canonical(value[key])}`).join(',')}}`;
}

function canonicalNumber(value) {
  if (!Number.isFinite(value)) throw new Error(`${value} is not JSON`);
  if (Number.isInteger(value) && Math.abs(value) < 1e21) return BigInt(value).toString();
  const small = Math.abs(value) < 1e-4;
  const text = small || Math.abs(value) >= 1e21 ? value.toExponential() : String(value);
  return text.replace(/e([+-])(\d)$/, 'e$10$2'); // at least two digits of exponent
}

// ---- section 6: samples and openings

function* drawn(seed, leaf) {
  const prefix = tagged('computemesh.v1/challenge', Buffer.concat([seed, leaf]));
  for (let counter = 0; ; counter += 1) {
    const block = sha256(prefix, u32(counter));
    for (let at = 0; at < 32; at += 8) yield block.readBigUInt64BE(at);
  }
}

// `k` distinct of `n` units, in the order of drawing (Floyd's algorithm).
function sample(seed, leaf, n, k) {
  if (k >= n) return Array.from({ length: n }, (_, index) => index);
  const words = drawn(seed, leaf);
  const taken = new Set();
  for (let top = n - k; top < n; top += 1) {
    const bound = BigInt(top + 1);
    const limit = (2n ** 64n / bound) * bound;
    let word = words.next().value;
    while (word >= limit) word = words.next().value;
    const index = Number(word % bound);
    taken.add(taken.has(index) ? top : index);
  }
  return [...taken];
}

// The answer to a challenge: per unit u64 index || u32 length || unit || u32 length || path || u32 0 (first segment).
function openings(units, digests, seed, leaf, k) {
  const leaves = digests.map(leafHash);
  return Buffer.concat(sample(seed, leaf, units.length, k).flatMap((index) => {
    const way = Buffer.concat(path(leaves, index));
    return [u64(index), u32(units[index].length), units[index], u32(way.length), way, u32(0)];
  }));
}

module.exports = {
  Key, bearerToken, canonical, commitment, functionParams, helloBody, leafHash, openings, resultHash, sample, sha256,
  signCommitments, unitDigest,
};
