import {
  Injectable,
  Logger,
  type BeforeApplicationShutdown,
  type OnApplicationBootstrap,
} from '@nestjs/common';
import { isStorageAway, Periodic, type TenantId } from '../common';
import { Database, platformScope, type Statement } from '../database';

const EVERY_MS = 30_000;
/** A report may be this old. */
const FRESH_MS = 1_000;
const HOURS_A_TRANSACTION = 20;
const DAYS_A_TRANSACTION = 20;
const HOUR_MS = 3_600_000;
const DAY_MS = 86_400_000;
/** One process at a time adds up. Arbitrary, fixed. */
const LOCK = 7_300_419;

interface Dirty {
  /** Every transaction before it has ended, and is in what was found. */
  readonly watermark: string;
  /** Its beginning, UTC, by the database's clock. */
  readonly today: Date;
  readonly hours: readonly { readonly tenantId: TenantId; readonly hour: Date }[];
}

/**
 * Usage by the hour, added up from the ledger, and by the day (UTC) that has ended, added up from its hours. An hour with a row that is new or changed is added up anew as a whole,
 * and its day with it, so it does not matter how late a row comes, how often it is changed, or who adds up at the same time. A row is new
 * by the number of the transaction that wrote it, not by its time: transactions end in another order than they begin,
 * and one that is still open is found by its number the next time.
 */
@Injectable()
export class UsageRollUp implements OnApplicationBootstrap, BeforeApplicationShutdown {
  private readonly logger = new Logger(UsageRollUp.name);
  private rolling: Periodic | undefined;
  private running: Promise<void> | undefined;
  private startedAt = 0;

  constructor(private readonly database: Database) {}

  onApplicationBootstrap(): void {
    const failed = ({ message }: Error): void =>
      this.logger.warn(`usage not added up, will be tried again: ${message}`);
    this.rolling = new Periodic(EVERY_MS, () => this.ifDue(), failed);
  }

  async beforeApplicationShutdown(): Promise<void> {
    await this.rolling?.stop();
    await this.running?.catch(() => undefined);
  }

  /** Resolves when everything that was stored a second ago is in the hours. */
  async fresh(): Promise<void> {
    while (this.running) await this.running.catch(() => undefined);
    if (Date.now() - this.startedAt < FRESH_MS) return;
    await this.run();
  }

  /** Adds up whatever is new. */
  async run(): Promise<void> {
    if (this.running) return this.running;
    const startedAt = Date.now();
    this.running = this.addUp().finally(() => (this.running = undefined));
    await this.running;
    this.startedAt = startedAt;
  }

  private async ifDue(): Promise<void> {
    if (await this.database.one(platformScope(), rolledLately)) return;
    await this.run();
  }

  /** False when some of it failed: one tenant's trouble is not the others', whose reports go on. */
  private async inParts<T>(
    all: readonly T[],
    size: number,
    statementsOf: (one: T) => Statement<void>[],
  ): Promise<boolean> {
    let done = true;
    for (let from = 0; from < all.length; from += size) {
      const part = all.slice(from, from + size);
      try {
        await this.database.run(platformScope(), [lock, ...part.flatMap(statementsOf)]);
      } catch (error) {
        if (isStorageAway(error)) throw error;
        this.logger.warn(`some usage not added up, will be tried again: ${(error as Error).message}`);
        done = false;
      }
    }
    return done;
  }

  private async addUp(): Promise<void> {
    const { watermark, today, hours } = await this.database.one(platformScope(), findDirty);
    const allHours = await this.inParts(hours, HOURS_A_TRANSACTION, addUpHour);
    // Today's hours change all day long: its own sum waits for its end.
    const ended = await this.database.one(platformScope(), findEndedDays(today));
    const days = daysOf([...hours.filter(({ hour }) => hour < today), ...ended]);
    const allDays = await this.inParts(days, DAYS_A_TRANSACTION, addUpDay);
    // What was left out is found again the next time.
    if (!allHours || !allDays) return;
    await this.database.one(platformScope(), moveWatermark(watermark, today));
  }
}

/** Planned anew each time: a plan made while these tables were small would be kept, and it reads them from end to end. */
const NOT_PREPARED = '';

const rolledLately: Statement<boolean> = {
  name: 'usage-rolled-lately',
  text: `select rolled_at > now() - interval '${EVERY_MS / 2} milliseconds' as lately from usage_roll_up`,
  values: [],
  map: ([row]) => row?.lately === true,
};

/**
 * After a restore from a dump the rows' numbers are another cluster's. A watermark from the future gives that away:
 * everything is added up once, and rows with such numbers are not looked at again.
 */
const findDirty: Statement<Dirty> = {
  name: NOT_PREPARED,
  text: `with place as (
      select watermark, pg_snapshot_xmin(pg_current_snapshot()) as xmin, pg_snapshot_xmax(pg_current_snapshot()) as xmax
      from usage_roll_up),
    since as (
      select case when watermark > xmax then '0'::xid8 else watermark end as first,
        case when watermark > xmax or watermark = '0'::xid8 then '18446744073709551615'::xid8 else xmax end as past,
        xmin
      from place)
    select (select xmin::text from since) as watermark, d.tenant_id, d.hour,
      (select greatest(date_trunc('day', now(), 'UTC'), days_until) from usage_roll_up) as today
    from (select) as one left join (
      select distinct l.tenant_id, date_trunc('hour', l.created_at, 'UTC') as hour
      from usage_ledger l where l.txid >= (select first from since) and l.txid < (select past from since)) d on true
    order by d.tenant_id, d.hour`,
  values: [],
  map: (rows) => ({
    watermark: rows[0]!.watermark as string,
    today: rows[0]!.today as Date,
    hours: rows
      .filter((row) => row.hour !== null)
      .map((row) => ({ tenantId: row.tenant_id as TenantId, hour: row.hour as Date })),
  }),
};

/** Days that have ended since days were last added up, by one of their hours. */
const findEndedDays = (today: Date): Statement<Hour[]> => ({
  name: NOT_PREPARED,
  text: `select distinct tenant_id, date_trunc('day', hour, 'UTC') as hour from usage_hours
         where hour >= (select days_until from usage_roll_up) and hour < $1`,
  values: [today],
  map: (rows) => rows.map((row) => ({ tenantId: row.tenant_id as TenantId, hour: row.hour as Date })),
});

const moveWatermark = (watermark: string, today: Date): Statement<void> => ({
  name: 'usage-watermark',
  text: `update usage_roll_up set rolled_at = now(), days_until = greatest(days_until, $2),
           watermark = case when watermark > pg_snapshot_xmax(pg_current_snapshot()) then $1::text::xid8
             else greatest(watermark, $1::text::xid8) end`,
  values: [watermark, today],
  map: () => undefined,
});

/** Its own statement: those after it see what was committed while it waited. */
const lock: Statement<void> = {
  name: 'usage-roll-lock',
  text: `select pg_advisory_xact_lock(${LOCK})`,
  values: [],
  map: () => undefined,
};

/** A tenant's hour or day. */
interface Span {
  readonly tenantId: TenantId;
  readonly from: Date;
  readonly ms: number;
}
type Hour = Dirty['hours'][number];

const addUpHour = ({ tenantId, hour }: Hour): Statement<void>[] => {
  const span = { tenantId, from: hour, ms: HOUR_MS };
  return ['', 'user_'].flatMap((whose) => [
    clear(`usage_${whose}hours`, 'hour', span),
    fill(
      { table: `usage_${whose}hours`, column: 'hour', keys: keysOf(whose) },
      `count(*), sum(attempts), sum(prompt_tokens), sum(completion_tokens), sum(total_tokens), sum(credits),
       count(*) filter (where estimated) from usage_ledger where tenant_id = $1 and created_at >= $2 and created_at < $3`,
      span,
    ),
  ]);
};

const addUpDay = (span: Span): Statement<void>[] =>
  ['', 'user_'].flatMap((whose) => [
    clear(`usage_${whose}days`, 'day', span),
    fill(
      { table: `usage_${whose}days`, column: 'day', keys: keysOf(whose) },
      `sum(requests), sum(attempts), sum(prompt_tokens), sum(completion_tokens), sum(total_tokens), sum(credits),
       sum(estimated) from usage_${whose}hours where tenant_id = $1 and hour >= $2 and hour < $3`,
      span,
    ),
  ]);

const keysOf = (whose: string): string =>
  `key_id, assistant_id, model_service_id, model, wire${whose === '' ? '' : ', user_id'}`;

const floorToDay = (at: Date): Date => new Date(Math.floor(at.getTime() / DAY_MS) * DAY_MS);

/** The days that the hours are in, each once. */
function daysOf(hours: readonly Hour[]): Span[] {
  const days = new Map<string, Span>();
  for (const { tenantId, hour } of hours) {
    const from = floorToDay(hour);
    days.set(`${tenantId} ${from.getTime()}`, { tenantId, from, ms: DAY_MS });
  }
  return [...days.values()];
}

// One hour or day each: joined to a list of them, they are planned as if every row might be in every one.
const clear = (table: string, column: string, { tenantId, from }: Span): Statement<void> => ({
  name: NOT_PREPARED,
  text: `delete from ${table} where tenant_id = $1 and ${column} = $2`,
  values: [tenantId, from],
  map: () => undefined,
});

const fill = (
  { table, column, keys }: { readonly table: string; readonly column: string; readonly keys: string },
  sums: string,
  { tenantId, from, ms }: Span,
): Statement<void> => ({
  name: NOT_PREPARED,
  text: `insert into ${table} (tenant_id, ${column}, ${keys}, requests, attempts, prompt_tokens, completion_tokens,
           total_tokens, credits, estimated)
         select $1, $2, ${keys}, ${sums} group by ${keys}`,
  values: [tenantId, from, new Date(from.getTime() + ms)],
  map: () => undefined,
});
