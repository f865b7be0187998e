import type { FastifyReply } from 'fastify';
import { AppError } from '../errors';
import { whileHeld } from './while-held';

/**
 * Work for a client, whose leaving aborts the signal; undefined once it is gone: nobody is left to read an error. The
 * end of its access aborts it, too, and is thrown.
 */
export async function whilePresent<T>(
  reply: FastifyReply,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T | undefined> {
  const gone = new AbortController();
  const leave = (): void => gone.abort(new Error('the client left'));
  reply.raw.once('close', leave);
  if (reply.raw.destroyed) leave();
  whileHeld(reply, (error) => gone.abort(error));
  try {
    return await work(gone.signal);
  } catch (error) {
    const reason: unknown = gone.signal.reason;
    if (reason instanceof AppError) throw reason;
    if (!gone.signal.aborted) throw error;
    return undefined;
  } finally {
    reply.raw.off('close', leave);
  }
}
