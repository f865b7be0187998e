// Another tenant's flood over HTTP: a process of its own, so that it takes nothing from the client that measures. Bounded
// in connections and time; whatever is answered, the next request follows at once. Commands come over IPC as in
// im-client.mjs.
import { Agent, request } from 'undici';

/** `bodyOf` parts: `#` in a path or a body becomes a number that no other request of the flood has. */
async function flood({ url, headers, requests, connections, ms, count = Infinity }) {
  const agent = new Agent({ connections, pipelining: 1, bodyTimeout: 60_000, headersTimeout: 60_000 });
  const statuses = {};
  const times = [];
  const ends = performance.now() + ms;
  let begun = 0;
  const worker = async () => {
    while (performance.now() < ends && begun < count) {
      const n = (begun += 1);
      const { method, path, body } = requests[n % requests.length];
      const numbered = (text) => text?.replaceAll('#', String(n));
      const sent = performance.now();
      try {
        const response = await request(url + numbered(path), {
          method,
          headers: body === undefined ? headers : { ...headers, 'content-type': 'application/json' },
          body: numbered(body),
          dispatcher: agent,
        });
        await response.body.dump();
        statuses[response.statusCode] = (statuses[response.statusCode] ?? 0) + 1;
      } catch (error) {
        // A server that throws the flood out may; what it does to the others is what is measured.
        statuses[error.code ?? error.name] = (statuses[error.code ?? error.name] ?? 0) + 1;
      }
      times.push(performance.now() - sent);
    }
  };
  const began = performance.now();
  await Promise.all(Array.from({ length: connections }, worker));
  await agent.destroy();
  return { statuses, times, ms: performance.now() - began };
}

process.on('message', async ({ id, ...input }) => {
  try {
    process.send({ id, result: await flood(input) });
  } catch (error) {
    process.send({ id, error: error.stack });
  }
});
process.on('disconnect', () => process.exit(0));
