import type { FastifyInstance } from 'fastify';

/** Smaller ones fit into what the kernel takes. */
const LARGE_BYTES = 65_536;

/** An answer that is sent whole waits in memory until it is read: its client is given up when it reads nothing for so long. */
export function giveUpSlowReaders(server: FastifyInstance, ms: number): void {
  server.addHook('onSend', async (_request, reply, payload) => {
    const small =
      payload === null ||
      payload === undefined ||
      ((typeof payload === 'string' || Buffer.isBuffer(payload)) && payload.length < LARGE_BYTES);
    // Node looks whether anything has left before it calls that a time-out, and takes its own one back after the answer.
    if (!small) reply.raw.setTimeout(ms, () => reply.raw.destroy());
  });
}
