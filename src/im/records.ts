import { parseExact, timeOfId } from '../common';
import {
  ASSISTANT_PREFIX,
  peerOf,
  type Broadcast,
  type Conversation,
  type LogEntry,
  type Member,
  type Standing,
} from '../messages';

export { tombstone } from '../messages';

/** A conversation as one of its users sees it (protocols/im.md, `ready`). */
export function conversationRecord(
  { id, kind, key, lastSeq, readSeq, unread, untilSeq }: Standing,
  userId: string,
) {
  return {
    id,
    kind,
    target: kind === 'group' ? groupIdOf(key) : contactOf(peerOf(key, userId)),
    lastSeq: untilSeq ?? lastSeq,
    readSeq,
    unread,
  };
}

/** The key of a deleted group has its conversation's id behind it, so that the group's id is free again. */
function groupIdOf(key: string): string {
  return key.split('\n', 1)[0]!;
}

/** An assistant is known to clients by its id. */
function contactOf(peer: string): string {
  return peer.startsWith(ASSISTANT_PREFIX) ? peer.slice(ASSISTANT_PREFIX.length) : peer;
}

/** A row of the history. */
export function messageRecord({ id, seq, conversationId, frame, recalled }: LogEntry) {
  const { type, source, target, msgType, msg, extra } = parseExact(frame);
  return {
    id,
    seq,
    conversationId,
    type,
    source,
    target,
    msgType: msgType ?? 'text',
    msg: msg ?? null,
    extra: extra ?? null,
    timestamp: timeOfId(id),
    recalled,
  };
}

export function groupRecord({
  id,
  key,
  name,
  attributes,
  maxMembers,
  muted,
  memberCount,
  lastSeq,
  createdAt,
}: Conversation) {
  return {
    groupId: groupIdOf(key),
    conversationId: id,
    name,
    attributes,
    maxMembers,
    muted,
    memberCount,
    lastSeq,
    createdAt: createdAt.getTime(),
  };
}

export function broadcastRecord({
  id,
  status,
  sender,
  msgId,
  everybody,
  recipients,
  stored,
  repeated,
  failed,
  createdAt,
  endedAt,
}: Broadcast) {
  return {
    id,
    status,
    source: sender,
    msgId,
    everybody,
    recipients,
    stored,
    repeated,
    failed,
    createdAt: createdAt.getTime(),
    endedAt: endedAt?.getTime() ?? null,
  };
}

export function memberRecord({ userId, role, mutedUntil, joinedAt }: Member) {
  return { userId, role, mutedUntil: mutedUntil?.getTime() ?? null, joinedAt: joinedAt.getTime() };
}

/** A list by the tenant's own ids, from one row more than asked for. */
export function pageById<T>(rows: readonly T[], limit: number, idOf: (row: T) => string) {
  const data = rows.slice(0, limit);
  return { data, nextCursor: rows.length > limit ? idOf(data.at(-1)!) : null };
}
