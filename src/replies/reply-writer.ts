import { Injectable, Logger } from '@nestjs/common';
import { ENDING_PATIENCE_MS, ERRORS, untilStored, wellFormed, type ErrorCode } from '../common';
import { Config } from '../config';
import { Database, tenantScope } from '../database';
import { endReply, storeStep, type FinalStatus } from '../messages';
import {
  appErrorOf,
  estimatePromptTokens,
  estimateTokens,
  NO_USAGE,
  ProviderError,
  type TextResult,
  type TextUsage,
} from '../model-services';
import { StreamLog, type StreamEnd } from '../realtime';
import { chargedOf, creditsOf, recordUsage, settleUsage } from '../usage';
import { LiveReplies } from './live-replies';
import { ReplyAborted, type LiveReply } from './live-reply';
import { ToolRunner, type ToolStep } from './tool-runner';

interface Ending {
  readonly status: FinalStatus;
  readonly result?: TextResult;
  readonly attempts: number;
  readonly error?: { readonly code: number; readonly message: string };
}

/** Runs one reply against its provider and ends it, durably first, whatever happens. */
@Injectable()
export class ReplyWriter {
  private readonly logger = new Logger(ReplyWriter.name);

  constructor(
    private readonly config: Config,
    private readonly database: Database,
    private readonly tools: ToolRunner,
    private readonly streams: StreamLog,
    private readonly live: LiveReplies,
  ) {}

  /** Never rejects: every failure is an ending. */
  async write(reply: LiveReply): Promise<void> {
    try {
      const ending = await this.ask(reply);
      const end = await this.store(reply, ending);
      this.streams.end(reply.id, end);
    } catch (error) {
      this.logger.error({ err: error, replyId: reply.id }, 'a reply could not be ended');
      this.live.abandon({ tenantId: reply.settings.tenantId, replyId: reply.id });
      this.streams.end(reply.id, {
        status: 'failed',
        promptTokens: 0,
        completionTokens: 0,
        totalTokens: 0,
        credits: 0,
        error: { code: ERRORS.INTERNAL.status, message: ERRORS.INTERNAL.message },
      });
    } finally {
      this.live.remove(reply);
    }
  }

  private async ask(reply: LiveReply): Promise<Ending> {
    const { service, prompt, parameters, tools } = reply.settings;
    const { signal } = reply.abortController;
    const maxChars = this.config.env.MAX_REPLY_CHARS;
    try {
      signal.throwIfAborted();
      const result = await this.tools.run(
        { service, messages: prompt, parameters, signal, tools },
        {
          pieces: (pieces) => {
            if (signal.aborted) return;
            const clean = pieces.map(storable);
            reply.firstPieceAt ??= Date.now();
            this.streams.append(reply.id, clean);
            if (reply.written.length > maxChars) reply.abortController.abort(new ReplyTooLong());
          },
          reasoning: (pieces) => {
            if (signal.aborted) return;
            const content = storable(pieces.join(''));
            reply.reasoning += content;
            this.streams.aside(reply.id, { type: 'think', content });
            if (reply.reasoning.length > maxChars) reply.abortController.abort(new ReplyTooLong());
          },
          aside: (aside) => this.streams.aside(reply.id, aside),
          step: (step) => this.keep(reply, step),
        },
      );
      return { status: 'finished', result, attempts: result.attempts };
    } catch (error) {
      const reason: unknown = signal.aborted ? signal.reason : error;
      if (reason instanceof ReplyAborted) return { status: reason.status, attempts: 1 };
      if (reason instanceof ReplyTooLong)
        return failed('PROVIDER_FAILED', 'The reply is over the length limit.', 1);
      if (reason instanceof ProviderError) {
        return failed(appErrorOf(reason).code, reason.message, reason.details.attempts);
      }
      this.logger.error({ err: reason, replyId: reply.id }, 'unexpected failure while writing a reply');
      return failed('INTERNAL', ERRORS.INTERNAL.message, 1);
    }
  }

  /** A database that is away costs the record of a call, not the reply. */
  private async keep({ id, settings: { tenantId } }: LiveReply, step: ToolStep): Promise<void> {
    try {
      await this.database.one(tenantScope(tenantId), storeStep({ tenantId, replyId: id, ...step }));
    } catch (error) {
      this.logger.error({ err: error, replyId: id }, 'a call of a tool was not stored');
    }
  }

  /** One transaction: status, text, counts and the ledger's row. Waits for a database that is away. */
  private async store(reply: LiveReply, ending: Ending): Promise<StreamEnd> {
    const { tenantId, dialogueId, keyId, keyName, userId, assistantId, service, wire, reserved } =
      reply.settings;
    const told = ending.result?.usage;
    const gaveNothing = ending.status === 'failed' && reply.written.length === 0 && reply.reasoning === '';
    const { promptTokens, completionTokens, totalTokens } =
      told ?? (gaveNothing ? NO_USAGE : estimate(reply));
    const estimated = !told;
    const credits = creditsOf({ promptTokens, completionTokens }, service);
    const counts = { promptTokens, completionTokens, totalTokens, credits };
    const { reasoning, startedAt, firstPieceAt } = reply;
    const text = reply.written.textFrom(0);
    const now = Date.now();
    const statements = [
      endReply({
        tenantId,
        replyId: reply.id,
        dialogueId,
        status: ending.status,
        content: text,
        reasoning,
        ...counts,
        estimated,
        error: ending.error ?? null,
        updatedBy: keyName,
        byOwner: true,
      }),
      recordUsage({
        tenantId,
        messageId: reply.id,
        keyId,
        userId,
        assistantId,
        modelServiceId: service.id,
        attempts: ending.attempts,
        ...counts,
        estimated,
        outcome: ending.status,
        firstPieceMs: firstPieceAt === undefined ? null : firstPieceAt - startedAt,
        latencyMs: now - startedAt,
        wire,
        charged: chargedOf(service),
      }),
      ...(reserved ? [settleUsage(tenantId, reply.id, counts)] : []),
    ] as const;
    await untilStored(() => this.database.run(tenantScope(tenantId), statements), {
      ms: ENDING_PATIENCE_MS,
      waits: () => this.logger.warn(`the database is away; reply ${reply.id} waits to be stored`),
    });
    const { finishReason } = ending.result ?? {};
    return {
      status: ending.status,
      ...counts,
      ...(finishReason && { finishReason }),
      ...(ending.error && { error: ending.error }),
    };
  }
}

class ReplyTooLong extends Error {}

function failed(code: ErrorCode, message: string, attempts: number): Ending {
  return { status: 'failed', attempts, error: { code: ERRORS[code].status, message } };
}

function estimate(reply: LiveReply): TextUsage {
  const promptTokens = estimatePromptTokens(reply.settings.prompt);
  const completionTokens = estimateTokens(reply.written.textFrom(0)) + estimateTokens(reply.reasoning);
  return { promptTokens, completionTokens, totalTokens: promptTokens + completionTokens };
}

/** Postgres text holds no NUL and no lone surrogate; readers get what is stored, so both are replaced before either. */
function storable(piece: string): string {
  const formed = wellFormed(piece);
  return formed.includes('\0') ? formed.replaceAll('\0', '\uFFFD') : formed;
}
