import { eventually } from '../support/app';
import { Im, type Frame } from '../support/im-rest';
import { Server } from '../support/server';

const imOf = ({ quickstart: { url, apiKey } }: Server): Im => new Im(url, apiKey);
const RECIPIENTS = 600;

it('killed in the middle of a broadcast: the next process goes on, and everybody has it once', async () => {
  let server = await Server.start();
  try {
    const users = Array.from({ length: RECIPIENTS }, (_, index) => `u${index}`);
    // Without a msgId: the log has to know its own.
    const accepted = await imOf(server).post('/broadcasts', { users, msg: { content: 'once' } });
    expect(accepted.status).toBe(202);
    const path = `/broadcasts/${String(accepted.body.id)}`;
    await eventually(async () => (await imOf(server).get(path)).body.stored > 0);
    await server.end('SIGKILL');

    server = await Server.start({}, server.dataDir);
    const im = imOf(server);
    const done = await eventually(async () => {
      const { body } = await im.get(path);
      return body.status === 'finished' && (body as Frame);
    }, 60_000);
    expect(done).toMatchObject({ recipients: RECIPIENTS, stored: RECIPIENTS, repeated: 0, failed: 0 });
    const counts = new Set<number>();
    for (const user of users) {
      const { body } = await im.get(`/conversations?userId=${user}`);
      counts.add((body.data as Frame[])[0]!.lastSeq as number);
    }
    expect([...counts]).toEqual([1]);
  } finally {
    await server.remove();
  }
}, 120_000);
