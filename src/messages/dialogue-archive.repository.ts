import { Injectable } from '@nestjs/common';
import { LessThan, MoreThan, Not, type EntityManager } from 'typeorm';
import {
  AppError,
  cursorPage,
  type ApiKeyId,
  type AssistantId,
  type ConversationId,
  type CursorPage,
  type CursorQuery,
  type DialogueId,
  type MessageId,
  type ModelServiceId,
  type TenantId,
} from '../common';
import type { Row } from '../database';
import { DialogueMessageEntity } from './dialogue-message.entity';
import { DialogueEntity } from './dialogue.entity';
import { fromEntity, messageFromEntity } from './dialogues.repository';
import type { Dialogue, DialogueMessage } from './records';

export interface DialogueFilter extends CursorQuery {
  readonly userId?: string;
  readonly assistantId?: AssistantId;
}

/** What else knows of dialogues that are gone. */
export interface ErasedDialogues {
  readonly dialogues: number;
  /** Of the ledger's rows, by their replies. */
  readonly replyIds: readonly MessageId[];
  /** One-to-one conversations with an assistant in which the same was said. */
  readonly conversationIds: readonly ConversationId[];
  /** Replies that were still being written. */
  readonly underWay: readonly ReplyUnderWay[];
}

export interface ReplyUnderWay {
  readonly id: MessageId;
  readonly keyId: ApiKeyId | null;
  readonly assistantId: AssistantId | null;
  readonly modelServiceId: ModelServiceId;
  readonly wire: string;
}

/** Dialogues as a tenant's operator has them: read by cursor, and erased. */
@Injectable()
export class DialogueArchive {
  /** Newest first. */
  async list(tx: EntityManager, tenantId: TenantId, query: DialogueFilter): Promise<CursorPage<Dialogue>> {
    const { userId, assistantId, cursor, limit } = query;
    const rows = await tx.find(DialogueEntity, {
      where: {
        tenantId,
        ...(userId !== undefined && { userId }),
        ...(assistantId !== undefined && { assistantId }),
        ...(cursor && { id: LessThan(cursor) }),
      },
      order: { id: 'desc' },
      take: limit + 1,
    });
    return cursorPage(rows.map(fromEntity), limit);
  }

  /** NOT_FOUND when there is none. */
  async get(tx: EntityManager, tenantId: TenantId, id: DialogueId): Promise<Dialogue> {
    const row = await tx.findOneBy(DialogueEntity, { tenantId, id });
    if (!row) throw new AppError('NOT_FOUND');
    return fromEntity(row);
  }

  /** Oldest first, every branch's. NOT_FOUND when there is no such dialogue. */
  async messages(
    tx: EntityManager,
    tenantId: TenantId,
    dialogueId: DialogueId,
    { cursor = '0', limit }: CursorQuery,
  ): Promise<CursorPage<DialogueMessage>> {
    await this.get(tx, tenantId, dialogueId);
    const rows = await tx.find(DialogueMessageEntity, {
      where: { tenantId, dialogueId, role: Not('system'), id: MoreThan(cursor) },
      order: { id: 'asc' },
      take: limit + 1,
    });
    return cursorPage(rows.map(messageFromEntity), limit);
  }

  async ofUser(tx: EntityManager, tenantId: TenantId, userId: string, limit: number): Promise<DialogueId[]> {
    return idsOf(
      tx,
      'select id from dialogues where tenant_id = $1 and user_id = $2 order by updated_at desc, id desc limit $3',
      [tenantId, userId, limit],
    );
  }

  /** Those in which nothing was said or done since. */
  async untouchedSince(
    tx: EntityManager,
    tenantId: TenantId,
    since: Date,
    limit: number,
  ): Promise<DialogueId[]> {
    return idsOf(
      tx,
      `select d.id from dialogues d where d.tenant_id = $1 and d.updated_at < $2
         and not exists (select 1 from replies_in_progress p where p.dialogue_id = d.id)
       order by d.id limit $3`,
      [tenantId, since, limit],
    );
  }

  /** Those of the dialogues in which a reply is being written now. */
  async beingWritten(
    tx: EntityManager,
    tenantId: TenantId,
    ids: readonly DialogueId[],
  ): Promise<DialogueId[]> {
    return idsOf(
      tx,
      'select distinct dialogue_id as id from replies_in_progress where tenant_id = $1 and dialogue_id = any($2::bigint[])',
      [tenantId, ids],
    );
  }

  /** With all that hangs on them: messages, steps, checkpoints, sessions, Idempotency-Keys. */
  async erase(tx: EntityManager, tenantId: TenantId, ids: readonly DialogueId[]): Promise<ErasedDialogues> {
    const values = [tenantId, ids];
    const messages = `select id from dialogue_messages where tenant_id = $1 and dialogue_id = any($2::bigint[])`;
    const replyIds = await idsOf<MessageId>(tx, `${messages} and role = 'assistant'`, values);
    const conversationIds = await idsOf<ConversationId>(
      tx,
      `select c.id from conversation_dialogues l join conversations c on c.id = l.conversation_id and c.kind = 'single'
       where l.tenant_id = $1 and c.tenant_id = $1 and l.dialogue_id = any($2::bigint[])`,
      values,
    );
    const underWay = await tx.query<Row[]>(
      `select p.message_id, p.key_id, p.wire, d.assistant_id, coalesce(m.model_service_id, d.model_service_id) as model_service_id
       from replies_in_progress p join dialogues d on d.id = p.dialogue_id and d.tenant_id = $1
       join dialogue_messages m on m.id = p.message_id and m.tenant_id = $1
       where p.tenant_id = $1 and p.dialogue_id = any($2::bigint[])`,
      values,
    );
    for (const table of ['reply_checkpoints', 'idempotency_keys'])
      await tx.query(`delete from ${table} where tenant_id = $1 and message_id in (${messages})`, values);
    for (const table of ['replies_in_progress', 'conversation_dialogues'])
      await tx.query(`delete from ${table} where tenant_id = $1 and dialogue_id = any($2::bigint[])`, values);
    const erased = await idsOf(
      tx,
      `with gone as (delete from dialogues where tenant_id = $1 and id = any($2::bigint[]) returning id) select id from gone`,
      values,
    );
    return {
      dialogues: erased.length,
      replyIds,
      conversationIds,
      underWay: underWay.map((row) => ({
        id: row.message_id as MessageId,
        keyId: row.key_id as ApiKeyId | null,
        assistantId: row.assistant_id as AssistantId | null,
        modelServiceId: row.model_service_id as ModelServiceId,
        wire: row.wire as string,
      })),
    };
  }
}

async function idsOf<T extends string = DialogueId>(
  tx: EntityManager,
  sql: string,
  values: unknown[],
): Promise<T[]> {
  return (await tx.query<Row[]>(sql, values)).map((row) => row.id as T);
}
