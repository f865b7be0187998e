import type { ApiKeyId, AssistantId, MessageId, ModelServiceId, TenantId } from '../common';
import type { Statement } from '../database';

/** What one reply cost, whatever its ending. */
export interface LedgerEntry {
  readonly tenantId: TenantId;
  readonly messageId: MessageId;
  readonly keyId: ApiKeyId | null;
  readonly userId: string;
  readonly assistantId: AssistantId | null;
  readonly modelServiceId: ModelServiceId;
  /** Upstream requests made. */
  readonly attempts: number;
  readonly promptTokens: number;
  readonly completionTokens: number;
  readonly totalTokens: number;
  readonly estimated: boolean;
  readonly credits: number;
  readonly outcome: 'finished' | 'stopped' | 'interrupted' | 'failed';
  /** Null when no piece ever came. */
  readonly firstPieceMs: number | null;
  readonly latencyMs: number;
}

/**
 * Exactly one row a reply, in the transaction that ends it. A reply that was taken for dead and whose writer then
 * finished it after all overwrites its row; any other second ending of the same reply changes nothing.
 */
export const recordUsage = (entry: LedgerEntry): Statement<void> => ({
  name: 'usage-record',
  text: `insert into usage_ledger (message_id, tenant_id, key_id, user_id, assistant_id, model_service_id, attempts,
           prompt_tokens, completion_tokens, total_tokens, estimated, credits, outcome, first_piece_ms, latency_ms)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
         on conflict (message_id) do update set attempts = excluded.attempts, prompt_tokens = excluded.prompt_tokens,
           completion_tokens = excluded.completion_tokens, total_tokens = excluded.total_tokens,
           estimated = excluded.estimated, credits = excluded.credits, outcome = excluded.outcome,
           first_piece_ms = excluded.first_piece_ms, latency_ms = excluded.latency_ms
         where usage_ledger.outcome = 'interrupted'`,
  values: [
    entry.messageId,
    entry.tenantId,
    entry.keyId,
    entry.userId,
    entry.assistantId,
    entry.modelServiceId,
    entry.attempts,
    entry.promptTokens,
    entry.completionTokens,
    entry.totalTokens,
    entry.estimated,
    entry.credits,
    entry.outcome,
    entry.firstPieceMs,
    entry.latencyMs,
  ],
  map: () => undefined,
});

/** Credits: prices are per million tokens, rounded to the ledger's six decimals. */
export function creditsOf(
  usage: { promptTokens: number; completionTokens: number },
  price: { inputPrice: number; outputPrice: number },
): number {
  const credits =
    (usage.promptTokens * price.inputPrice + usage.completionTokens * price.outputPrice) / 1_000_000;
  return Math.round(credits * 1_000_000) / 1_000_000;
}
