import { Injectable } from '@nestjs/common';
import { LRUCache } from 'lru-cache';
import { AssistantsRepository, type Contact } from '../assistants';
import { AppError, IdGenerator, isId, type AssistantId, type ConversationId, type TenantId } from '../common';
import { Config } from '../config';
import {
  ASSISTANT_PREFIX,
  ConversationsRepository,
  MessageLog,
  sideOf,
  type Appended,
  type Joined,
  type LogEntry,
  type MembershipChange,
  type MessageDraft,
} from '../messages';
import { limitsOf, TenantsRepository } from '../tenancy';
import { CODE, FrameError } from './errors';
import { canonical, clientTime, dedupeKey, idText, type MembershipFrame, type MessageFrame } from './frames';
import { groupTopic, Publisher, userTopics } from './publisher';
import { LiveMessage } from './live-message';

/** Who sends: a device over its socket, or the tenant's server in somebody's name. */
export interface Sender {
  readonly tenantId: TenantId;
  readonly userId: string;
  /** Empty for a server. */
  readonly client: string;
  /** The connection that gets no copy; empty for none. */
  readonly origin: string;
  /** A server sends to any group, muted or not, as anybody. */
  readonly server: boolean;
}

/** A message and its stored form. */
export interface OutgoingMessage {
  readonly frame: MessageFrame;
  readonly text: string;
  /** What it is known by when it is sent again, where that is not its own `msgId`. */
  readonly once?: { readonly dedupe: string; readonly clientTime: number };
}

export interface Route {
  readonly conversationId: ConversationId;
  /** Under which its people hear of it. */
  readonly topics: readonly string[];
  /** Who is on the other side; null: it is a group. */
  readonly peer: string | null;
  readonly assistant: Contact | null;
}

export type OnSent = (
  sent: { readonly conversationId: ConversationId; readonly result: Appended } | null,
  error: AppError | FrameError | null,
) => void;

export const SYSTEM = 'system';
const MAX_ROUTES = 50_000;
/** Assistants' ids are made by the id generator: none is shorter, and most users' ids are. */
const MIN_ASSISTANT_ID_CHARS = 16;
const MENTION = /(?<![\w@.])@([a-z0-9][a-z0-9_-]{0,62})/gi;
const MAX_MENTIONS = 5;
const JOINS_A_TURN = 25;

/** Sends and joins, for the socket and for REST: finds the conversation, appends to its log, and lets everybody know. */
@Injectable()
export class Messenger {
  private readonly known = new LRUCache<string, Route>({ max: MAX_ROUTES });
  private readonly onRequest: (() => void)[] = [];

  constructor(
    private readonly config: Config,
    private readonly ids: IdGenerator,
    private readonly log: MessageLog,
    private readonly conversations: ConversationsRepository,
    private readonly assistants: AssistantsRepository,
    private readonly tenants: TenantsRepository,
    private readonly publisher: Publisher,
  ) {}

  /** Called when a message that an assistant is to answer has been stored. */
  whenAsked(listener: () => void): void {
    this.onRequest.push(listener);
  }

  /** Where a frame goes; at once when it went there before, else after a look. Throws FrameError, rejects with it. */
  route(sender: Sender, { type, target, msg }: MessageFrame): Route | Promise<Route> {
    const to = idText(target);
    if (type === 'group') {
      const known = this.known.get(groupKey(sender.tenantId, to));
      const mentions = typeof msg.content === 'string' && msg.content.includes('@');
      if (known && !mentions) return known;
      return this.routeGroup(sender, to, mentions ? (msg.content as string) : '');
    }
    if (to.startsWith(ASSISTANT_PREFIX))
      return this.routeAssistant(sender, to, { slug: to.slice(ASSISTANT_PREFIX.length) });
    const known = this.known.get(pairKey(sender.tenantId, sender.userId, to));
    if (known) return known;
    return this.routeSingle(sender, to);
  }

  /**
   * Where one message goes to each of many, in a few round trips however many they are. They are not remembered: a
   * broadcast would put everybody else's routes out. FrameError where one leads nowhere.
   */
  async routes(sender: Sender, targets: readonly string[]): Promise<(Route | FrameError)[]> {
    const { tenantId, userId } = sender;
    const ids = targets.filter(mayBeAssistantsId) as AssistantId[];
    const assistants = ids.length > 0 ? await this.assistants.among(tenantId, ids) : new Set<string>();
    const found = new Map<string, Route | FrameError>();
    const users: string[] = [];
    for (const to of targets) {
      const known = this.known.get(pairKey(tenantId, userId, to));
      if (known) found.set(to, known);
      else if (to.startsWith(ASSISTANT_PREFIX) || assistants.has(to))
        found.set(to, await this.routeOne(sender, to));
      else users.push(to);
    }
    const conversations = users.length > 0 ? await this.conversations.singles(tenantId, userId, users) : [];
    users.forEach((peer, index) => {
      const topics = userTopics(tenantId, [userId, peer]);
      found.set(peer, { conversationId: conversations[index]!, topics, peer, assistant: null });
    });
    return targets.map((to) => found.get(to)!);
  }

  private async routeOne(sender: Sender, to: string): Promise<Route | FrameError> {
    try {
      return await (to.startsWith(ASSISTANT_PREFIX)
        ? this.routeAssistant(sender, to, { slug: to.slice(ASSISTANT_PREFIX.length) })
        : this.routeSingle(sender, to));
    } catch (error) {
      if (error instanceof FrameError) return error;
      throw error;
    }
  }

  /** `done` is called when the message is durable, for a whole batch in one go. Throws FrameError, BadFrame. */
  send(sender: Sender, route: Route, message: OutgoingMessage, done: OnSent, again = false): void {
    const { tenantId, userId, client, origin, server } = sender;
    const { frame, text, once } = message;
    const draft: MessageDraft = {
      id: this.ids.next(),
      tenantId,
      conversationId: route.conversationId,
      sender: userId,
      side: route.peer === null ? null : sideOf(userId, route.peer),
      client,
      dedupe: once ? once.dedupe : dedupeKey(userId, frame.msg),
      clientTime: once ? once.clientTime : clientTime(frame.msg, Date.now()),
      frame: text,
      only: frame.type === 'group' ? (server ? 'group' : 'member') : null,
      assistantId: route.assistant?.assistantId ?? null,
    };
    this.log.append(draft, (result, error) => {
      if (!result) {
        done(null, error);
        return;
      }
      if (result.outcome === 'refused' && frame.type === 'group' && !again) {
        void this.resend(sender, route, message, done);
        return;
      }
      done({ conversationId: draft.conversationId, result }, null);
      if (result.outcome !== 'stored') return;
      const { conversationId } = draft;
      const { id, seq } = result;
      const entry: LogEntry = {
        id,
        seq,
        conversationId,
        sender: userId,
        client,
        frame: text,
        recalled: false,
      };
      const live = new LiveMessage(entry, origin);
      this.publisher.publish(route.topics, live);
      if (route.assistant) for (const listener of this.onRequest) listener();
    });
  }

  /** The group may have been deleted and made anew by another process: where it was known to be is looked up once more. */
  private async resend(sender: Sender, route: Route, message: OutgoingMessage, done: OnSent): Promise<void> {
    const { frame } = message;
    try {
      this.forgetGroup(sender.tenantId, idText(frame.target));
      this.send(sender, { ...route, ...(await this.route(sender, frame)) }, message, done, true);
    } catch (error) {
      done(null, error as AppError | FrameError);
    }
  }

  /** The same as a promise. Rejects with AppError (REST's language). */
  async store(
    sender: Sender,
    frame: MessageFrame,
  ): Promise<{ conversationId: ConversationId; result: Appended }> {
    const route = await this.route(sender, frame);
    return new Promise((resolve, reject) => {
      const text = canonical(frame);
      this.send(sender, route, { frame, text }, (sent, error) => (sent ? resolve(sent) : reject(error!)));
    });
  }

  /** Joins or leaves; who did so before is acknowledged, and nobody hears of it. Throws FrameError. */
  async changeMembership(sender: Sender, frame: MembershipFrame): Promise<MembershipChange> {
    const { tenantId, userId, client, server } = sender;
    const groupId = idText(frame.target);
    const entry = { groupId, userId, client, frame: canonical(frame) };
    const settings = await this.tenants.settings(tenantId);
    if (!settings) throw new AppError('NOT_FOUND');
    if (frame.type === 'join' && settings.groupPolicy === 'managed' && !server) {
      throw new FrameError(CODE.noGroup, "target: this tenant's groups are managed by its server");
    }
    const change =
      frame.type === 'join'
        ? await this.conversations.join(tenantId, entry, {
            mayCreate: true,
            maxMembers: limitsOf(this.config, settings).groupMembers,
          })
        : await this.conversations.leave(tenantId, entry);
    if (!change) throw new FrameError(CODE.noGroup, 'target: no such group');
    this.announce(sender, frame.type, change);
    return change;
  }

  /** What the group may have, under the tenant's limit. */
  async maxMembers(tenantId: TenantId, own: number | null): Promise<number> {
    const settings = await this.tenants.settings(tenantId);
    if (!settings) throw new AppError('NOT_FOUND');
    const { groupMembers } = limitsOf(this.config, settings);
    return own ?? groupMembers;
  }

  private announce(
    { tenantId, userId, origin }: Sender,
    type: 'join' | 'leave',
    { conversationId, entry, gap }: MembershipChange,
  ): void {
    if (!entry) return;
    if (type === 'join') {
      void this.announceJoins(tenantId, conversationId, [{ entry, ...(gap && { gap }) }], origin);
      return;
    }
    // A leaving user's own devices hear the entry before they stop.
    this.publisher.publish([groupTopic(conversationId)], new LiveMessage(entry, origin));
    this.publisher.control(tenantId, userId, { kind: 'left', conversationId, seq: entry.seq });
  }

  /** Committed joins, to the group. Many are told in several turns of the event loop, so that others get theirs. */
  async announceJoins(
    tenantId: TenantId,
    conversationId: ConversationId,
    joined: readonly Joined[],
    origin = '',
  ): Promise<void> {
    // Who comes listens before the entries do: else what is said meanwhile would pass by.
    for (const { entry, gap } of joined) {
      const fromSeq = entry.seq - 1;
      this.publisher.control(tenantId, entry.sender, {
        kind: 'joined',
        conversationId,
        fromSeq,
        ...(gap && { gap }),
      });
    }
    for (let from = 0; from < joined.length; from += JOINS_A_TURN) {
      if (from > 0) await new Promise((resolve) => setImmediate(resolve));
      for (const { entry } of joined.slice(from, from + JOINS_A_TURN))
        this.publisher.publish([groupTopic(conversationId)], new LiveMessage(entry, origin));
    }
  }

  forgetGroup(tenantId: TenantId, groupId: string): void {
    this.known.delete(groupKey(tenantId, groupId));
  }

  private async routeGroup({ tenantId }: Sender, groupId: string, content: string): Promise<Route> {
    const key = groupKey(tenantId, groupId);
    let route = this.known.get(key);
    if (!route) {
      const group = await this.conversations.findGroup(tenantId, groupId);
      if (!group) throw new FrameError(CODE.noGroup, 'target: no such group');
      const { id } = group;
      route = { conversationId: id, topics: [groupTopic(id)], peer: null, assistant: null };
      this.known.set(key, route);
    }
    const assistant = await this.mentioned(tenantId, content);
    return assistant ? { ...route, assistant } : route;
  }

  /** The first assistant that a text mentions by `@slug`. */
  private async mentioned(tenantId: TenantId, content: string): Promise<Contact | null> {
    const slugs = [...content.matchAll(MENTION)]
      .slice(0, MAX_MENTIONS)
      .map(([, slug]) => slug!.toLowerCase());
    for (const slug of new Set(slugs)) {
      const contact = await this.assistants.findContact(tenantId, { slug });
      if (contact?.versionId) return contact;
    }
    return null;
  }

  private async routeSingle(sender: Sender, to: string): Promise<Route> {
    const { tenantId, userId } = sender;
    if (mayBeAssistantsId(to)) {
      const id = to as AssistantId;
      if (await this.assistants.findContact(tenantId, { id })) return this.routeAssistant(sender, to, { id });
    }
    return this.routePair(tenantId, userId, to, null);
  }

  private async routeAssistant(
    { tenantId, userId }: Sender,
    to: string,
    by: { slug: string } | { id: AssistantId },
  ): Promise<Route> {
    const assistant = await this.assistants.findContact(tenantId, by);
    if (!assistant?.versionId) throw new FrameError(CODE.noGroup, `target: no published assistant ${to}`);
    const route = await this.routePair(
      tenantId,
      userId,
      ASSISTANT_PREFIX + assistant.assistantId,
      assistant.assistantId,
    );
    return { ...route, assistant };
  }

  private async routePair(
    tenantId: TenantId,
    userId: string,
    peer: string,
    assistantId: AssistantId | null,
  ): Promise<Route> {
    const key = pairKey(tenantId, userId, peer);
    const known = this.known.get(key);
    if (known) return known;
    const conversationId = await this.conversations.single(tenantId, userId, peer, assistantId);
    const topics = userTopics(tenantId, assistantId ? [userId] : [userId, peer]);
    const route: Route = { conversationId, topics, peer, assistant: null };
    this.known.set(key, route);
    return route;
  }
}

const mayBeAssistantsId = (to: string): boolean => to.length >= MIN_ASSISTANT_ID_CHARS && isId(to);
const pairKey = (tenantId: TenantId, from: string, to: string): string => `${tenantId}\n${from}\n${to}`;
const groupKey = (tenantId: TenantId, groupId: string): string => `${tenantId}\n\n${groupId}`;
