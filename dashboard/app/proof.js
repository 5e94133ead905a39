// Digests, trees, signatures and signed notes of docs/PROTOCOL.md sections 1, 2 and 7. Nothing here talks to anybody.

import { verifyAsync } from './vendor/secp256k1.js';

export class InvalidProof extends Error {}

export function need(condition, problem) {
  if (!condition) throw new InvalidProof(problem);
}

export const utf8 = (text) => new TextEncoder().encode(text);

export function concat(...parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

export function equal(a, b) {
  return a.length === b.length && a.every((byte, at) => byte === b[at]);
}

export const toHex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
export const fromHex = (text) => Uint8Array.from(text.match(/../g) || [], (pair) => parseInt(pair, 16));
export const fromBase64 = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));

export const u8 = (value) => Uint8Array.of(value);

export function u32(value) {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value);
  return bytes;
}

// Where a page comes over plain HTTP from another machine, browsers give it no cryptography.
export const cryptographyAvailable = () => Boolean(globalThis.crypto && crypto.subtle);

export async function sha256(...parts) {
  return new Uint8Array(await crypto.subtle.digest('SHA-256', concat(...parts)));
}

export async function tagged(tag, data) {
  const prefix = await sha256(utf8(tag));
  return sha256(prefix, prefix, data);
}

// digest(domain, chain, body) of section 1: what is signed.
export async function digest(domain, chain, body) {
  return tagged(`computemesh.v1/${domain}`, concat(await sha256(utf8(chain)), body));
}

// ECDSA over secp256k1, 64 bytes r || s; high S is refused. Malformed keys and signatures are just not valid.
export async function signedBy(key, message, signature) {
  try {
    return await verifyAsync(signature, message, key, { prehash: false, lowS: true });
  } catch {
    return false;
  }
}

// --- a payload's digest is over its values ---------------------------------------------------------------------------

const MAX_DEPTH = 32;

function byBytes(a, b) {
  const length = Math.min(a.length, b.length);
  for (let at = 0; at < length; at += 1) if (a[at] !== b[at]) return a[at] - b[at];
  return a.length - b.length;
}

function encode(value, depth) {
  if (value === null) return u8(0);
  if (typeof value === 'boolean') return u8(value ? 2 : 1);
  if (typeof value === 'number') {
    need(Number.isFinite(value), 'the payload has a number that is not finite');
    const bytes = new Uint8Array(9);
    bytes[0] = 3;
    new DataView(bytes.buffer).setFloat64(1, value + 0); // -0 + 0 is +0
    return bytes;
  }
  if (typeof value === 'string') {
    const text = utf8(value);
    return concat(u8(4), u32(text.length), text);
  }
  need(depth <= MAX_DEPTH, `the payload is nested deeper than ${MAX_DEPTH}`);
  if (Array.isArray(value)) return concat(u8(5), u32(value.length), ...value.map((item) => encode(item, depth + 1)));
  const keys = Object.keys(value).map((key) => [utf8(key), key]).sort(([a], [b]) => byBytes(a, b));
  return concat(u8(6), u32(keys.length),
    ...keys.map(([bytes, key]) => concat(u32(bytes.length), bytes, encode(value[key], depth + 1))));
}

export const payloadDigest = (payload) => tagged('computemesh.v1/payload', encode(payload, 1));

// --- RFC 9162 trees --------------------------------------------------------------------------------------------------

export const leafHash = (data) => sha256(u8(0), data);
const nodeHash = (left, right) => sha256(u8(1), left, right);

// The root that `path` leads to from `leaf` at `index` of a tree of `size`, RFC 9162 section 2.1.3.2. BigInt: a log may
// be large.
export async function rootFromPath(leaf, index, size, path) {
  need(index >= 0n && index < size, `leaf ${index} is not in a tree of ${size}`);
  let [position, last, node] = [index, size - 1n, leaf];
  for (const sibling of path) {
    need(sibling.length === 32, 'a hash in the path does not have 32 bytes');
    need(last !== 0n, 'the path is too long');
    if ((position & 1n) === 1n || position === last) {
      node = await nodeHash(sibling, node);
      while ((position & 1n) === 0n && position !== 0n) {
        position >>= 1n;
        last >>= 1n;
      }
    } else {
      node = await nodeHash(node, sibling);
    }
    position >>= 1n;
    last >>= 1n;
  }
  need(last === 0n, 'the path is too short');
  return node;
}

// --- C2SP signed notes (c2sp.org/signed-note, c2sp.org/tlog-checkpoint), Ed25519 -------------------------------------

function strictBase64(text, what) {
  let bytes;
  try {
    bytes = fromBase64(text);
  } catch {
    throw new InvalidProof(`${what} is not base64`);
  }
  need(btoa(String.fromCharCode(...bytes)) === text, `${what} is not canonical base64`);
  return bytes;
}

async function noteKey(vkey) {
  const [name, hash, encoded] = [vkey.split('+')[0], vkey.split('+')[1], vkey.split('+').slice(2).join('+')];
  need(name && !/\s/.test(name) && /^[0-9a-f]{8}$/.test(hash || '') && encoded, 'vkey is not name+keyhash+key');
  const raw = strictBase64(encoded, 'vkey');
  need(raw.length === 33 && raw[0] === 1, 'vkey is not an Ed25519 key');
  const id = (await sha256(utf8(name), utf8('\n'), raw)).subarray(0, 4);
  need(toHex(id) === hash, "vkey's key hash does not match its key");
  return { name, id, key: await crypto.subtle.importKey('raw', raw.subarray(1), 'Ed25519', false, ['verify']) };
}

// The checkpoint {origin, size, root} of a note that `vkey` signed.
export async function openCheckpoint(note, vkey) {
  const signer = await noteKey(vkey);
  const split = note.lastIndexOf('\n\n');
  need(split >= 0 && note.endsWith('\n'), 'note has no signature block');
  const text = note.slice(0, split + 1);
  let verified = false;
  for (const line of note.slice(split + 2, -1).split('\n')) {
    const [dash, name, encoded, ...rest] = line.split(' ');
    need(dash === '\u2014' && name && encoded && rest.length === 0, 'note has a malformed signature line');
    const signature = strictBase64(encoded, 'note signature');
    if (name !== signer.name || !equal(signature.subarray(0, 4), signer.id)) continue;
    const ok = await crypto.subtle.verify('Ed25519', signer.key, signature.subarray(4), utf8(text));
    need(ok, `note signature of ${name} is wrong`);
    verified = true;
  }
  need(verified, 'note has no signature of a trusted key');
  const [origin, size, root] = text.split('\n');
  need(/^(0|[1-9][0-9]{0,19})$/.test(size || ''), 'checkpoint size is not a plain decimal');
  const rootBytes = strictBase64(root || '', 'checkpoint root');
  need(rootBytes.length === 32, 'checkpoint root does not have 32 bytes');
  return { origin, size: BigInt(size), root: rootBytes };
}
