import type { FastifyReply } from 'fastify';

/** Work for a client, whose leaving aborts the signal; undefined once it is gone: nobody is left to read an error. */
export async function whilePresent<T>(
  reply: FastifyReply,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T | undefined> {
  const gone = new AbortController();
  const leave = (): void => gone.abort(new Error('the client left'));
  reply.raw.once('close', leave);
  if (reply.raw.destroyed) leave();
  try {
    return await work(gone.signal);
  } catch (error) {
    if (!gone.signal.aborted) throw error;
    return undefined;
  } finally {
    reply.raw.off('close', leave);
  }
}
