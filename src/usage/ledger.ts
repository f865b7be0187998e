import type { ApiKeyId, AssistantId, MessageId, ModelServiceId, TenantId } from '../common';
import type { Statement } from '../database';

/** What asked for it: a wire's dialogue, or the kind of what was made. */
export const WIRES = [
  'dialogue',
  'channel',
  'openai',
  'im',
  'generation',
  'embedding',
  'image',
  'speech',
] as const;
export type Wire = (typeof WIRES)[number];

/** In the ledger's place of a user whose data was erased, or is older than its tenant keeps. */
export const ERASED_USER = 'erased';

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
  /** By default a generation app's. */
  readonly wire?: Wire;
  /** The model's name at its provider and its price then; by default what the service's are now. */
  readonly charged?: Charged;
}

/** What the column holds, some 25 days: of what was found that late it is not known anyway. */
const MAX_LATENCY_MS = 2_147_483_647;

export interface Charged {
  readonly model: string;
  /** Credits a million tokens. */
  readonly inputPrice: number;
  readonly outputPrice: number;
}

const priceNow = (column: string): string =>
  `select ${column} from model_prices where model_service_id = $6 and effective_from <= now()
   order by effective_from desc limit 1`;

/**
 * Exactly one row a reply, in the transaction that ends it. A reply that was taken for dead and whose writer then
 * finished it after all overwrites its row; any other second ending of the same reply changes nothing.
 */
export const recordUsage = (entry: LedgerEntry): Statement<void> => ({
  name: 'usage-record',
  text: `insert into usage_ledger (message_id, tenant_id, key_id, user_id, assistant_id, model_service_id, attempts,
           prompt_tokens, completion_tokens, total_tokens, estimated, credits, outcome, first_piece_ms, latency_ms,
           wire, model, input_price, output_price)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16,
           coalesce($17, (select model from model_services where id = $6), ''),
           coalesce($18::numeric, (${priceNow('input_price')}), 0), coalesce($19::numeric, (${priceNow('output_price')}), 0))
         on conflict (message_id) do update set attempts = excluded.attempts, prompt_tokens = excluded.prompt_tokens,
           completion_tokens = excluded.completion_tokens, total_tokens = excluded.total_tokens,
           estimated = excluded.estimated, credits = excluded.credits, outcome = excluded.outcome,
           first_piece_ms = excluded.first_piece_ms, latency_ms = excluded.latency_ms, txid = excluded.txid
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
    Math.min(entry.latencyMs, MAX_LATENCY_MS),
    entry.wire ?? 'generation',
    entry.charged?.model ?? null,
    entry.charged?.inputPrice ?? null,
    entry.charged?.outputPrice ?? null,
  ],
  map: () => undefined,
});

export function chargedOf({ model, inputPrice, outputPrice }: Charged): Charged {
  return { model, inputPrice, outputPrice };
}

/** Credits: prices are per million tokens, rounded to the ledger's six decimals. */
export function creditsOf(
  usage: { promptTokens: number; completionTokens: number },
  price: { inputPrice: number; outputPrice: number },
): number {
  const credits =
    (usage.promptTokens * price.inputPrice + usage.completionTokens * price.outputPrice) / 1_000_000;
  return Math.round(credits * 1_000_000) / 1_000_000;
}
