import { Injectable, Logger, type BeforeApplicationShutdown } from '@nestjs/common';
import {
  ENDING_PATIENCE_MS,
  untilStored,
  within,
  type AssistantId,
  type MessageId,
  type ModelServiceId,
  type Principal,
  type TenantId,
} from '../common';
import { Database, NodeRegistry, tenantScope, type Statement } from '../database';
import { chargedOf, creditsOf, recordUsage, type Charged, type LedgerEntry, type Wire } from './ledger';
import { overQuota, Quotas, reserveUsage, settleUsage, type Estimate } from './quotas';

const DRAIN_LAST_WAIT_MS = 5_000;

/** A request to a model of which nothing is kept but what it came to. */
export interface MeteredRequest {
  readonly principal: Principal;
  readonly id: MessageId;
  readonly wire: Wire;
  readonly assistantId: AssistantId | null;
  readonly service: Charged & { readonly id: ModelServiceId };
  /** What it may come to, for quotas. */
  readonly estimate: Estimate;
  /** What is counted should this process die with it. */
  readonly promptTokens: number;
}

/** How it went. */
export type RequestEnding = Pick<
  LedgerEntry,
  | 'outcome'
  | 'attempts'
  | 'promptTokens'
  | 'completionTokens'
  | 'totalTokens'
  | 'estimated'
  | 'firstPieceMs'
  | 'latencyMs'
>;

/**
 * Exactly one ledger row for every request that no other record knows of, whatever its ending, the death of this process
 * and the absence of the database included: it is written down before a model is asked, and struck out by its row.
 */
@Injectable()
export class Metering implements BeforeApplicationShutdown {
  private readonly logger = new Logger(Metering.name);
  private readonly storing = new Set<Promise<void>>();

  constructor(
    private readonly quotas: Quotas,
    private readonly database: Database,
    private readonly nodes: NodeRegistry,
  ) {}

  /** Resolves when the model may be asked. Throws RATE_LIMITED and QUOTA_EXCEEDED; then nothing is open. */
  async begin(request: MeteredRequest): Promise<void> {
    const { principal, id, estimate } = request;
    const quota = await this.quotas.of(principal);
    try {
      await this.database.run(tenantScope(principal.tenantId), [
        unflushed,
        openRequest(request, this.nodes.incarnation),
        ...(quota ? [reserveUsage(quota, { id, ...estimate })] : []),
      ]);
    } catch (error) {
      throw overQuota(error) ?? error;
    }
  }

  /** Resolves when the row is stored, or the database is away: then it is stored later, and nobody is kept waiting. Never rejects. */
  async end(
    { principal, id, service, assistantId, wire }: MeteredRequest,
    ending: RequestEnding,
  ): Promise<void> {
    const { tenantId, keyId, userId } = principal;
    const entry: LedgerEntry = {
      tenantId,
      messageId: id,
      keyId,
      userId,
      assistantId,
      modelServiceId: service.id,
      credits: creditsOf(ending, service),
      wire,
      charged: chargedOf(service),
      ...ending,
    };
    const statements = [
      recordUsage(entry),
      settleUsage(tenantId, id, entry),
      closeRequest(tenantId, id),
    ] as const;
    await new Promise<void>((resolve) => {
      const stored = this.store(entry, statements, resolve).finally(() => {
        this.storing.delete(stored);
        resolve();
      });
      this.storing.add(stored);
    });
  }

  /** After the requests have ended and before the database closes. */
  async beforeApplicationShutdown(): Promise<void> {
    await within(DRAIN_LAST_WAIT_MS, Promise.all(this.storing));
  }

  private async store(
    entry: LedgerEntry,
    statements: readonly Statement<void>[],
    waits: () => void,
  ): Promise<void> {
    try {
      await untilStored(() => this.database.run(tenantScope(entry.tenantId), statements), {
        ms: ENDING_PATIENCE_MS,
        waits: () => {
          this.logger.warn(`the database is away; usage ${entry.messageId} waits to be stored`);
          waits();
        },
      });
    } catch (error) {
      this.logger.error({ err: error, entry }, 'the usage of a request could not be stored');
    }
  }
}

/** A process that dies takes nothing of it along, and if PostgreSQL does there is nobody to tell of the request. */
const unflushed: Statement<void> = {
  name: 'open-request-unflushed',
  text: `select set_config('synchronous_commit', 'off', true)`,
  values: [],
  map: () => undefined,
};

const openRequest = (
  { principal, id, wire, assistantId, service, promptTokens }: MeteredRequest,
  incarnation: bigint,
): Statement<void> => ({
  name: 'open-request',
  text: `insert into open_requests (tenant_id, id, incarnation, key_id, user_id, assistant_id, model_service_id, model,
           input_price, output_price, wire, prompt_tokens)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`,
  values: [
    principal.tenantId,
    id,
    incarnation.toString(),
    principal.keyId,
    principal.userId,
    assistantId,
    service.id,
    service.model,
    service.inputPrice,
    service.outputPrice,
    wire,
    promptTokens,
  ],
  map: () => undefined,
});

/** Whose user was erased meanwhile names nobody in the ledger, either. */
const closeRequest = (tenantId: TenantId, id: MessageId): Statement<void> => ({
  name: 'close-request',
  text: `with gone as (delete from open_requests where tenant_id = $1 and id = $2 returning user_id)
         update usage_ledger l set user_id = gone.user_id from gone
         where l.tenant_id = $1 and l.message_id = $2 and l.user_id <> gone.user_id`,
  values: [tenantId, id],
  map: () => undefined,
});
