import { Global, Module } from '@nestjs/common';
import { BroadcastsRepository } from './broadcasts.repository';
import { ConversationErasure } from './conversation-erasure';
import { ConversationsRepository } from './conversations.repository';
import { DeviceKeeper } from './device-keeper';
import { DevicesRepository } from './devices.repository';
import { DialogueArchive } from './dialogue-archive.repository';
import { DialoguesRepository } from './dialogues.repository';
import { MessageLog } from './message-log';
import { MessagePartitions } from './message-partitions';
import { ReplyRequestsRepository } from './reply-requests.repository';
import { SessionsRepository } from './sessions.repository';
import { UserConversations } from './user-conversations';

/** Messages: sole owner of what was said: dialogues (a tree) and conversations (a numbered log). Others store and read through its repositories and statements; nobody else touches its tables. */
@Global()
@Module({
  providers: [
    DialoguesRepository,
    DialogueArchive,
    BroadcastsRepository,
    ConversationErasure,
    ConversationsRepository,
    DeviceKeeper,
    DevicesRepository,
    MessageLog,
    MessagePartitions,
    ReplyRequestsRepository,
    SessionsRepository,
    UserConversations,
  ],
  exports: [
    DialoguesRepository,
    DialogueArchive,
    BroadcastsRepository,
    ConversationErasure,
    ConversationsRepository,
    DevicesRepository,
    MessageLog,
    MessagePartitions,
    ReplyRequestsRepository,
    SessionsRepository,
    UserConversations,
  ],
})
export class MessagesModule {}
