import { Injectable, Logger } from '@nestjs/common';
import { AssistantsRepository, type Contact } from '../assistants';
import { AppError, type AssistantId, type DialogueId, type MessageId, type Principal } from '../common';
import { DialoguesRepository, SessionsRepository } from '../messages';
import { Bus } from '../realtime';
import { onlyUserOf, ReplyEngine } from '../replies';
import { ChannelError } from './errors';
import { noteOf, Session, wantedOf, type Chat } from './session';

/** Messages that wait in one session for the reply before them; one more is refused. */
const MAX_WAITING = 16;
/** How long a message waits for a reply that somebody else has asked for. */
const BUSY_PATIENCE_MS = 120_000;
const BUSY_RETRY_MS = 250;
const forgetTopic = 'channel.forget';

/** The sessions that somebody has open on this process, under every name they are known by. */
@Injectable()
export class Sessions {
  private readonly logger = new Logger(Sessions.name);
  private readonly byName = new Map<string, Session>();
  private readonly byDialogue = new Map<DialogueId, Session>();

  constructor(
    private readonly replies: ReplyEngine,
    private readonly sessions: SessionsRepository,
    private readonly dialogues: DialoguesRepository,
    private readonly assistants: AssistantsRepository,
    private readonly bus: Bus,
  ) {
    bus.subscribe(forgetTopic, (key) => this.drop(key));
  }

  /** The agent by its slug. Throws agent_not_found; also for one that was never published. */
  async agent(
    { tenantId }: Principal,
    slug: string,
  ): Promise<Contact & { versionId: NonNullable<Contact['versionId']> }> {
    const contact = await this.assistants.findContact(tenantId, { slug });
    const { versionId } = contact ?? {};
    if (!contact || !versionId) throw new ChannelError('agent_not_found', `no agent ${slug}`);
    return { ...contact, versionId };
  }

  /** The session of that name of this user with the agent, or of the dialogue whose id the name is. */
  async open(principal: Principal, slug: string, name: string): Promise<Session> {
    const contact = await this.agent(principal, slug);
    const { tenantId, userId } = principal;
    const { assistantId } = contact;
    const key = nameKey(principal, assistantId, name);
    const open = this.byName.get(key);
    if (open) return open;
    const found = await this.sessions.find({ tenantId, userId, assistantId, name }, onlyUserOf(principal));
    let session = this.byName.get(key) ?? (found && this.byDialogue.get(found));
    if (!session) {
      session = new Session(contact, name);
      if (found) this.bind(session, principal, found);
    }
    this.byName.set(key, session);
    return session;
  }

  /** What is being written in it now, for who comes to watch. */
  async inProgress({ tenantId }: Principal, { dialogueId }: Session): Promise<MessageId[]> {
    return dialogueId ? this.dialogues.inProgress(tenantId, dialogueId) : [];
  }

  say(session: Session, chat: Chat): void {
    if (session.waiting.length >= MAX_WAITING) {
      throw new ChannelError('busy', `more than ${MAX_WAITING} messages wait for their turn in this session`);
    }
    session.waiting.push(chat);
    void this.run(session);
  }

  /** False: nothing was ever said in it. */
  async cancel(principal: Principal, session: Session): Promise<boolean> {
    return session.dialogueId !== null && (await this.replies.stop(principal, session.dialogueId));
  }

  /** Nobody watches it here any more, perhaps. */
  release(session: Session): void {
    if (!session.idle) return;
    session.unwatch?.();
    for (const [key, one] of this.byName) if (one === session) this.byName.delete(key);
    if (session.dialogueId && this.byDialogue.get(session.dialogueId) === session) {
      this.byDialogue.delete(session.dialogueId);
    }
  }

  /** Its name begins a new dialogue from now on, on every node. */
  forget(principal: Principal, assistantId: AssistantId, name: string): void {
    this.bus.publish(forgetTopic, nameKey(principal, assistantId, name));
  }

  /** Who watches it goes on watching, and what waits in it is said in the new dialogue. */
  private drop(key: string): void {
    const session = this.byName.get(key);
    if (!session?.dialogueId) return;
    session.unwatch?.();
    session.unwatch = undefined;
    if (this.byDialogue.get(session.dialogueId) === session) this.byDialogue.delete(session.dialogueId);
    session.dialogueId = null;
  }

  private bind(session: Session, { tenantId }: Principal, dialogueId: DialogueId): void {
    if (session.dialogueId === dialogueId) return;
    session.unwatch?.();
    session.dialogueId = dialogueId;
    if (!this.byDialogue.has(dialogueId)) this.byDialogue.set(dialogueId, session);
    session.unwatch = this.replies.watch(tenantId, dialogueId, (replyId, note) =>
      session.show(wantedOf(replyId, note)),
    );
  }

  /** One message after the other: the next one is said when the reply to the one before has ended. */
  private async run(session: Session): Promise<void> {
    if (session.running) return;
    session.running = true;
    for (let chat = session.waiting.shift(); chat; chat = session.waiting.shift()) {
      try {
        await this.turn(session, chat);
      } catch (error) {
        chat.failed(error);
      }
    }
    session.running = false;
    this.release(session);
  }

  private async turn(session: Session, chat: Chat): Promise<void> {
    const { principal } = chat;
    const { versionId } = await this.agent(principal, session.contact.slug);
    const giveUpAt = Date.now() + BUSY_PATIENCE_MS;
    for (;;) {
      try {
        const note = noteOf(chat);
        const started = await this.replies.start({
          principal,
          versionId,
          modelServiceId: chat.modelServiceId,
          dialogueId: session.dialogueId,
          parentId: null,
          content: chat.content,
          name: null,
          session: session.name,
          idempotency: null,
          note,
        });
        this.bind(session, principal, started.dialogue.id);
        session.show(wantedOf(started.replyId, note));
        return await this.ended(principal, started.replyId);
      } catch (error) {
        const busy = error instanceof AppError && error.code === 'REPLY_IN_PROGRESS';
        if (!busy || Date.now() > giveUpAt) throw error;
        // Somebody else's turn, on another wire or node.
        const writing = await this.inProgress(principal, session);
        if (writing.length === 0) await new Promise((resolve) => setTimeout(resolve, BUSY_RETRY_MS).unref());
        await Promise.all(writing.map((id) => this.ended(principal, id)));
      }
    }
  }

  private async ended({ tenantId }: Principal, replyId: MessageId): Promise<void> {
    let wake = (): void => undefined;
    const cursor = await this.replies.read(tenantId, replyId, 0, () => wake());
    if (!cursor) return;
    for (;;) {
      const woken = new Promise<void>((resolve) => (wake = resolve));
      const batch = cursor.take(Infinity);
      if (batch?.end || cursor.exhausted) break;
      if (!batch) await woken;
    }
    cursor.close();
  }
}

function nameKey({ tenantId, userId }: Principal, assistantId: AssistantId, name: string): string {
  return `${tenantId}\n${assistantId}\n${userId}\n${name}`;
}
