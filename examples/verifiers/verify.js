// Checks a mesh ledger's proofs with @sigstore/verify (npm) and nothing of the mesh.
//
//   node verify.js proof VKEY ORIGIN FILE.tlog-proof
//   node verify.js -            the same, one JSON array of arguments a line on stdin
'use strict';
const fs = require('fs');
const crypto = require('crypto');
const path = require('path');
const readline = require('readline');

const root = process.env.SIGSTORE_VERIFY || '@sigstore/verify';
const { verifyCheckpoint } = require(path.posix.join(root, 'dist/tlog/checkpoint'));
const { verifyMerkleInclusion } = require(path.posix.join(root, 'dist/tlog/merkle'));
const ED25519 = Buffer.from('302a300506032b6570032100', 'hex'); // DER before the 32 bytes of a public key

function authority(vkey) {
  const [name, hash, ...rest] = vkey.split('+');
  const raw = Buffer.from(rest.join('+'), 'base64');
  if (raw.length !== 33 || raw[0] !== 1) throw new Error('not an Ed25519 verifier key');
  const publicKey = crypto.createPublicKey({
    key: Buffer.concat([ED25519, raw.subarray(1)]), format: 'der', type: 'spki',
  });
  return { baseURL: name, logID: Buffer.from(hash, 'hex'), publicKey };
}

function proof(vkey, origin, file) {
  const text = fs.readFileSync(file, 'utf8');
  const split = text.indexOf('\n\n');
  const [format, extra, index, ...hashes] = text.slice(0, split).split('\n');
  if (split < 0 || format !== 'c2sp.org/tlog-proof@v1' || !extra.startsWith('extra ') || !index.startsWith('index ')) {
    throw new Error('not a tlog-proof with its entry');
  }
  const entry = {
    canonicalizedBody: Buffer.from(extra.slice(6), 'base64'),
    inclusionProof: {
      logIndex: index.slice(6),
      hashes: hashes.map((line) => Buffer.from(line, 'base64')),
      checkpoint: { envelope: text.slice(split + 2) },
    },
  };
  const checkpoint = verifyCheckpoint(entry, [authority(vkey)]);
  if (checkpoint.origin !== origin) throw new Error(`checkpoint is of ${checkpoint.origin}, not of ${origin}`);
  verifyMerkleInclusion(entry, checkpoint);
}

function check(words) {
  try {
    if (words.length !== 4 || words[0] !== 'proof') throw new Error('usage: verify.js proof VKEY ORIGIN FILE');
    proof(words[1], words[2], words[3]);
    console.log('ok');
    return 0;
  } catch (error) {
    console.log(`refused: ${error.message.replace(/\n/g, ' ')}`);
    return 1;
  }
}

if (process.argv[2] === '-') {
  readline.createInterface({ input: process.stdin }).on('line', (line) => check(JSON.parse(line)));
} else {
  process.exitCode = check(process.argv.slice(2));
}
