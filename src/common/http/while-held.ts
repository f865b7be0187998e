import type { FastifyReply } from 'fastify';
import type { AppError } from '../errors';

declare module 'fastify' {
  interface FastifyRequest {
    /** Of a request with a key: calls back once when the access that let it in ends. Returns what ends the watch. */
    hold?: (lost: (error: AppError) => void) => () => void;
  }
}

/** For an answer that takes its time: calls back once, when the access it rests on ends before it does. */
export function whileHeld(reply: FastifyReply, lost: (error: AppError) => void): void {
  const release = reply.request.hold?.(lost);
  if (!release) return;
  if (reply.raw.destroyed) release();
  else reply.raw.once('close', release);
}
