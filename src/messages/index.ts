export * from './dialogues.repository';
export * from './messages.module';
export * from './records';
export { endReply, stopRequested, storeCheckpoints } from './turn-statements';
import { DialogueMessageEntity } from './dialogue-message.entity';
import { DialogueEntity } from './dialogue.entity';

/** For the DataSource alone. */
export const messageEntities = [DialogueEntity, DialogueMessageEntity];
