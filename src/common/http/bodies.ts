import type { IncomingHttpHeaders } from 'node:http';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { ConnectionCounts } from '../connection-counts';
import { AppError } from '../errors';
import { noteDropped } from './dropped-bytes';

declare module 'fastify' {
  interface FastifyRequest {
    /** Of a request whose body is still coming. */
    bodyUnderWay?: BodyUnderWay | undefined;
  }
}

export interface BodyLimits {
  /** Bodies of who shows no key: how many at once in all and from one address, and how long one may take. */
  readonly strangers: { readonly atOnce: number; readonly perAddress: number; readonly seconds: number };
  /** Bodies of who showed a key: after so many seconds they have to have come at so many bytes a second. */
  readonly known: { readonly seconds: number; readonly bytesPerSecond: number };
}

interface BodyUnderWay {
  readonly request: FastifyRequest;
  readonly reply: FastifyReply;
  readonly stranger: boolean;
  readonly since: number;
  readonly bytesBefore: number;
  /** It was given up. */
  tooSlow: boolean;
}

const LOOK_EVERY_MS = 500;
/** What is read and dropped of a body that was answered before it was there, so that its sender gets to read the answer. */
const MAX_DROPPED_BYTES = 4_194_304;
const DROP_FOR_MS = 5_000;
const DROP_SLOW_FOR_MS = 500;
const RETRY_AFTER_SECONDS = 1;

const CODED =
  'content-encoding: bodies are taken as they are; send this one uncompressed, without the header.';

export function hasBody(headers: IncomingHttpHeaders): boolean {
  return headers['transfer-encoding'] !== undefined || (headers['content-length'] ?? '0') !== '0';
}

/** Nothing here unpacks one: a small body could become a large one. */
function refuseCoded({ headers }: FastifyRequest): void {
  const coding = headers['content-encoding'];
  if (coding === undefined || /^\s*(identity)?\s*$/i.test(coding)) return;
  throw new AppError('UNSUPPORTED_MEDIA_TYPE', {
    message: CODED,
    headers: { 'accept-encoding': 'identity' },
  });
}

/** `Expect: 100-continue` is answered when everything that looks at headers alone has let the request in. To be called after those. */
export function continueBodies(server: FastifyInstance): void {
  server.addHook('onRequest', (request, reply, done) => {
    const { bodyUnderWay, raw } = request;
    if (bodyUnderWay && raw.headers.expect !== undefined && raw.httpVersionMinor === 1)
      reply.raw.writeContinue();
    done();
  });
}

/** Bodies that are still coming: how many of strangers, how long each may take, and what becomes of one nobody reads. */
export class Bodies {
  private readonly underWay = new Set<BodyUnderWay>();
  private readonly strangersOf = new ConnectionCounts();
  private strangers = 0;

  constructor(private readonly limits: BodyLimits) {}

  attach(server: FastifyInstance): void {
    const timer = setInterval(() => this.look(Date.now()), LOOK_EVERY_MS).unref();
    server.addHook('onClose', (_, done) => {
      clearInterval(timer);
      done();
    });
    server.addHook('preValidation', (request, _reply, done) => {
      const body = request.bodyUnderWay;
      if (body && request.raw.complete) this.underWay.delete(body);
      done();
    });
    server.addHook('onSend', (request, reply, _payload, done) => {
      if (!request.raw.complete && hasBody(request.headers)) this.drop(request, reply);
      done();
    });
  }

  /** Before a byte of it is kept. UNSUPPORTED_MEDIA_TYPE; RATE_LIMITED, OVERLOADED for a stranger's that is one too many. */
  begin(request: FastifyRequest, reply: FastifyReply, stranger: boolean): void {
    const { raw } = request;
    if (!hasBody(request.headers)) return;
    refuseCoded(request);
    if (raw.complete || raw.destroyed) return;
    if (stranger) this.countStranger(request);
    const body: BodyUnderWay = {
      request,
      reply,
      stranger,
      since: Date.now(),
      bytesBefore: raw.socket.bytesRead,
      tooSlow: false,
    };
    request.bodyUnderWay = body;
    this.underWay.add(body);
  }

  private countStranger({ raw, ip }: FastifyRequest): void {
    const { atOnce, perAddress } = this.limits.strangers;
    const keys = [ip];
    if (this.strangersOf.of(keys[0]!) >= perAddress) {
      throw new AppError('RATE_LIMITED', { retryAfterSeconds: RETRY_AFTER_SECONDS });
    }
    if (this.strangers >= atOnce)
      throw new AppError('OVERLOADED', { retryAfterSeconds: RETRY_AFTER_SECONDS });
    this.strangers += 1;
    this.strangersOf.add(keys);
    raw.once('close', () => {
      this.strangers -= 1;
      this.strangersOf.remove(keys);
    });
  }

  private look(now: number): void {
    for (const body of this.underWay) {
      const { raw } = body.request;
      if (raw.complete || raw.destroyed) this.underWay.delete(body);
      else if (this.isSlow(body, now)) this.end(body);
    }
  }

  private isSlow({ stranger, since, bytesBefore, request }: BodyUnderWay, now: number): boolean {
    const { strangers, known } = this.limits;
    const seconds = (now - since) / 1_000;
    if (stranger) return seconds >= strangers.seconds;
    return (
      seconds >= known.seconds && request.raw.socket.bytesRead - bytesBefore < seconds * known.bytesPerSecond
    );
  }

  private end(body: BodyUnderWay): void {
    const { request, reply } = body;
    this.underWay.delete(body);
    if (reply.sent || reply.raw.headersSent) {
      request.raw.destroy();
      return;
    }
    body.tooSlow = true;
    void reply.send(new AppError('BODY_TOO_SLOW'));
  }

  /** A connection that is closed while something comes may lose the answer: for a while it is read and dropped. */
  private drop({ raw, bodyUnderWay }: FastifyRequest, reply: FastifyReply): void {
    // Fastify says so where it gives a body up, and Node would then close at once.
    reply.removeHeader('connection');
    let left = MAX_DROPPED_BYTES;
    const leave = (): void => void raw.destroy();
    raw.on('data', (chunk: Buffer) => {
      left -= chunk.length;
      noteDropped(chunk.length);
      if (left < 0) leave();
    });
    raw.resume();
    const timer = setTimeout(leave, bodyUnderWay?.tooSlow ? DROP_SLOW_FOR_MS : DROP_FOR_MS);
    raw.once('close', () => clearTimeout(timer));
  }
}
