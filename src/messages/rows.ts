import type {
  AssistantId,
  AssistantVersionId,
  DialogueId,
  MessageId,
  ModelServiceId,
  TenantId,
} from '../common';
import type { Row } from '../database';
import type { Dialogue, DialogueMessage } from './records';

export const DIALOGUE_COLUMNS = [
  'id',
  'tenant_id',
  'user_id',
  'assistant_id',
  'version_id',
  'model_service_id',
  'name',
  'closed',
  'total_tokens',
  'credits',
  'created_by',
  'updated_by',
  'created_at',
  'updated_at',
] as const;

/** `prefix` stands before the column names where a join returns two records in one row. */
export function toDialogue(row: Row, prefix = ''): Dialogue {
  const column = <T>(name: (typeof DIALOGUE_COLUMNS)[number]): T => row[prefix + name] as T;
  return {
    id: column<DialogueId>('id'),
    tenantId: column<TenantId>('tenant_id'),
    userId: column('user_id'),
    assistantId: column<AssistantId | null>('assistant_id'),
    versionId: column<AssistantVersionId | null>('version_id'),
    modelServiceId: column<ModelServiceId>('model_service_id'),
    name: column('name'),
    closed: column('closed'),
    totalTokens: Number(column('total_tokens')),
    credits: Number(column('credits')),
    createdBy: column('created_by'),
    updatedBy: column('updated_by'),
    createdAt: column('created_at'),
    updatedAt: column('updated_at'),
  };
}

export function toMessage(row: Row): DialogueMessage {
  return {
    id: row.id as MessageId,
    dialogueId: row.dialogue_id as DialogueId,
    parentId: row.parent_id as MessageId | null,
    role: row.role as DialogueMessage['role'],
    content: row.content as string,
    reasoning: row.reasoning as string,
    status: row.status as DialogueMessage['status'],
    userId: row.user_id as string,
    createdBy: row.created_by as string,
    modelServiceId: row.model_service_id as ModelServiceId | null,
    promptTokens: row.prompt_tokens as number,
    completionTokens: row.completion_tokens as number,
    totalTokens: row.total_tokens as number,
    credits: Number(row.credits),
    error:
      row.error_code === null || row.error_code === undefined
        ? null
        : { code: row.error_code as number, message: (row.error_message as string | null) ?? '' },
    createdAt: row.created_at as Date,
  };
}
