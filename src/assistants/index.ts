export * from './assistants.module';
export * from './assistants.repository';
export * from './generation-apps.repository';
export * from './generation-records.repository';
export * from './prompt-template';
import { AssistantVersionEntity } from './assistant-version.entity';
import { AssistantEntity } from './assistant.entity';
import { GenerationAppEntity } from './generation-app.entity';
import { GenerationRecordEntity } from './generation-record.entity';

/** For the DataSource alone. */
export const assistantEntities = [
  AssistantEntity,
  AssistantVersionEntity,
  GenerationAppEntity,
  GenerationRecordEntity,
];
