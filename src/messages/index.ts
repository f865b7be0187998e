export type { MessageDraft } from './append-statements';
export * from './broadcasts.repository';
export * from './conversation-erasure';
export * from './conversation-records';
export * from './conversations.repository';
export * from './device-keeper';
export { LATE_MS } from './device-statements';
export {
  DevicesRepository,
  FIRST_PLACE,
  type Change,
  type ChangeQuery,
  type ChangesPage,
  type DeviceMark,
  type DeviceSession,
  type OnlineDevice,
  type OpenedDevice,
  type StandingsPage,
  type StandingsPlace,
} from './devices.repository';
export * from './dialogue-archive.repository';
export { DialoguesRepository } from './dialogues.repository';
export type { DialogueListQuery, MessageListQuery, Page, StoredReply } from './dialogues.repository';
export type { Join, Joined } from './group-joins';
export * from './message-log';
export * from './message-partitions';
export * from './messages.module';
export * from './records';
export * from './reply-requests.repository';
export * from './sessions.repository';
export * from './tombstone';
export { placeOf, placeText, UserConversations } from './user-conversations';
export { endReply, stopRequested, storeCheckpoints, storeStep } from './turn-statements';
import { DialogueMessageEntity } from './dialogue-message.entity';
import { DialogueEntity } from './dialogue.entity';

/** For the DataSource alone. */
export const messageEntities = [DialogueEntity, DialogueMessageEntity];
