export * from './assistants.module';
export * from './assistants.repository';
import { AssistantVersionEntity } from './assistant-version.entity';
import { AssistantEntity } from './assistant.entity';

/** For the DataSource alone. */
export const assistantEntities = [AssistantEntity, AssistantVersionEntity];
