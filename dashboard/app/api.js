// The REST API that the edge serves beside this page (openapi.json).

import { fromBase64 } from './proof.js';

const KEY = 'computemesh.key';

// An API key typed in by the user stays in this tab. On the machine of the mesh the edge has one of its own.
export const key = {
  get: () => sessionStorage.getItem(KEY) || '',
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

// A refusal: google.rpc.Status with its reason and the fields at fault.
export class Refused extends Error {
  constructor(status, body) {
    super(body.message || `HTTP ${status}`);
    this.status = status;
    const of = (kind) => (body.details || []).find((one) => (one['@type'] || '').endsWith(kind)) || {};
    this.reason = of('ErrorInfo').reason || '';
    this.violations = of('BadRequest').field_violations || [];
  }
}

async function request(path, { method = 'GET', body, signal } = {}) {
  const headers = { ...(body ? { 'content-type': 'application/json' } : {}), ...(key.get() ? { authorization: `Bearer ${key.get()}` } : {}) };
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Refused(0, { message: 'The mesh is not reached. It may be stopped, or the network is down.' });
  }
  if (response.ok) return response;
  const text = await response.text();
  let said = {};
  try {
    said = JSON.parse(text);
  } catch {
    said = { message: text.slice(0, 300) };
  }
  throw new Refused(response.status, said);
}

export const call = async (path, options) => (await request(path, options)).json();

// The objects of a server stream, one a line.
export async function* lines(path, signal) {
  const response = await request(path, { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (rest + value).split('\n');
    rest = parts.pop();
    for (const part of parts) if (part.trim()) yield JSON.parse(part);
  }
  if (rest.trim()) yield JSON.parse(rest);
}

// A stream that begins again where it broke off: `path(last)` continues after the last object seen. Ends when the server
// ends it in order.
export async function* steady(path, signal) {
  let last = null;
  for (let wait = 500; !signal.aborted; wait = Math.min(wait * 2, 8000)) {
    try {
      for await (const one of lines(path(last), signal)) {
        last = one;
        wait = 500;
        yield one;
      }
      return;
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused && error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
      await pause(wait, signal);
    }
  }
}

export const pause = (ms, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, ms);
  signal.addEventListener('abort', () => { clearTimeout(timer); resolve(); }, { once: true });
});

// Every page of a listing, as one list; at most `most` items.
export async function pages(path, field, most, signal) {
  const found = [];
  let token = '';
  do {
    const page = await call(`${path}${path.includes('?') ? '&' : '?'}page_token=${encodeURIComponent(token)}`, { signal });
    found.push(page);
    token = page.next_page_token;
  } while (token && found.reduce((sum, page) => sum + page[field].length, 0) < most);
  return { items: found.flatMap((page) => page[field]), first: found[0], total: Number(found[0].total) };
}

// The bytes of an artifact.
export async function artifact(digest, signal) {
  const chunks = [];
  for await (const one of lines(`/artifacts/${digest}/content`, signal)) chunks.push(fromBase64(one.chunk));
  return new Blob(chunks);
}
