import {
  Injectable,
  Logger,
  type BeforeApplicationShutdown,
  type OnApplicationBootstrap,
} from '@nestjs/common';
import type { EntityManager } from 'typeorm';
import { Periodic, type ConversationId, type TenantId } from '../common';
import { Database, platformScope, tenantScope, type Row, type Statement } from '../database';
import { ConversationErasure, DialogueArchive, MessagePartitions } from '../messages';
import { anonymiseOld, anonymiseReplies, LEDGER_START, type LedgerPlace } from '../usage';
import { Eraser } from './eraser';

const EVERY_MS = 600_000;
const LOOK_FOR_EMPTY_MS = 3_600_000;
const DAY_MS = 86_400_000;
/** One process at a time. Arbitrary, fixed. */
const LOCK = 7_300_420;
const DIALOGUES_A_BATCH = 100;
const CONVERSATIONS_A_BATCH = 200;
const GENERATIONS_A_BATCH = 100;
const ROWS_A_BATCH = 2_000;

/** Some of the work; true when there is more of it. */
type Batch = (tx: EntityManager) => Promise<boolean>;

/** Enforces the tenants' `retentionDays`, in transactions of bounded size. */
@Injectable()
export class RetentionKeeper implements OnApplicationBootstrap, BeforeApplicationShutdown {
  private readonly logger = new Logger(RetentionKeeper.name);
  private work: Periodic | undefined;
  private stopping = false;
  /** What is older need not be looked at again: no row becomes older than it was written. */
  private readonly anonymised = new Map<TenantId, LedgerPlace>();
  private lookedForEmpty = -Infinity;

  constructor(
    private readonly database: Database,
    private readonly eraser: Eraser,
    private readonly dialogues: DialogueArchive,
    private readonly conversations: ConversationErasure,
    private readonly partitions: MessagePartitions,
  ) {}

  onApplicationBootstrap(): void {
    const failed = ({ message }: Error): void =>
      this.logger.warn(`retention not enforced, will be tried again: ${message}`);
    this.work = new Periodic(EVERY_MS, () => this.enforce(), failed);
  }

  async beforeApplicationShutdown(): Promise<void> {
    this.stopping = true;
    await this.work?.stop();
  }

  /** Every tenant's; leaves it to another process that is at it. */
  async enforce(now = Date.now()): Promise<void> {
    const tenants = await this.database.one(platformScope(), allTenants);
    const limits = tenants.flatMap(({ days }) => days ?? []);
    if (limits.length === 0) return;
    const allKeep = limits.length === tenants.length ? Math.max(...limits) : null;
    // What nobody keeps needs no looking for: whole months go in one go.
    if (allKeep !== null) this.tell(await this.partitions.drop(new Date(now - allKeep * DAY_MS)));
    for (const { tenantId, days } of tenants) {
      if (days === null) continue;
      const before = new Date(now - days * DAY_MS);
      for (const batch of this.batches(tenantId, before)) {
        if ((await this.carryOut(tenantId, batch)) === 'leave') return;
      }
    }
    if (now - this.lookedForEmpty < LOOK_FOR_EMPTY_MS) return;
    this.lookedForEmpty = now;
    this.tell(await this.partitions.dropEmpty(new Date(now - Math.min(...limits) * DAY_MS)));
  }

  /** One tenant's trouble is not the others'. */
  private async carryOut(tenantId: TenantId, batch: Batch): Promise<'done' | 'leave'> {
    try {
      for (let more = true; more;) {
        if (this.stopping) return 'leave';
        const done = await this.locked(tenantId, batch);
        if (done === 'busy') return 'leave';
        more = done;
      }
    } catch (error) {
      const { message } = error as Error;
      this.logger.warn(`retention of tenant ${tenantId} not enforced, will be tried again: ${message}`);
    }
    return 'done';
  }

  private tell(dropped: readonly string[]): void {
    if (dropped.length > 0) this.logger.log(`dropped ${dropped.join(', ')}: no tenant keeps anything of it`);
  }

  private batches(tenantId: TenantId, before: Date): Batch[] {
    let from = '0' as ConversationId;
    return [
      async (tx) => {
        const ids = await this.dialogues.untouchedSince(tx, tenantId, before, DIALOGUES_A_BATCH);
        if (ids.length === 0) return false;
        const { replyIds } = await this.dialogues.erase(tx, tenantId, ids);
        await anonymiseReplies(tx, tenantId, replyIds);
        return ids.length === DIALOGUES_A_BATCH;
      },
      async (tx) => {
        const size = { from, conversations: CONVERSATIONS_A_BATCH, messages: ROWS_A_BATCH };
        const { next } = await this.conversations.deleteOld(tx, tenantId, before, size);
        if (next) from = next;
        return next !== null;
      },
      async (tx) => {
        const after = this.anonymised.get(tenantId) ?? LEDGER_START;
        const { reached, more } = await anonymiseOld(tx, tenantId, { after, before }, ROWS_A_BATCH);
        this.anonymised.set(tenantId, reached);
        return more;
      },
      async (tx) => {
        const erased = await this.eraser.eraseGenerations(tx, tenantId, { before }, GENERATIONS_A_BATCH);
        return erased === GENERATIONS_A_BATCH;
      },
      ...['webhook_deliveries', 'idempotency_keys', 'broadcasts'].map((table): Batch => async (tx) => {
        const [row] = await tx.query<Row[]>(
          `with gone as (delete from ${table} where ctid in (
                 select ctid from ${table} where tenant_id = $1 and created_at < $2 limit ${ROWS_A_BATCH}) returning 1)
               select count(*) as n from gone`,
          [tenantId, before],
        );
        return Number(row!.n) === ROWS_A_BATCH;
      }),
    ];
  }

  private locked(tenantId: TenantId, batch: Batch): Promise<boolean | 'busy'> {
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      const [row] = await tx.query<Row[]>(`select pg_try_advisory_xact_lock(${LOCK}) as free`);
      return row!.free === true ? batch(tx) : 'busy';
    });
  }
}

const allTenants: Statement<{ tenantId: TenantId; days: number | null }[]> = {
  name: 'retention-tenants',
  text: 'select id, retention_days from tenants order by id',
  values: [],
  map: (rows) =>
    rows.map((row) => ({ tenantId: row.id as TenantId, days: row.retention_days as number | null })),
};
