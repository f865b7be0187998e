import { Injectable, Logger, type OnModuleDestroy } from '@nestjs/common';
import { AssistantsRepository, type PublicVersion } from '../assistants';
import {
  AppError,
  badInput,
  IdGenerator,
  Shutdown,
  truncate,
  within,
  type AssistantId,
  type AssistantVersionId,
  type DialogueId,
  type MessageId,
  type ModelServiceId,
  type Principal,
  type TenantId,
} from '../common';
import { Config } from '../config';
import { NodeRegistry } from '../database';
import { ReplySlots } from '../fairness';
import {
  DialoguesRepository,
  SessionsRepository,
  type BranchMessage,
  type Dialogue,
  type DialogueMessage,
  type TurnDraft,
  type SessionKey,
  type TurnOutcome,
} from '../messages';
import {
  estimatePromptTokens,
  ModelServicesRepository,
  SERVICE_TYPE,
  type ResolvedService,
} from '../model-services';
import { Bus, StreamLog, type StreamCursor } from '../realtime';
import { estimateOf, overQuota, Quotas, reserveUsage, type Quota, type Wire } from '../usage';
import { onlyUserOf, tenantOf } from './access';
import { LiveReply, type LiveReplySettings } from './live-reply';
import { LiveReplies } from './live-replies';
import { buildPrompt } from './prompt';
import { ReplyWriter } from './reply-writer';
import { storedCursor } from './stored-cursor';
import type { AssistantTools } from './tool-runner';

export interface StartReply {
  readonly principal: Principal;
  /** Null: a dialogue without an assistant. */
  readonly versionId: AssistantVersionId | null;
  /** Overrides the assistant's model service. */
  readonly modelServiceId: ModelServiceId | null;
  /** Null: a new dialogue. */
  readonly dialogueId: DialogueId | null;
  /** Null: the dialogue's newest message. */
  readonly parentId: MessageId | null;
  readonly content: string;
  /** The new dialogue's name; by default the beginning of what was said. */
  readonly name: string | null;
  readonly idempotency: { readonly key: string; readonly requestHash: string } | null;
  /** The user's own name for the dialogue with this assistant: goes on in the dialogue of that name, or makes it. */
  readonly session?: string;
  /** What was said elsewhere before; counts only when the dialogue is a new one. */
  readonly history?: readonly BranchMessage[];
  /** Over those of the service and the assistant: temperature, max_tokens … */
  readonly parameters?: Readonly<Record<string, unknown>>;
  /** False for the wire of conversations itself: it tells its own. */
  readonly tellConversation?: boolean;
  /** Told to whoever watches the dialogue, with the reply's id. */
  readonly note?: string;
  /** For the ledger; by default the assistant platform's. */
  readonly wire?: Wire;
}

/** A reply that has begun in a watched dialogue, and the note of who began it. */
export type OnReply = (replyId: MessageId, note: string) => void;

export interface StartedReply {
  readonly dialogue: Dialogue;
  readonly message: DialogueMessage;
  readonly replyId: MessageId;
  /** The Idempotency-Key had been used: nothing new was stored. */
  readonly repeated: boolean;
}

const DEFAULT_NAME_CHARS = 30;
/** ASCII text has about four characters a token, and nothing has more: what is read of the history can't be too little. */
const MAX_CHARS_PER_TOKEN = 4;
const STOP_WAIT_MS = 10_000;
const DRAIN_LAST_WAIT_MS = 5_000;

/** Of one session, first turns at once: the second finds the first one's dialogue. */
const SESSION_ATTEMPTS = 3;

const stopTopic = 'replies.stop';
const toldTopic = 'replies.told';
/** A name that no dialogue has yet. */
const sessionTopic = ({ tenantId, assistantId, userId, name }: SessionKey): string =>
  `replies.session.${tenantId}.${assistantId}.${userId}\n${name}`;
const startTopic = (tenantId: TenantId, dialogueId: DialogueId): string =>
  `replies.start.${tenantId}.${dialogueId}`;

/**
 * An assistant's answer, from prompt to last piece, for every wire and knowing none. A reply belongs to nobody's
 * connection: readers come and go, only `stop`, its own end or this process's death ends it.
 */
@Injectable()
export class ReplyEngine implements OnModuleDestroy {
  private readonly logger = new Logger(ReplyEngine.name);
  private readonly unsubscribe: () => void;

  constructor(
    private readonly config: Config,
    private readonly ids: IdGenerator,
    private readonly nodes: NodeRegistry,
    private readonly assistants: AssistantsRepository,
    private readonly services: ModelServicesRepository,
    private readonly dialogues: DialoguesRepository,
    private readonly sessions: SessionsRepository,
    private readonly writer: ReplyWriter,
    private readonly live: LiveReplies,
    private readonly streams: StreamLog,
    private readonly bus: Bus,
    private readonly quotas: Quotas,
    private readonly slots: ReplySlots,
    private readonly shutdown: Shutdown,
  ) {
    this.unsubscribe = bus.subscribe(stopTopic, (replyId) =>
      this.live.get(replyId as MessageId)?.abort('stopped'),
    );
  }

  /**
   * Stores the user's message and begins the reply; resolves as soon as both are durable, before the provider has
   * answered. Throws NOT_FOUND (version, dialogue), BAD_INPUT (parentId, modelServiceId), REPLY_IN_PROGRESS,
   * IDEMPOTENCY_MISMATCH, RATE_LIMITED, QUOTA_EXCEEDED, OVERLOADED, SHUTTING_DOWN, STORAGE_UNAVAILABLE.
   */
  async start(input: StartReply): Promise<StartedReply> {
    tenantOf(input.principal);
    this.shutdown.refuseWork();
    const giveBack = this.slots.take(input.principal.tenantId);
    let ended: Promise<void> | undefined;
    try {
      const { started, reply } = await this.begin(input);
      ended = reply?.ended;
      return started;
    } finally {
      if (ended) void ended.then(giveBack);
      else giveBack();
    }
  }

  private async begin(input: StartReply): Promise<{ started: StartedReply; reply?: LiveReply }> {
    const { tenantId, keyId, keyName, userId } = input.principal;
    const version =
      input.versionId === null ? null : await this.assistants.findVersion(tenantId, input.versionId);
    if (input.versionId !== null && !version)
      throw new AppError('NOT_FOUND', { message: 'No such assistant version.' });
    const service = await this.serviceFor(tenantId, input, version);
    if (input.parentId !== null && input.dialogueId === null) throw foreignParent();
    const assistantId = version?.assistantId ?? null;
    const quota = await this.quotas.of(input.principal);
    const wire = input.wire ?? 'dialogue';
    const parameters = { ...service.parameters, ...version?.parameters, ...input.parameters };
    const promptOf = (branch: readonly BranchMessage[]) =>
      buildPrompt(version?.prompt ?? '', branch, service.contextWindow, parameters);
    const reserve = (quota: Quota) => (branch: readonly BranchMessage[]) => {
      const estimate = estimateOf(estimatePromptTokens(promptOf(branch)), parameters, service);
      return [reserveUsage(quota, { id: draft.replyId, ...estimate })];
    };

    const draftOf = (dialogueId: DialogueId | null): TurnDraft => ({
      tenantId,
      newDialogueId: this.ids.next(),
      rootId: this.ids.next(),
      history: (input.history ?? []).map((one) => ({ ...one, id: this.ids.next() })),
      messageId: this.ids.next(),
      replyId: this.ids.next(),
      dialogueId,
      parentId: input.parentId,
      content: input.content,
      name: input.name ?? truncate(input.content, DEFAULT_NAME_CHARS),
      userId,
      createdBy: keyName,
      keyId,
      assistantId,
      versionId: version?.id ?? null,
      modelServiceId: service.id,
      incarnation: this.nodes.incarnation,
      idempotency: input.idempotency,
      onlyUser: onlyUserOf(input.principal),
      session: input.session ?? null,
      tellConversation: input.tellConversation ?? true,
      wire,
      maxHistoryChars: service.contextWindow * MAX_CHARS_PER_TOKEN,
    });
    let draft: TurnDraft;
    let turn: TurnOutcome;
    let attempts = 0;
    do {
      draft = draftOf(await this.dialogueOf(input, assistantId));
      turn = await this.store(draft, quota ? reserve(quota) : undefined);
    } while (turn.outcome === 'session-taken' && (attempts += 1) < SESSION_ATTEMPTS);
    if (turn.outcome === 'repeated') return { started: await this.repeat(tenantId, turn, input) };
    if (turn.outcome === 'no-dialogue') throw new AppError('NOT_FOUND', { message: 'No such dialogue.' });
    if (turn.outcome === 'no-parent') throw foreignParent();
    if (turn.outcome === 'parent-in-progress' || turn.outcome === 'session-taken')
      throw new AppError('REPLY_IN_PROGRESS');

    // Before the work is dispatched: the first piece must find the log open.
    const written = this.streams.open(tenantId, draft.replyId);
    const settings: LiveReplySettings = {
      tenantId,
      replyId: draft.replyId,
      dialogueId: turn.dialogue.id,
      keyId,
      keyName,
      userId,
      assistantId,
      service,
      parameters,
      prompt: promptOf(turn.branch),
      wire,
      reserved: quota !== null,
      tools: version && toolsOf(version),
    };
    const reply = new LiveReply(settings, written);
    this.live.add(reply);
    // First, so that who waits for the name can listen to the dialogue in time.
    if (draft.session !== null && draft.dialogueId === null && assistantId) {
      const key = { tenantId, userId, assistantId, name: draft.session };
      this.bus.publish(sessionTopic(key), turn.dialogue.id);
    }
    this.bus.publish(startTopic(tenantId, turn.dialogue.id), `${reply.id}\n${input.note ?? ''}`);
    if (turn.told) this.bus.publish(toldTopic, '');
    void this.writer.write(reply);
    const started = { dialogue: turn.dialogue, message: turn.message, replyId: reply.id, repeated: false };
    return { started, reply };
  }

  /**
   * A reader of a reply, placed after piece number `after`. From the stream log while that holds it; afterwards, and
   * for a reply whose writer died, the stored text as one piece with the end. `asides`: what happened beside the text is told, too, while the stream log
   * has it. Null when this tenant has no such reply.
   */
  async read(
    tenantId: TenantId,
    replyId: MessageId,
    after: number,
    wake: () => void,
    asides = false,
  ): Promise<StreamCursor | null> {
    const live = await this.streams.read(tenantId, replyId, after, wake, asides);
    // Written to its end, it may have been erased since; while the database is away it is taken to stand.
    if (live && !this.live.get(replyId)) {
      const stands = await this.dialogues.replyStands(tenantId, replyId).catch(() => true);
      if (!stands) {
        live.close();
        return null;
      }
    }
    return live ?? storedCursor(this.dialogues, tenantId, replyId, after, wake);
  }

  /** Closes a dialogue: its replies in progress end as `stopped`, with what they have. False: no such dialogue. */
  close(principal: Principal, dialogueId: DialogueId): Promise<boolean> {
    return this.end(principal, dialogueId, true);
  }

  /** Stops what is being written in a dialogue, wherever that was begun; the dialogue stays open. False: no such dialogue. */
  stop(principal: Principal, dialogueId: DialogueId): Promise<boolean> {
    return this.end(principal, dialogueId, false);
  }

  /**
   * Calls back for every reply that begins in the dialogue from now on, on any wire; who may watch is the caller's to
   * have checked. Returns what ends it.
   */
  watch(tenantId: TenantId, dialogueId: DialogueId, onReply: OnReply): () => void {
    return this.bus.subscribe(startTopic(tenantId, dialogueId), (text) => {
      const cut = text.indexOf('\n');
      onReply(text.slice(0, cut) as MessageId, text.slice(cut + 1));
    });
  }

  /** Calls back when a session gets its dialogue, on any wire, before the first reply of it is told. */
  watchSession(key: SessionKey, onDialogue: (id: DialogueId) => void): () => void {
    return this.bus.subscribe(sessionTopic(key), (id) => onDialogue(id as DialogueId));
  }

  /** Calls back when a turn was stored that a conversation is to be told of. */
  whenToldElsewhere(listener: () => void): void {
    this.bus.subscribe(toldTopic, listener);
  }

  private async end(principal: Principal, dialogueId: DialogueId, close: boolean): Promise<boolean> {
    const how = { close, onlyUser: onlyUserOf(principal) };
    const replies = await this.dialogues.stop(principal.tenantId, dialogueId, how);
    if (replies === null) return false;
    const here = replies.map((id) => this.live.get(id)).filter((reply) => reply !== undefined);
    // Elsewhere: a hint now, and the flag that its node looks at every second.
    for (const id of replies) this.bus.publish(stopTopic, id);
    for (const reply of here) reply.abort('stopped');
    await within(STOP_WAIT_MS, Promise.all(here.map(({ ended }) => ended)));
    return true;
  }

  private async dialogueOf(
    { principal, dialogueId, session }: StartReply,
    assistantId: AssistantId | null,
  ): Promise<DialogueId | null> {
    if (session === undefined || dialogueId !== null || assistantId === null) return dialogueId;
    const { tenantId, userId } = principal;
    return this.sessions.find({ tenantId, userId, assistantId, name: session }, onlyUserOf(principal));
  }

  /** Nest closes the sockets after this: readers see their replies end while there is time, and the rest as interrupted. */
  async onModuleDestroy(): Promise<void> {
    this.shutdown.begin();
    this.unsubscribe();
    const started = [...this.live].map(({ ended }) => ended);
    if (started.length > 0) this.logger.log(`waiting for ${started.length} replies to end`);
    await within(this.shutdown.left(this.config.env.DRAIN_TIMEOUT_MS), Promise.all(started));
    const rest = [...this.live];
    for (const reply of rest) reply.abort('interrupted');
    await within(DRAIN_LAST_WAIT_MS, Promise.all(rest.map(({ ended }) => ended)));
  }

  private async store(
    draft: TurnDraft,
    reserve: Parameters<DialoguesRepository['storeTurn']>[1],
  ): Promise<TurnOutcome> {
    try {
      return await this.dialogues.storeTurn(draft, reserve);
    } catch (error) {
      const refused = overQuota(error);
      if (refused) throw refused;
      // Whether it was committed is unknown. If it was, nobody writes that reply: it must not stay `streaming`.
      this.live.abandon({ tenantId: draft.tenantId, replyId: draft.replyId });
      throw error;
    }
  }

  private async serviceFor(
    tenantId: TenantId,
    { modelServiceId, dialogueId }: StartReply,
    version: PublicVersion | null,
  ): Promise<ResolvedService> {
    if (modelServiceId !== null) {
      const service = await this.services.resolve(tenantId, modelServiceId);
      if (service?.type === SERVICE_TYPE.text) return service;
      throw badInput('modelServiceId', 'is not a text model service this tenant may use');
    }
    let id = version?.modelServiceId;
    if (!id && dialogueId) id = (await this.dialogues.findDialogue(tenantId, dialogueId))?.modelServiceId;
    if (!id && dialogueId) throw new AppError('NOT_FOUND', { message: 'No such dialogue.' });
    id ??= await this.defaultService(tenantId);
    const service = id && (await this.services.resolve(tenantId, id));
    if (service && service.type === SERVICE_TYPE.text) return service;
    throw badInput('modelServiceId', 'is needed: there is no text model service to fall back on');
  }

  /** The first of the services this tenant may use. */
  private async defaultService(tenantId: TenantId): Promise<ModelServiceId | undefined> {
    const query = {
      type: SERVICE_TYPE.text,
      orderBy: 'order_num',
      descending: false,
      offset: 0,
      limit: 1,
    } as const;
    return (await this.services.listUsable(tenantId, query)).rows[0]?.id;
  }

  private async repeat(
    tenantId: TenantId,
    earlier: { replyId: MessageId; requestHash: string },
    input: StartReply,
  ): Promise<StartedReply> {
    if (earlier.requestHash !== input.idempotency?.requestHash) throw new AppError('IDEMPOTENCY_MISMATCH');
    const stored = await this.dialogues.findReply(tenantId, earlier.replyId);
    if (!stored)
      throw new AppError('NOT_FOUND', { message: 'The reply of that Idempotency-Key has been erased.' });
    return { dialogue: stored.dialogue, message: stored.message, replyId: earlier.replyId, repeated: true };
  }
}

/** The tools that a version gives its assistant. */
export function toolsOf({ assistantId, tools }: PublicVersion): AssistantTools {
  return { assistantId, sources: tools };
}

function foreignParent(): AppError {
  return badInput('parentId', 'is not a message of this dialogue');
}
