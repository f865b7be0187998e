import {
  Injectable,
  Logger,
  type BeforeApplicationShutdown,
  type OnApplicationBootstrap,
} from '@nestjs/common';
import { AssistantsRepository, type Contact } from '../assistants';
import {
  AppError,
  IdGenerator,
  parseExact,
  Shutdown,
  within,
  type DialogueId,
  type MessageId,
  type Principal,
} from '../common';
import { ShareTaken } from '../fairness';
import {
  ASSISTANT_PREFIX,
  ConversationsRepository,
  MessageLog,
  ReplyRequestsRepository,
  type LogEntry,
  type ReplyRequest,
} from '../messages';
import type { StreamBatch, StreamEnd } from '../realtime';
import { ReplyEngine } from '../replies';
import { groupTopic, Publisher, userTopics } from './publisher';
import { LiveMessage } from './live-message';
import { Messenger } from './messenger';

const POLL_MS = 1_000;
const MAX_RUNNING = 1_000;
const BUSY_RETRY_MS = 500;
const FAILURE_RETRY_MS = 5_000;
/** A request that fails for a reason of ours is tried so often, then given up: it must not block its conversation for ever. */
const MAX_ATTEMPTS = 10;
const PIECES_A_TAKE = 200;
/** Of one `stream` frame, in UTF-16 units. */
const CHARS_A_TAKE = 65_536;
const DRAIN_MS = 5_000;
const FAILED = 'The assistant could not answer. Please try again.';
const LIMITED = 'The assistant could not answer: a limit is reached. Please try again later.';

/** What a reply came to. */
interface Outcome {
  readonly text: string;
  readonly end: StreamEnd;
}

/**
 * Assistants as contacts: answers messages that are addressed to one, or mention one in a group, by the reply engine,
 * in the conversation they came from. The request is stored with the message, so an answer that a dead process began
 * is brought to its end by another.
 */
@Injectable()
export class Contacts implements OnApplicationBootstrap, BeforeApplicationShutdown {
  private readonly logger = new Logger(Contacts.name);
  private readonly running = new Set<Promise<void>>();
  private timer: NodeJS.Timeout | undefined;
  private claiming = false;
  private again = false;

  constructor(
    private readonly requests: ReplyRequestsRepository,
    private readonly conversations: ConversationsRepository,
    private readonly assistants: AssistantsRepository,
    private readonly replies: ReplyEngine,
    private readonly log: MessageLog,
    private readonly publisher: Publisher,
    private readonly ids: IdGenerator,
    private readonly shutdown: Shutdown,
    messenger: Messenger,
  ) {
    messenger.whenAsked(() => void this.work());
    replies.whenToldElsewhere(() => void this.work());
  }

  onApplicationBootstrap(): void {
    this.timer = setInterval(() => void this.work(), POLL_MS).unref();
  }

  async beforeApplicationShutdown(): Promise<void> {
    clearInterval(this.timer);
    await within(DRAIN_MS, Promise.all(this.running));
  }

  /** Takes up what is due. What comes while it looks makes it look again. */
  private async work(): Promise<void> {
    this.again = true;
    if (this.claiming) return;
    this.claiming = true;
    try {
      while (this.again && !this.shutdown.begun && this.running.size < MAX_RUNNING) {
        this.again = false;
        for (const request of await this.requests.claim(MAX_RUNNING - this.running.size)) {
          const run = this.answer(request).finally(() => {
            this.running.delete(run);
            // The next message of that conversation may be waiting for this one.
            void this.work();
          });
          this.running.add(run);
        }
      }
    } catch (error) {
      this.logger.debug(`requests to assistants not read: ${(error as Error).message}`);
    } finally {
      this.claiming = false;
    }
  }

  private async answer(request: ReplyRequest): Promise<void> {
    try {
      const contact = await this.assistants.findContact(request.tenantId, { id: request.assistantId });
      if (contact && request.replyId) await this.retell(request, contact, request.replyId);
      else if (contact?.versionId) {
        const { replyId, outcome } = await this.reply(request, contact);
        await this.append(request, contact, replyId, outcome);
      }
      await this.requests.finish(request);
    } catch (error) {
      await this.postpone(request, error);
    }
  }

  private async reply(
    request: ReplyRequest,
    contact: Contact,
  ): Promise<{ replyId: MessageId; outcome: Outcome }> {
    const { tenantId, conversationId, assistantId } = request;
    const known = await this.conversations.dialogueOf(tenantId, conversationId, assistantId);
    let started: { dialogueId: DialogueId; replyId: MessageId };
    try {
      started = await this.start(request, contact, known);
    } catch (error) {
      // The dialogue has been erased on another wire: the conversation goes on in a new one.
      if (known === null || !(error instanceof AppError) || error.code !== 'NOT_FOUND') {
        const told = tellable(error);
        if (!told) throw error;
        return { replyId: this.ids.next(), outcome: told };
      }
      started = await this.start(request, contact, null);
    }
    if (started.dialogueId !== known)
      await this.conversations.linkDialogue(tenantId, conversationId, assistantId, started.dialogueId);
    return { replyId: started.replyId, outcome: await this.follow(request, started.replyId) };
  }

  private async start(request: ReplyRequest, { versionId }: Contact, dialogueId: DialogueId | null) {
    const { messageId, sender, tenantId } = request;
    const principal: Principal = {
      tenantId,
      keyId: null,
      keyGeneration: 0,
      keyName: 'im',
      scopes: new Set(['dialogue']),
      userId: sender,
      // The dialogue is the conversation's: in a group every member goes on in the same one.
      endUser: false,
      allowedOrigins: [],
    };
    const { dialogue, replyId } = await this.replies.start({
      principal,
      wire: 'im',
      versionId,
      modelServiceId: null,
      dialogueId,
      parentId: null,
      content: contentOf(request),
      name: null,
      // Taken up again after a crash, it finds the reply it began.
      idempotency: { key: `im:${messageId}`, requestHash: messageId },
      tellConversation: false,
    });
    return { dialogueId: dialogue.id, replyId };
  }

  /** Reads the reply to its end, and lets the richer dialect see it grow. */
  private async follow(request: ReplyRequest, replyId: MessageId): Promise<Outcome> {
    let wake = (): void => undefined;
    const cursor = await this.replies.read(request.tenantId, replyId, 0, () => wake());
    if (!cursor) throw new AppError('NOT_FOUND', { message: 'No such reply.' });
    let text = '';
    try {
      for (;;) {
        const woken = new Promise<void>((resolve) => (wake = resolve));
        const batch = cursor.take(PIECES_A_TAKE, CHARS_A_TAKE);
        if (batch) {
          text += batch.pieces.join('');
          this.stream(request, replyId, batch);
          if (batch.end) return { text, end: batch.end };
        } else if (cursor.exhausted) {
          throw new AppError('NOT_FOUND', { message: 'The reply has been erased.' });
        } else await woken;
      }
    } finally {
      cursor.close();
    }
  }

  private stream(request: ReplyRequest, id: MessageId, { offset, pieces, end }: StreamBatch): void {
    const { tenantId, conversationId, sender, frame } = request;
    const content = pieces.join('');
    const to = isGroup(frame) ? { group: conversationId } : { users: [sender] };
    this.publisher.publishEvent(tenantId, to, {
      frame: { type: 'stream', conversationId, id, offset, content, done: end !== undefined },
      droppable: true,
    });
  }

  /** A turn that was begun on another wire: what was said, and the reply as it comes. */
  private async retell(request: ReplyRequest, contact: Contact, replyId: MessageId): Promise<void> {
    const { messageId, sender, frame: content } = request;
    const frame = JSON.stringify({
      type: 'single',
      source: sender,
      target: ASSISTANT_PREFIX + contact.slug,
      msgType: 'text',
      msg: { msgId: messageId, timestamp: Date.now(), content },
    });
    const told = { ...request, frame };
    await this.store(told, {
      id: this.ids.next(),
      sender,
      dedupe: `${sender}\nwire:${messageId}\n`,
      frame,
    });
    await this.append(told, contact, replyId, await this.follow(told, replyId));
  }

  private async append(
    request: ReplyRequest,
    contact: Contact,
    id: MessageId,
    { text, end }: Outcome,
  ): Promise<void> {
    const { type, source, target } = parseExact(request.frame);
    const group = type === 'group';
    const sender = ASSISTANT_PREFIX + contact.assistantId;
    const frame = JSON.stringify({
      type,
      source: group ? ASSISTANT_PREFIX + contact.slug : target,
      target: group ? target : source,
      msgType: 'text',
      msg: {
        msgId: id,
        timestamp: Date.now(),
        // What exactly failed is the tenant's to know, not the user's: it stands with the reply.
        content: text || (end.status === 'failed' ? (end.error?.code === 429 ? LIMITED : FAILED) : ''),
        ...(end.status !== 'finished' && { status: end.status }),
        inReplyTo: request.messageId,
      },
    });
    // One answer a request, whoever comes to write it.
    await this.store(request, { id, sender, dedupe: `${sender}\n${request.messageId}\n`, frame });
  }

  /** Appends to the conversation of the request, and tells it to who is there. A second time it changes nothing. */
  private async store(
    { tenantId, conversationId, sender: user }: ReplyRequest,
    said: Pick<LogEntry, 'id' | 'sender' | 'frame'> & { readonly dedupe: string },
  ): Promise<void> {
    const { id, sender, frame } = said;
    const result = await this.log.store({
      ...said,
      tenantId,
      conversationId,
      side: null,
      client: '',
      clientTime: Date.now(),
      only: null,
      assistantId: null,
    });
    if (result.outcome !== 'stored') return;
    const entry: LogEntry = {
      id,
      seq: result.seq,
      conversationId,
      sender,
      client: '',
      frame,
      recalled: false,
    };
    const message = new LiveMessage(entry);
    const topics = isGroup(frame) ? [groupTopic(conversationId)] : userTopics(tenantId, [user]);
    this.publisher.publish(topics, message);
  }

  private async postpone(request: ReplyRequest, error: unknown): Promise<void> {
    const code = error instanceof AppError ? error.code : 'INTERNAL';
    if (code === 'INTERNAL') this.logger.error({ err: error }, 'an assistant did not answer');
    const passes =
      error instanceof ShareTaken ||
      ['STORAGE_UNAVAILABLE', 'SHUTTING_DOWN', 'OVERLOADED', 'REPLY_IN_PROGRESS'].includes(code);
    const delay = code === 'REPLY_IN_PROGRESS' ? BUSY_RETRY_MS : FAILURE_RETRY_MS;
    try {
      if (passes || request.attempts < MAX_ATTEMPTS) await this.requests.release(request, delay);
      else await this.requests.finish(request);
    } catch (failure) {
      // The database is away; while this process lives nobody else takes it up, so it has to try again itself.
      this.logger.debug(`a request not given back: ${(failure as Error).message}`);
      setTimeout(() => void this.postpone(request, error), FAILURE_RETRY_MS).unref();
    }
  }
}

/** What is wrong for good is told in the conversation, where the user waits for an answer. */
function tellable(error: unknown): Outcome | null {
  if (!(error instanceof AppError) || error.status >= 500 || error.code === 'REPLY_IN_PROGRESS') return null;
  if (error instanceof ShareTaken) return null;
  const counts = { promptTokens: 0, completionTokens: 0, totalTokens: 0, credits: 0 };
  return {
    text: '',
    end: { status: 'failed', ...counts, error: { code: error.status, message: error.message } },
  };
}

function isGroup(frame: string): boolean {
  return frame.startsWith('{"type":"group"');
}

/** What the assistant is told: the text, else the packet as JSON; in a group also who says it. */
function contentOf({ frame, sender }: ReplyRequest): string {
  const { msg } = JSON.parse(frame) as { msg: Record<string, unknown> };
  const text = typeof msg.content === 'string' && msg.content !== '' ? msg.content : JSON.stringify(msg);
  return isGroup(frame) ? `${sender}: ${text}` : text;
}
