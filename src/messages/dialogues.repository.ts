import { Injectable } from '@nestjs/common';
import { Not, type FindOptionsWhere } from 'typeorm';
import type {
  AssistantId,
  AssistantVersionId,
  DialogueId,
  MessageId,
  ModelServiceId,
  TenantId,
} from '../common';
import { Database, platformScope, tenantScope, type Statement } from '../database';
import { DialogueMessageEntity } from './dialogue-message.entity';
import { DialogueEntity } from './dialogue.entity';
import type {
  BranchMessage,
  Dialogue,
  DialogueMessage,
  OrphanedReply,
  ReplyProgress,
  TurnDraft,
  TurnOutcome,
} from './records';
import {
  claimKey,
  claimSession,
  lockDialogue,
  orphanedReplies,
  pruneKeys,
  readBranch,
  readKey,
  readParent,
  releaseKey,
  releaseSession,
  repliesInProgress,
  replyProgress,
  stopDialogue,
  storeFirstTurn,
  storeTurn,
  tellConversation,
} from './turn-statements';

export interface DialogueListQuery {
  readonly assistantId?: AssistantId;
  readonly userId?: string;
  readonly orderBy: 'updatedAt' | 'createdAt' | 'name';
  readonly descending: boolean;
  readonly offset: number;
  readonly limit: number;
}

export interface MessageListQuery {
  readonly orderBy: 'id' | 'createdAt';
  readonly descending: boolean;
  readonly offset: number;
  readonly limit: number;
}

export interface Page<T> {
  readonly total: number;
  readonly rows: T[];
}

/** A reply with what its first event says: the dialogue and the user's message it answers. */
export interface StoredReply {
  readonly dialogue: Dialogue;
  readonly message: DialogueMessage;
  readonly reply: DialogueMessage;
}

@Injectable()
export class DialoguesRepository {
  constructor(private readonly database: Database) {}

  /**
   * Stores a turn: everything of it or nothing, in one round trip. `alongside` makes statements of the prompt's branch
   * that belong to the same transaction, and may fail it: then it takes two.
   */
  async storeTurn(
    draft: TurnDraft,
    alongside?: (branch: readonly BranchMessage[]) => readonly Statement<unknown>[],
  ): Promise<TurnOutcome> {
    const scope = tenantScope(draft.tenantId);
    const keyed = draft.idempotency !== null;
    const statements: Statement<unknown>[] = [];
    const add = <T>(statement: Statement<T>): (() => T) => {
      const index = statements.push(statement) - 1;
      return () => results[index] as T;
    };
    if (keyed) add(claimKey(draft));
    const found = draft.dialogueId ? add(lockDialogue(draft)) : () => true;
    const parent = draft.dialogueId ? add(readParent(draft)) : () => 'free' as const;
    const named = draft.dialogueId === null && draft.session !== null;
    if (named) add(claimSession(draft));
    const stored = draft.dialogueId ? add(storeTurn(draft)) : add(storeFirstTurn(draft));
    if (named) add(releaseSession(draft));
    const branch = draft.dialogueId
      ? add(readBranch(draft))
      : () => [...draft.history, { role: 'user' as const, content: draft.content }];
    const told = draft.dialogueId && draft.tellConversation ? add(tellConversation(draft)) : () => false;
    if (keyed) add(releaseKey(draft));
    const holder = keyed ? add(readKey(draft)) : () => null;
    const outcome = (): TurnOutcome => {
      const key = holder();
      if (key && key.replyId !== draft.replyId) return { outcome: 'repeated', ...key };
      const turn = stored();
      if (turn) return { outcome: 'stored', ...turn, branch: branch(), told: told() };
      if (named) return { outcome: 'session-taken' };
      if (!found()) return { outcome: 'no-dialogue' };
      return { outcome: parent() === 'in-progress' ? 'parent-in-progress' : 'no-parent' };
    };
    let results: unknown[] = [];
    if (!alongside) {
      results = await this.database.run(scope, statements);
      return outcome();
    }
    let turn: TurnOutcome | undefined;
    await this.database.runTwice(scope, statements, (found) => {
      results = found;
      turn = outcome();
      return turn.outcome === 'stored' ? alongside(turn.branch) : [];
    });
    return turn!;
  }

  /** Null when this tenant has no reply (a message of role assistant) of that id. */
  findReply(tenantId: TenantId, replyId: MessageId): Promise<StoredReply | null> {
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      const reply = await tx.findOneBy(DialogueMessageEntity, { tenantId, id: replyId, role: 'assistant' });
      const message =
        reply?.parentId && (await tx.findOneBy(DialogueMessageEntity, { tenantId, id: reply.parentId }));
      const dialogue = message && (await tx.findOneBy(DialogueEntity, { tenantId, id: message.dialogueId }));
      return dialogue
        ? {
            dialogue: fromEntity(dialogue),
            message: messageFromEntity(message),
            reply: messageFromEntity(reply),
          }
        : null;
    });
  }

  /** False when it was erased. */
  replyStands(tenantId: TenantId, replyId: MessageId): Promise<boolean> {
    return this.database.one(tenantScope(tenantId), replyStands(tenantId, replyId));
  }

  /** Null when this tenant has no such dialogue. */
  findDialogue(tenantId: TenantId, id: DialogueId): Promise<Dialogue | null> {
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      const row = await tx.findOneBy(DialogueEntity, { tenantId, id });
      return row && fromEntity(row);
    });
  }

  listDialogues(tenantId: TenantId, query: DialogueListQuery): Promise<Page<Dialogue>> {
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      const where: FindOptionsWhere<DialogueEntity> = {
        tenantId,
        ...(query.assistantId && { assistantId: query.assistantId }),
        ...(query.userId !== undefined && { userId: query.userId }),
      };
      const direction = query.descending ? 'desc' : 'asc';
      const [rows, total] = await tx.findAndCount(DialogueEntity, {
        where,
        order: { [query.orderBy]: direction, id: direction },
        skip: query.offset,
        take: query.limit,
      });
      return { total, rows: rows.map(fromEntity) };
    });
  }

  /** Every branch's messages, the root left out; null when this tenant has no such dialogue. */
  listMessages(
    tenantId: TenantId,
    dialogueId: DialogueId,
    query: MessageListQuery,
  ): Promise<Page<DialogueMessage> | null> {
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      if (!(await tx.existsBy(DialogueEntity, { tenantId, id: dialogueId }))) return null;
      const direction = query.descending ? 'desc' : 'asc';
      const [rows, total] = await tx.findAndCount(DialogueMessageEntity, {
        where: { tenantId, dialogueId, role: Not('system') },
        order: { [query.orderBy]: direction, id: direction },
        skip: query.offset,
        take: query.limit,
      });
      return { total, rows: rows.map(messageFromEntity) };
    });
  }

  /** Asks its replies in progress to stop; their ids, or null when there is no such dialogue. */
  stop(
    tenantId: TenantId,
    id: DialogueId,
    how: { readonly close: boolean; readonly onlyUser: string | null },
  ): Promise<MessageId[] | null> {
    return this.database.one(tenantScope(tenantId), stopDialogue(tenantId, id, how));
  }

  inProgress(tenantId: TenantId, id: DialogueId): Promise<MessageId[]> {
    return this.database.one(tenantScope(tenantId), repliesInProgress(tenantId, id));
  }

  orphanedReplies(leaseMs: number, limit: number): Promise<OrphanedReply[]> {
    return this.database.one(platformScope(), orphanedReplies(leaseMs, limit));
  }

  /** Null when nobody writes it any more. */
  progress(tenantId: TenantId, replyId: MessageId): Promise<ReplyProgress | null> {
    return this.database.one(tenantScope(tenantId), replyProgress(tenantId, replyId));
  }

  /** What a dead writer had checkpointed of a reply. */
  checkpointed(tenantId: TenantId, replyId: MessageId): Promise<{ content: string; reasoning: string }> {
    return this.database.one(tenantScope(tenantId), checkpointed(tenantId, replyId));
  }

  /** Deletes Idempotency-Keys past their window; returns how many, 1,000 at most. */
  pruneKeys(): Promise<number> {
    return this.database.one(platformScope(), pruneKeys);
  }
}

const replyStands = (tenantId: TenantId, replyId: MessageId): Statement<boolean> => ({
  name: 'reply-stands',
  text: 'select 1 from dialogue_messages where tenant_id = $1 and id = $2',
  values: [tenantId, replyId],
  map: (rows) => rows.length > 0,
});

const checkpointed = (
  tenantId: TenantId,
  replyId: MessageId,
): Statement<{ content: string; reasoning: string }> => ({
  name: 'reply-checkpointed',
  text: `select coalesce(string_agg(content, '' order by part), '') as content,
           coalesce(string_agg(reasoning, '' order by part), '') as reasoning
         from reply_checkpoints where tenant_id = $1 and message_id = $2`,
  values: [tenantId, replyId],
  map: ([row]) => ({ content: row?.content as string, reasoning: row?.reasoning as string }),
});

export function fromEntity(row: DialogueEntity): Dialogue {
  return {
    ...row,
    id: row.id as DialogueId,
    tenantId: row.tenantId as TenantId,
    assistantId: row.assistantId as AssistantId | null,
    versionId: row.versionId as AssistantVersionId | null,
    modelServiceId: row.modelServiceId as ModelServiceId,
    totalTokens: Number(row.totalTokens),
    credits: Number(row.credits),
  };
}

export function messageFromEntity(row: DialogueMessageEntity): DialogueMessage {
  return {
    ...row,
    id: row.id as MessageId,
    dialogueId: row.dialogueId as DialogueId,
    parentId: row.parentId as MessageId | null,
    modelServiceId: row.modelServiceId as ModelServiceId | null,
    credits: Number(row.credits),
    error: row.errorCode === null ? null : { code: row.errorCode, message: row.errorMessage ?? '' },
  };
}
