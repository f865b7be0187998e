import { Injectable } from '@nestjs/common';
import type { EntityManager } from 'typeorm';
import { GenerationRecordsRepository } from '../assistants';
import { AppError, type DialogueId, type MessageId, type TenantId } from '../common';
import { ConversationErasure, DialogueArchive, type ErasedDialogues } from '../messages';
import { anonymiseReplies, anonymiseUser, recordErased, type Wire } from '../usage';

/** How much went; for the audit log, which is not to hold what went. */
export interface Erased {
  readonly dialogues: number;
  /** Messages of conversations that are tombstones now. */
  readonly messages: number;
  readonly generations: number;
  /** Rows of the ledger that name nobody any more. */
  readonly ledgerRows: number;
}

const DIALOGUES_A_ROUND = 200;
const GENERATIONS_A_ROUND = 100;

/** Erases in the caller's transaction: everything of it, with the audit log's entry, or nothing. */
@Injectable()
export class Eraser {
  constructor(
    private readonly dialogues: DialogueArchive,
    private readonly conversations: ConversationErasure,
    private readonly generations: GenerationRecordsRepository,
  ) {}

  /** NOT_FOUND when this tenant has no such dialogue. */
  async eraseDialogue(tx: EntityManager, tenantId: TenantId, id: DialogueId): Promise<Erased> {
    await this.dialogues.get(tx, tenantId, id);
    const erased = await this.dialogues.erase(tx, tenantId, [id]);
    return { ...(await this.follow(tx, tenantId, erased)), dialogues: erased.dialogues, generations: 0 };
  }

  /** NOT_FOUND when this tenant knows nothing of such a user. */
  async eraseUser(tx: EntityManager, tenantId: TenantId, userId: string): Promise<Erased> {
    let dialogues = 0;
    let messages = 0;
    let ledgerRows = 0;
    for (;;) {
      const ids = await this.dialogues.ofUser(tx, tenantId, userId, DIALOGUES_A_ROUND);
      if (ids.length === 0) break;
      const erased = await this.dialogues.erase(tx, tenantId, ids);
      const followed = await this.follow(tx, tenantId, erased);
      dialogues += erased.dialogues;
      messages += followed.messages;
      ledgerRows += followed.ledgerRows;
    }
    for (const voice of await this.conversations.voicesOf(tx, tenantId, userId))
      messages += await this.conversations.silence(tx, tenantId, voice);
    const known = await this.conversations.forget(tx, tenantId, userId);
    let generations = 0;
    for (let some = GENERATIONS_A_ROUND; some === GENERATIONS_A_ROUND; generations += some)
      some = await this.eraseGenerations(tx, tenantId, { userId }, GENERATIONS_A_ROUND);
    ledgerRows += await anonymiseUser(tx, tenantId, userId);
    const erased = { dialogues, messages, generations, ledgerRows };
    if (known + Object.values(erased).reduce((sum, one) => sum + one, 0) === 0)
      throw new AppError('NOT_FOUND');
    return erased;
  }

  /**
   * At most `limit` records of generation apps; how many. Their images are let go of, and go a moment later if no other
   * record shows them. What is still being made has its ledger row, and will find no record to end.
   */
  async eraseGenerations(
    tx: EntityManager,
    tenantId: TenantId,
    which: { readonly userId: string } | { readonly before: Date },
    limit: number,
  ): Promise<number> {
    const found = await this.generations.erasable(tx, tenantId, which, limit);
    for (const { id, running, keyId, modelServiceId } of found) {
      const underWay = { keyId, assistantId: null, modelServiceId, wire: 'generation' } as const;
      if (running) await recordErased(tx, tenantId, { id: id as string as MessageId, ...underWay });
    }
    if (found.length > 0)
      await this.generations.erase(
        tx,
        tenantId,
        found.map(({ id }) => id),
      );
    return found.length;
  }

  private async follow(
    tx: EntityManager,
    tenantId: TenantId,
    { replyIds, conversationIds, underWay }: ErasedDialogues,
  ): Promise<Pick<Erased, 'messages' | 'ledgerRows'>> {
    // Told to stop before, and not ended in time.
    for (const { wire, ...reply } of underWay)
      await recordErased(tx, tenantId, { ...reply, wire: wire as Wire });
    let messages = 0;
    for (const conversationId of conversationIds)
      messages += await this.conversations.silence(tx, tenantId, { conversationId, sender: null });
    return { messages, ledgerRows: await anonymiseReplies(tx, tenantId, replyIds) };
  }
}
