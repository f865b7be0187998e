import { Injectable } from '@nestjs/common';
import type { ConversationId, TenantId } from '../common';
import type { Gap } from '../messages';
import { Bus } from '../realtime';
import { LiveMessage } from './live-message';

/** A user's device is told what changed of its own: which groups it is in, that another one took its place. */
export type Control =
  | {
      readonly kind: 'joined';
      readonly conversationId: ConversationId;
      readonly fromSeq: number;
      /** Of one who was in before. */
      readonly gap?: Gap;
    }
  | { readonly kind: 'left'; readonly conversationId: ConversationId; readonly seq: number }
  | { readonly kind: 'replaced'; readonly connectionId: string };

/** An event of the richer dialect. */
export interface RichEvent {
  readonly frame: object;
  /** Lost without harm: typing, presence, a piece of a reply. */
  readonly droppable: boolean;
  /** The connection that caused it and needs no copy. */
  readonly except?: string;
}

export const userKey = (tenantId: TenantId, userId: string): string => `${tenantId}\n${userId}`;
export const userTopic = (key: string): string => `im.user.${key}`;
/** Of a one-to-one conversation: each of its users' once. */
export const userTopics = (tenantId: TenantId, users: readonly string[]): string[] =>
  [...new Set(users)].map((userId) => userTopic(userKey(tenantId, userId)));
export const groupTopic = (id: ConversationId): string => `im.group.${id}`;
export const presenceTopic = (key: string): string => `im.presence.${key}`;

/**
 * What happens, as hints on the bus under the topics of users and groups: `m` a message of the log, `c` a control,
 * `e` and `d` an event of the richer dialect (`d`: droppable).
 */
@Injectable()
export class Publisher {
  private last: { text: string; message: LiveMessage } | undefined;

  constructor(private readonly bus: Bus) {}

  /** An entry that is committed: to everybody whose conversation it is in, on every node. */
  publish(topics: readonly string[], message: LiveMessage): void {
    for (const topic of topics) this.bus.publishLive(topic, message);
  }

  /** To the users of a one-to-one conversation or the members of a group, those that speak the richer dialect. */
  publishEvent(
    tenantId: TenantId,
    to: { readonly users: readonly string[] } | { readonly group: ConversationId },
    { frame, droppable, except = '' }: RichEvent,
  ): void {
    const text = `${droppable ? 'd' : 'e'}${except}\n${JSON.stringify(frame)}`;
    const topics = 'group' in to ? [groupTopic(to.group)] : userTopics(tenantId, to.users);
    for (const topic of topics) this.bus.publish(topic, text);
  }

  /** Who has come into or gone out of a group, told to that user's own devices before and after the group itself. */
  control(tenantId: TenantId, userId: string, control: Control): void {
    this.bus.publish(userTopic(userKey(tenantId, userId)), `c${JSON.stringify(control)}`);
  }

  /** The same message under several topics: its bytes are made once. */
  decode(text: string): LiveMessage {
    if (this.last?.text !== text) this.last = { text, message: LiveMessage.decode(text) };
    return this.last.message;
  }

  /** The kinds of devices that a user has connected now, to who watches this user. */
  presence(tenantId: TenantId, userId: string, clients: readonly string[]): void {
    const frame = presenceFrame(userId, clients);
    this.bus.publish(presenceTopic(userKey(tenantId, userId)), `d\n${JSON.stringify(frame)}`);
  }
}

export function presenceFrame(user: string, clients: readonly string[]): object {
  return { type: 'presence', user, online: clients.length > 0, clients };
}
