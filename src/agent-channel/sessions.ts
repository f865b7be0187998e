import { Injectable } from '@nestjs/common';
import { AssistantsRepository, type Contact } from '../assistants';
import { AppError, asId, type AssistantId, type DialogueId, type MessageId, type Principal } from '../common';
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
/** No name has it: none holds NUL. */
const OWN = '\0own';

/**
 * The sessions that somebody has open on this process, by name. Two names of one dialogue are two of them; each watches
 * it, and the engine sees to it that one message is answered after the other.
 */
@Injectable()
export class Sessions {
  private readonly byName = new Map<string, Session>();

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

  /**
   * The session of that name of this user with the agent, or of the dialogue whose id the name is. Held until `letGo`.
   */
  async open(principal: Principal, slug: string, name: string): Promise<Session> {
    const contact = await this.agent(principal, slug);
    const { tenantId, userId } = principal;
    const { assistantId } = contact;
    const key = nameKey(principal, assistantId, name);
    let session = this.byName.get(key);
    // Its first turn may have been stored on another wire or node since.
    if (!session?.dialogueId) {
      const owner = { tenantId, userId, assistantId, name };
      const found = await this.sessions.find(owner, onlyUserOf(principal));
      session = this.byName.get(key);
      if (!session) this.unbind((session = new Session(contact, owner, key)));
      if (found && session.dialogueId === null) this.bind(session, found);
      this.byName.set(key, session);
    }
    session.held += 1;
    return session;
  }

  letGo(session: Session): void {
    session.held -= 1;
    this.release(session);
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
    // What was said a moment ago is stopped, too.
    if (session.dialogueId === null) await session.storing;
    return session.dialogueId !== null && (await this.replies.stop(principal, session.dialogueId));
  }

  /** Nobody watches it here any more, perhaps. */
  release(session: Session): void {
    if (!session.idle) return;
    session.unwatch?.();
    session.unwatch = undefined;
    if (this.byName.get(session.key) === session) this.byName.delete(session.key);
  }

  /** Its name begins a new dialogue from now on, on every node. */
  forget(principal: Principal, assistantId: AssistantId, name: string): void {
    this.bus.publish(forgetTopic, nameKey(principal, assistantId, name));
  }

  /** Who watches it goes on watching, and what waits in it is said in the new dialogue. */
  private drop(key: string): void {
    for (const session of [this.byName.get(key), this.byName.get(key + OWN)]) {
      // A dialogue's id leads to it for ever.
      if (!session?.dialogueId || asId(session.name) === session.dialogueId) continue;
      this.unbind(session);
    }
  }

  /** No dialogue has its name: the first turn makes one, on whatever wire it comes. */
  private unbind(session: Session): void {
    session.unwatch?.();
    session.dialogueId = null;
    session.unwatch = this.replies.watchSession(session.owner, (id) => this.bind(session, id));
  }

  private bind(session: Session, dialogueId: DialogueId): void {
    if (session.dialogueId === dialogueId) return;
    session.unwatch?.();
    session.dialogueId = dialogueId;
    session.unwatch = this.replies.watch(session.owner.tenantId, dialogueId, (replyId, note) =>
      session.show(wantedOf(replyId, note)),
    );
  }

  /** One message after the other: the next one is said when the reply to the one before has ended. */
  private async run(session: Session): Promise<void> {
    if (session.running) return;
    session.running = true;
    for (let chat = session.waiting.shift(); chat; chat = session.waiting.shift()) {
      const stored = Promise.withResolvers<void>();
      session.storing = stored.promise;
      try {
        if (chat.stands()) await this.turn(session, chat, stored.resolve);
      } catch (error) {
        chat.failed(error);
      }
      stored.resolve();
    }
    session.running = false;
    this.release(session);
  }

  private async turn(session: Session, chat: Chat, stored: () => void): Promise<void> {
    const { principal } = chat;
    const { versionId } = await this.agent(principal, session.contact.slug);
    const giveUpAt = Date.now() + BUSY_PATIENCE_MS;
    for (;;) {
      try {
        const note = noteOf(chat);
        const started = await this.replies.start({
          principal,
          wire: 'channel',
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
        this.bind(session, started.dialogue.id);
        session.show(wantedOf(started.replyId, note));
        stored();
        return await this.ended(principal, started.replyId);
      } catch (error) {
        const busy = error instanceof AppError && error.code === 'REPLY_IN_PROGRESS';
        if (!busy || Date.now() > giveUpAt) throw error;
        if (!chat.stands()) return;
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

/** What a dialogue's id leads to depends on who asks: a user's own token leads to that user's alone. */
function nameKey({ tenantId, userId, endUser }: Principal, assistantId: AssistantId, name: string): string {
  const own = endUser && asId(name) !== null ? OWN : '';
  return `${tenantId}\n${assistantId}\n${userId}\n${name}${own}`;
}
