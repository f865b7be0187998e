import type { AssistantId, ConversationId, MessageId, TenantId } from '../common';

export type ConversationKind = 'single' | 'group';
export type MemberRole = 'owner' | 'admin' | 'member';

/** A numbered log: two users', a user's with an assistant, or a group's. */
export interface Conversation {
  readonly id: ConversationId;
  readonly tenantId: TenantId;
  readonly kind: ConversationKind;
  /** A group's own id; for `single` the two ids as JSON (see {@link singleKey}). */
  readonly key: string;
  readonly name: string;
  readonly attributes: Readonly<Record<string, unknown>>;
  readonly maxMembers: number | null;
  /** Only the owner and admins may speak. */
  readonly muted: boolean;
  readonly assistantId: AssistantId | null;
  readonly memberCount: number;
  readonly lastSeq: number;
  readonly createdAt: Date;
}

export interface Member {
  readonly userId: string;
  readonly role: MemberRole;
  readonly mutedUntil: Date | null;
  readonly joinedAt: Date;
}

/** Numbers that a user was no member at: after `after`, up to `until`. */
export interface Gap {
  readonly after: number;
  readonly until: number;
}

/** Past the gap that a place lies in, if it does: what comes next for the user comes after that. */
export function pastGaps(gaps: readonly Gap[], place: number): number {
  return gaps.find(({ after, until }) => after <= place && place < until)?.until ?? place;
}

/** A conversation as one user, and one device of theirs, stands to it. */
export interface Standing {
  readonly id: ConversationId;
  readonly kind: ConversationKind;
  readonly key: string;
  readonly assistantId: AssistantId | null;
  readonly lastSeq: number;
  readonly lastId: MessageId | null;
  readonly readSeq: number;
  /** Computed: last − read − own. */
  readonly unread: number;
  /** What the device is known to have; for a user without a device 0. */
  readonly mark: number;
  /** False: the mark is where the device began, not what it has read. */
  readonly marked: boolean;
  /** Between the intervals of the membership, oldest first. */
  readonly gaps: readonly Gap[];
  /** Null while the user is in. Afterwards the last entry that is theirs to see. */
  readonly untilSeq: number | null;
}

/** An entry of a conversation's log. */
export interface LogEntry {
  readonly id: MessageId;
  readonly seq: number;
  readonly conversationId: ConversationId;
  readonly sender: string;
  /** The device kind it was sent from; empty for a server's. */
  readonly client: string;
  /** The frame as JSON text, as the sender meant it: `id` and `seq` are not in it. */
  readonly frame: string;
  readonly recalled: boolean;
}

/** The two sides of a one-to-one conversation, the same whoever writes first. */
export function singleKey(a: string, b: string): string {
  return JSON.stringify(sideOf(a, b) === 0 ? [a, b] : [b, a]);
}

/** Of the two of a one-to-one conversation: the first in its key, or the second. */
export type Side = 0 | 1;

export function sideOf(userId: string, peer: string): Side {
  return userId <= peer ? 0 : 1;
}

/** Prefix of the side that is an assistant: no user's id may begin with it. */
export const ASSISTANT_PREFIX = 'agent:';

/** The other side of a one-to-one conversation. */
export function peerOf(key: string, userId: string): string {
  const [a, b] = JSON.parse(key) as [string, string];
  return a === userId ? b : a;
}
