export type { MessageDraft } from './append-statements';
export * from './conversation-erasure';
export * from './conversation-records';
export * from './conversations.repository';
export * from './device-keeper';
export { LATE_MS } from './device-statements';
export * from './devices.repository';
export * from './dialogue-archive.repository';
export { DialoguesRepository } from './dialogues.repository';
export type { DialogueListQuery, MessageListQuery, Page, StoredReply } from './dialogues.repository';
export * from './message-log';
export * from './message-partitions';
export * from './messages.module';
export * from './recent-conversations';
export * from './records';
export * from './reply-requests.repository';
export * from './sessions.repository';
export * from './tombstone';
export { endReply, stopRequested, storeCheckpoints, storeStep } from './turn-statements';
import { DialogueMessageEntity } from './dialogue-message.entity';
import { DialogueEntity } from './dialogue.entity';

/** For the DataSource alone. */
export const messageEntities = [DialogueEntity, DialogueMessageEntity];
