#!/usr/bin/env node
// A worker of a mesh: dials an orchestrator, runs `function` jobs with what functions.js offers, is audited and paid.
// Written from proto/, docs/PROTOCOL.md and docs/work-stream.md alone.
//
//   node worker.js [--orchestrator HOST:PORT] [--data DIR] [--name NAME] [--credits N]
//
// DIR (./worker-data) holds the worker's key and nonce; whoever has the key has the money it earns. SIGTERM and Ctrl-C
// finish what is held and say goodbye.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');
const functions = require('./functions.js');
const p = require('./protocol.js');

const PROTO = process.env.COMPUTEMESH_PROTO || path.resolve(__dirname, '../../proto');
const MAX_RESULT_BYTES = 2 ** 20;
const UPLOADS_AT_ONCE = 2; // the orchestrator admits four streams on one connection, and one is Work
const BATCH = 8;
const NONCES_AHEAD = 1024;
const TOKEN_LIFE_MS = 600_000;
const UPLOAD_MS = 60_000;
const CHUNK_BYTES = 2 ** 20;
const LINE_FEED = Buffer.from('\n');
const NOTHING = Buffer.alloc(0);

function loadContracts() {
  const files = ['orchestrator', 'artifact'].map((name) => `computemesh/v1/${name}.proto`);
  const definition = protoLoader.loadSync(files, {
    includeDirs: [PROTO], keepCase: true, longs: String, enums: String, defaults: true, oneofs: true,
  });
  return { v1: grpc.loadPackageDefinition(definition).computemesh.v1, definition };
}

// Key and nonce of this worker. No nonce is handed out before a reservation that covers it is on disk.
class Identity {
  constructor(folder) {
    fs.mkdirSync(folder, { recursive: true });
    this.noncePath = path.join(folder, 'nonce');
    const keyPath = path.join(folder, 'worker.key');
    if (!fs.existsSync(keyPath)) fs.writeFileSync(keyPath, p.Key.generate().secret.toString('hex'), { mode: 0o600 });
    this.key = new p.Key(Buffer.from(fs.readFileSync(keyPath, 'ascii').trim(), 'hex'));
    this.next = fs.existsSync(this.noncePath) ? Number(fs.readFileSync(this.noncePath, 'ascii')) : 1;
    this.reserved = this.next;
  }

  nonce() {
    if (this.next >= this.reserved) {
      this.reserved = this.next + NONCES_AHEAD;
      const file = fs.openSync(`${this.noncePath}.new`, 'w');
      fs.writeSync(file, String(this.reserved));
      fs.fsyncSync(file);
      fs.closeSync(file);
      fs.renameSync(`${this.noncePath}.new`, this.noncePath);
    }
    this.next += 1;
    return this.next - 1;
  }
}

// What another worker may be able to do.
function notHere(reason, text) {
  return Object.assign(new Error(text), { kind: 'NACK_KIND_RETRYABLE', reason });
}

// One job: the units it leaves. Throws what becomes the nack.
function execute(job) {
  const { name, items, item } = p.functionParams(job.params);
  const offered = Object.hasOwn(functions, name) ? functions[name] : null;
  if (!offered) throw notHere('FUNCTION_UNKNOWN', `no function ${name} here`);
  if (items !== 1 || job.inputs.length) throw notHere('UNSUPPORTED', 'items from artifacts are not read here');
  const unit = Buffer.from(p.canonical(offered.call(JSON.parse(item.toString('utf8')))));
  if (unit.length > MAX_RESULT_BYTES) throw new Error(`${unit.length} bytes, at most ${MAX_RESULT_BYTES} are taken`);
  return [unit];
}

class Worker {
  constructor({ v1, definition }, options) {
    this.options = options;
    this.identity = new Identity(options.data);
    this.capabilities = definition['computemesh.v1.Capabilities'];
    const insecure = grpc.credentials.createInsecure();
    this.orchestrator = new v1.OrchestratorService(options.orchestrator, insecure);
    this.artifacts = new v1.ArtifactService(options.orchestrator, insecure);
    this.held = new Map(); // lease -> job, from its arrival to its commitment or nack
    this.queue = []; // of these, leases whose turn has not come
    this.finished = []; // of these, jobs whose output is stored, for the next batch
    this.answers = new Map(); // lease -> what a challenge would ask for, until the verdict
    this.busy = 0;
    this.settled = 0;
    this.leaving = false;
  }

  // Resolves once this worker has left in order; rejects where the stream breaks.
  run() {
    return new Promise((resolve, reject) => {
      const end = (error) => (this.leaving ? resolve() : reject(error));
      this.stream = this.orchestrator.Work();
      this.stream.on('data', (message) => this.take(message));
      this.stream.on('error', end);
      this.stream.on('end', () => end(new Error('the orchestrator ended the stream')));
    }).finally(() => {
      clearInterval(this.heart);
      this.orchestrator.close();
      this.artifacts.close();
    });
  }

  take(message) {
    const kinds = {
      greeting: (greeting) => this.greet(greeting),
      welcome: (welcome) => this.begin(welcome),
      jobs: ({ jobs }) => this.accept(jobs),
      challenges: ({ challenges }) => this.open(challenges),
      verdicts: ({ verdicts }) => verdicts.forEach((verdict) => this.judged(verdict)),
      revokes: ({ lease_ids: leases }) => leases.forEach((lease) => this.held.delete(lease)),
      drain: ({ cause }) => this.leave(cause),
    };
    const kind = kinds[message.message];
    if (kind) kind(message[message.message]); // what a later release adds is not for this one
  }

  // ---- the stream

  greet(greeting) {
    this.chain = greeting.chain_id;
    const { key } = this.identity;
    // The bytes that are signed are the bytes that are sent.
    const capabilities = this.capabilities.serialize({
      devices: [{ kind: 'node', platform: 'cpu' }],
      challenge_types: ['function'],
      display_name: this.options.name,
      software_version: `node ${process.versions.node}`,
      functions: Object.entries(functions).map(([name, { input, output }]) => ({
        name, input_schema: JSON.stringify(input), output_schema: JSON.stringify(output), timeout_ms: 10_000,
      })),
    });
    const body = p.helloBody(greeting.nonce, greeting.public_key, key.public, capabilities);
    this.stream.write({ hello: { public_key: key.public, capabilities, signature: key.sign('hello', this.chain, body) } });
  }

  begin({ heartbeat_interval_ms: everyMs }) {
    console.log(`joined ${this.options.orchestrator} on ${this.chain} as ${this.identity.key.public.toString('hex')}`);
    this.heart = setInterval(() => this.beat(), everyMs);
    this.stream.write({ ready: { credits: Number(this.options.credits) } });
  }

  // Names what is still worked on, whose leases this renews.
  beat() {
    const running = [...this.held.keys()];
    this.stream.write({ heartbeat: { running_lease_ids: running, utilisation: [running.length ? 1 : 0], draining: this.leaving } });
  }

  // Each committed or nacked job gives its credit back.
  giveBack(credits) {
    if (credits && !this.leaving) this.stream.write({ ready: { credits } });
    if (this.leaving && this.held.size === 0 && this.answers.size === 0) this.goodbye();
  }

  leave(cause) {
    if (this.leaving) return undefined;
    this.leaving = true;
    this.cause = cause;
    if (!this.heart) return this.goodbye(); // not welcome yet
    this.refuse();
    this.beat();
    return this.giveBack(0);
  }

  // What waits here is for others.
  refuse() {
    const nack = { kind: 'NACK_KIND_RETRYABLE', reason: 'DRAINING' };
    const leases = this.queue.splice(0).filter((lease) => this.held.delete(lease));
    if (leases.length) this.stream.write({ nacks: { nacks: leases.map((lease) => ({ ...nack, lease_id: lease })) } });
  }

  goodbye() {
    this.stream.write({ goodbye: { cause: this.cause } });
    this.stream.end();
  }

  // ---- jobs

  accept(jobs) {
    for (const job of jobs) {
      this.held.set(job.lease_id, job);
      this.queue.push(job.lease_id);
    }
    if (this.leaving) this.refuse();
    this.work();
  }

  work() {
    while (this.busy < UPLOADS_AT_ONCE && this.queue.length) {
      const job = this.held.get(this.queue.shift());
      if (!job) continue; // revoked while it waited
      this.busy += 1;
      this.one(job).catch((error) => this.nack(job, error)).finally(() => {
        this.busy -= 1;
        // All that finished meanwhile shares one signature; a full batch does not wait for the last job.
        if (this.finished.length && (this.busy === 0 || this.finished.length >= BATCH)) this.commit();
        this.work();
      });
    }
  }

  // Runs a job and stores what it leaves: each unit and a line feed (section 5).
  async one(job) {
    const units = execute(job);
    const digests = units.map(p.unitDigest);
    const output = await this.upload(Buffer.concat(units.flatMap((unit) => [unit, LINE_FEED])));
    const listed = units.length > 1 ? await this.upload(Buffer.concat(digests)) : NOTHING;
    if (this.held.has(job.lease_id)) this.finished.push({ job, units, digests, output, listed });
  }

  nack(job, error) {
    if (!this.held.delete(job.lease_id)) return;
    const { kind = 'NACK_KIND_POISON', reason = 'FUNCTION_FAILED' } = error;
    const detail = String(error.message).slice(0, 1024);
    console.log(`job ${job.index} of ${job.task_id.toString('hex')}: ${reason}: ${detail}`);
    this.stream.write({ nacks: { nacks: [{ lease_id: job.lease_id, kind, reason, detail }] } });
    this.giveBack(1);
  }

  // Only now the results are this worker's word: they cannot be changed any more.
  commit() {
    const rows = this.finished.splice(0).filter(({ job }) => this.held.delete(job.lease_id));
    if (!rows.length) return;
    const { key } = this.identity;
    const commitments = rows.map(({ job, units, digests }) => {
      const bytes = p.commitment(job, key, p.resultHash(digests), this.identity.nonce());
      this.answers.set(job.lease_id, { units, digests, leaf: p.leafHash(bytes) });
      return bytes;
    });
    this.stream.write({
      commitments: {
        lease_ids: rows.map(({ job }) => job.lease_id),
        commitments: Buffer.concat(commitments),
        signature: p.signCommitments(key, this.chain, commitments),
        outputs: rows.map(({ output }) => output),
        unit_digests: rows.map(({ listed }) => listed),
        env_class: `node/${process.versions.v8}/`,
      },
    });
    this.giveBack(rows.length);
  }

  // ---- audits

  open(challenges) {
    const openings = challenges.flatMap(({ lease_id: lease, seed, k }) => {
      const answer = this.answers.get(lease);
      if (!answer) return []; // its verdict crossed the challenge
      return [{ lease_id: lease, openings: p.openings(answer.units, answer.digests, seed, answer.leaf, k) }];
    });
    if (openings.length) this.stream.write({ openings: { openings } });
  }

  judged({ lease_ids: leases, kind, reason }) {
    for (const lease of leases) this.answers.delete(lease);
    if (kind === 'VERDICT_KIND_SETTLED') this.settled += leases.length;
    console.log(`${leases.length} ${kind.replace('VERDICT_KIND_', '').toLowerCase()} ${reason}, ${this.settled} settled so far`);
    this.giveBack(0);
  }

  // ---- artifacts (docs/artifacts.md)

  upload(bytes) {
    const digest = p.sha256(bytes);
    const metadata = new grpc.Metadata();
    metadata.set('authorization', `Bearer ${p.bearerToken(this.identity.key, this.chain, Date.now() + TOKEN_LIFE_MS)}`);
    return new Promise((resolve, reject) => {
      const call = this.artifacts.UploadArtifact(metadata, { deadline: Date.now() + UPLOAD_MS });
      let asked = false;
      call.on('data', ({ offset, artifact }) => {
        if (artifact) {
          resolve(digest); // checked and durable there
        } else if (!asked) {
          asked = true;
          for (let at = Number(offset); at < bytes.length; at += CHUNK_BYTES) {
            call.write({ chunk: bytes.subarray(at, at + CHUNK_BYTES) });
          }
          call.end();
        }
      });
      call.on('error', (error) => {
        reject(Object.assign(error, { kind: 'NACK_KIND_RETRYABLE', reason: 'OUTPUT_NOT_STORED' }));
      });
      call.write({ declaration: { digest: digest.toString('hex'), size: bytes.length } });
    });
  }
}

async function main() {
  const { values: options } = parseArgs({
    options: {
      orchestrator: { type: 'string', default: process.env.COMPUTEMESH_ORCHESTRATOR || '127.0.0.1:7103' },
      data: { type: 'string', default: 'worker-data' },
      name: { type: 'string', default: 'node' },
      credits: { type: 'string', default: '16' },
    },
  });
  const worker = new Worker(loadContracts(), options);
  for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => worker.leave(`stopped by ${signal}`));
  await worker.run();
  console.log(`left, ${worker.settled} jobs settled`);
}

if (require.main === module) {
  main().catch((error) => {
    console.error(error.details || error.message);
    process.exit(1);
  });
}
