// Publishes a task and follows it over gRPC-Web. Its origin is to be among the edge's cors_origins.
//
//   npm install && npm run build && cp index.html page/ && python3 -m http.server -d page 8000

import { Code, ConnectError, createClient } from '@connectrpc/connect';
import { createGrpcWebTransport } from '@connectrpc/connect-web';
import { MarketService, TaskStatus } from './gen/computemesh/v1/market_pb.js';

const CALL_MS = 15_000;
const form = document.querySelector('form');
const [events, output] = [document.querySelector('#events'), document.querySelector('output')];

function note(text) {
  events.append(Object.assign(document.createElement('li'), { textContent: text }));
}

// Follows a task to its end; a dropped stream is resumed at the cursor of the last event.
async function watch(market, taskId, options) {
  let cursor = 0n;
  let task;
  while (!task?.endedMs) {
    try {
      for await (const event of market.watchTask({ taskId, cursor }, options)) {
        ({ cursor, task } = event);
        note(`${TaskStatus[task.status]}: ${task.jobsSettled} of ${task.jobsTotal} jobs settled`);
      }
    } catch (error) {
      if (ConnectError.from(error).code !== Code.Unavailable) throw error;
      await new Promise((resolve) => { setTimeout(resolve, 1000); });
    }
  }
  return task;
}

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  events.replaceChildren();
  output.textContent = '';
  const { edge, key, size } = Object.fromEntries(new FormData(form));
  const market = createClient(MarketService, createGrpcWebTransport({ baseUrl: edge }));
  const options = key ? { headers: { authorization: `Bearer ${key}` } } : {};
  try {
    const { task } = await market.createTask({
      challengeType: 'synthetic', payload: { matrix_size: Number(size) }, reward: '1.5',
      deadline: BigInt(Math.floor(Date.now() / 1000) + 3600), requestId: crypto.randomUUID(),
    }, { ...options, timeoutMs: CALL_MS });
    const ended = await watch(market, task.taskId, options);
    output.textContent = `${ended.taskId} ${TaskStatus[ended.status]} ${ended.resultHash}`;
  } catch (error) {
    output.textContent = `refused: ${ConnectError.from(error).rawMessage}`;
  }
});
