#!/usr/bin/env node
// Creates a task, watches it to completion, and verifies the inclusion proof of each job itself.
//
//   node publish.js [--market HOST:PORT] [--ledger HOST:PORT] [--api-key KEY] [--vkey VKEY] [--size N] [--reward CPC] [--tamper]
//
// Defaults: 127.0.0.1:7102, the market's ledger, $COMPUTEMESH_API_KEY, $COMPUTEMESH_VKEY. `--tamper` flips one byte of
// each proof before it is verified, which must be refused. Exit status 0 if everything held, 1 otherwise.
'use strict';

const crypto = require('node:crypto');
const path = require('node:path');
const { parseArgs } = require('node:util');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');
const { ProofError, verifyInclusion } = require('./proof.js');

const PROTO = process.env.COMPUTEMESH_PROTO || path.resolve(__dirname, '../../proto');
const CALL_MS = 15_000;
const TASK_MS = 300_000;
const RECONNECTS = 20;

function loadContracts() {
  const files = ['market', 'ledger'].map((name) => `computemesh/v1/${name}.proto`);
  const definition = protoLoader.loadSync(files, {
    includeDirs: [PROTO], keepCase: true, longs: String, enums: String, defaults: true, oneofs: true,
  });
  return grpc.loadPackageDefinition(definition).computemesh.v1;
}

// One unary call with a deadline, as a promise.
function call(client, method, request, metadata = new grpc.Metadata()) {
  return new Promise((resolve, reject) => {
    const options = { deadline: Date.now() + CALL_MS };
    client[method](request, metadata, options, (error, reply) => (error ? reject(error) : resolve(reply)));
  });
}

// google.protobuf.Struct of a flat object of numbers, strings and booleans.
function toStruct(values) {
  const kind = { number: 'numberValue', string: 'stringValue', boolean: 'boolValue' };
  const fields = Object.entries(values).map(([name, value]) => [name, { [kind[typeof value]]: value }]);
  return { fields: Object.fromEntries(fields) };
}

// Follows a task until it has ended; a dropped stream is resumed at the cursor of the last event.
async function watch(market, metadata, taskId, onEvent) {
  const until = Date.now() + TASK_MS;
  let cursor = '0';
  let failures = 0;
  for (;;) {
    try {
      const stream = market.WatchTask({ task_id: taskId, cursor }, metadata, { deadline: until });
      for await (const event of stream) {
        cursor = event.cursor;
        failures = 0;
        onEvent(event);
        if (event.kind === 'TASK_EVENT_KIND_ENDED') return event.task;
      }
    } catch (error) {
      if (error.code !== grpc.status.UNAVAILABLE) throw error;
    }
    failures += 1;
    if (failures > RECONNECTS) throw new Error('the market stays away');
    await new Promise((resolve) => { setTimeout(resolve, Math.min(100 * 2 ** failures, 2000)); });
  }
}

function flipOneByte(proof) {
  const data = proof.result.result;
  data[crypto.randomInt(1, data.length)] ^= 1;
}

async function main() {
  const { values: options } = parseArgs({
    options: {
      market: { type: 'string', default: process.env.COMPUTEMESH_MARKET || '127.0.0.1:7102' },
      ledger: { type: 'string', default: process.env.COMPUTEMESH_LEDGER || '' },
      'api-key': { type: 'string', default: process.env.COMPUTEMESH_API_KEY || '' },
      vkey: { type: 'string', default: process.env.COMPUTEMESH_VKEY || '' },
      size: { type: 'string', default: '256' },
      reward: { type: 'string', default: '10.0' },
      tamper: { type: 'boolean', default: false },
    },
  });
  if (!options['api-key']) throw new Error('an API key is needed: --api-key or $COMPUTEMESH_API_KEY');
  const contracts = loadContracts();
  const insecure = grpc.credentials.createInsecure();
  const market = new contracts.MarketService(options.market, insecure);
  const metadata = new grpc.Metadata();
  metadata.set('authorization', `Bearer ${options['api-key']}`);

  const info = await call(market, 'GetMarket', {});
  // Whoever has the key from elsewhere gives it; taking it from the market shows consistency, not whose log it is.
  const vkey = options.vkey || info.ledger_vkey;
  const ledger = new contracts.LedgerService(options.ledger || info.ledger_address, insecure);
  const created = await call(market, 'CreateTask', {
    challenge_type: 'synthetic',
    payload: toStruct({ matrix_size: Number(options.size) }),
    reward: options.reward,
    deadline: Math.floor(Number(info.now_ms) / 1000) + 3600,
    request_id: crypto.randomUUID(),
  }, metadata);
  const taskId = created.task.task_id;
  console.log(`task ${taskId}: ${created.task.reward} CPC held`);

  const task = await watch(market, metadata, taskId, (event) => {
    const kind = event.kind.replace('TASK_EVENT_KIND_', '').toLowerCase();
    console.log(`  ${kind}: ${event.task.jobs_settled} of ${event.task.jobs_total} jobs settled`);
  });
  if (task.status !== 'TASK_STATUS_COMPLETED') throw new Error(`the task is ${task.status}: ${task.status_detail}`);

  for (let job = 0; job < task.jobs_total; job += 1) {
    const proof = await call(ledger, 'GetInclusionProof', { task_id: taskId, job });
    if (options.tamper) flipOneByte(proof);
    const { result, header, point } = verifyInclusion(proof, taskId, job, vkey, info.chain_id);
    console.log(`job ${job}: result ${result.resultHash} is in block ${header.height}, block in the log of ${point.size}`);
  }
  console.log(`verified: checkpoint of ${info.chain_id}/blocks signed by ${vkey.split('+')[0]}`);
  market.close();
  ledger.close();
}

main().catch((error) => {
  const refused = error instanceof ProofError ? 'NOT verified: ' : '';
  console.error(`${refused}${error.details || error.message}`);
  process.exit(1);
});
