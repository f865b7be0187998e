import { Injectable } from '@nestjs/common';
import { badInput, type TenantId } from '../common';
import { Database, type Row, type Scope } from '../database';
import { UsageRollUp } from './roll-up';

/** What usage can be told by, and the columns of each. */
const GROUPS = {
  tenant: ['tenant_id'],
  key: ['key_id'],
  model: ['model', 'model_service_id'],
  assistant: ['assistant_id'],
  user: ['user_id'],
  wire: ['wire'],
  day: [],
  hour: [],
} as const;
export type UsageGroup = keyof typeof GROUPS;
export const USAGE_GROUPS = Object.keys(GROUPS) as UsageGroup[];

export interface UsageQuery {
  /** Inclusive, on the hour. */
  readonly from: Date;
  /** Exclusive, on the hour. */
  readonly to: Date;
  readonly groupBy: readonly UsageGroup[];
  /** Null: every tenant's, under the platform's scope. */
  readonly tenantId: TenantId | null;
  readonly key?: string;
  /** A service's id, or the name of a model. */
  readonly model?: string;
  readonly assistant?: string;
  readonly user?: string;
  readonly wire?: string;
}

/** The group's keys by name (ids as text, `day` and `hour` as ISO 8601), then the sums. */
export type UsageRow = Readonly<Record<string, string | number | null>>;

export const MAX_REPORT_ROWS = 10_000;
const NAMES: Readonly<Record<string, string>> = {
  tenant_id: 'tenant',
  key_id: 'key',
  model: 'model',
  model_service_id: 'modelServiceId',
  assistant_id: 'assistant',
  user_id: 'user',
  wire: 'wire',
};
const SUMS = {
  requests: 'requests',
  attempts: 'attempts',
  prompt_tokens: 'promptTokens',
  completion_tokens: 'completionTokens',
  total_tokens: 'totalTokens',
  credits: 'credits',
  estimated: 'estimated',
} as const;

/** The columns of a report, in order. */
export function usageColumns(groupBy: readonly UsageGroup[]): string[] {
  return [
    ...groupBy.flatMap((group) =>
      group === 'day' || group === 'hour' ? [group] : GROUPS[group].map((column) => NAMES[column]!),
    ),
    ...Object.values(SUMS),
  ];
}

/** What was used, from the sums by day and hour; a second old at most. */
@Injectable()
export class UsageReport {
  constructor(
    private readonly database: Database,
    private readonly rollUp: UsageRollUp,
  ) {}

  /** In the order of the groups. BAD_INPUT for more than 10,000 rows. */
  async rows(scope: Scope, query: UsageQuery): Promise<UsageRow[]> {
    await this.rollUp.fresh();
    const { groupBy } = query;
    const values: unknown[] = [query.from, query.to];
    const conditions: string[] = [];
    const filter = (value: unknown, condition: (parameter: string) => string): void => {
      if (value !== undefined && value !== null)
        conditions.push(`and ${condition(`$${values.push(value)}`)}`);
    };
    filter(query.tenantId, (p) => `tenant_id = ${p}`);
    filter(query.key, (p) => `key_id = ${p}`);
    filter(query.model, (p) => `(model = ${p} or model_service_id::text = ${p})`);
    filter(query.assistant, (p) => `assistant_id = ${p}`);
    filter(query.user, (p) => `user_id = ${p}`);
    filter(query.wire, (p) => `wire = ${p}`);
    const whose = groupBy.includes('user') || query.user !== undefined ? 'user_' : '';
    const columns = groupBy.flatMap((group) =>
      group === 'day' || group === 'hour'
        ? [`date_trunc('${group}', h.hour, 'UTC') as ${group}`]
        : GROUPS[group].map((column) => `h.${column}`),
    );
    const needed = [
      ...new Set([...groupBy.flatMap((group) => [...GROUPS[group]]), ...Object.keys(SUMS)]),
    ].join(', ');
    const where = conditions.join(' ');
    let source = `select hour, ${needed} from usage_${whose}hours where hour >= $1 and hour < $2 ${where}`;
    // Whole days that have ended are read from their own sums, what is before and after them from the hours.
    const days = { from: ceilToDay(query.from), to: floorToDay(query.to) };
    if (!groupBy.includes('hour') && days.from < days.to) {
      const first = `$${values.push(days.from)}::timestamptz`;
      const past = `greatest(${first}, least($${values.push(days.to)}, (select days_until from usage_roll_up)))`;
      const hours = (range: string): string =>
        `select hour, ${needed} from usage_${whose}hours where ${range} ${where}`;
      source = [
        hours(`hour >= $1 and hour < ${first}`),
        `select day as hour, ${needed} from usage_${whose}days where day >= ${first} and day < ${past} ${where}`,
        hours(`hour >= ${past} and hour < $2`),
      ].join(' union all ');
    }
    const sums = Object.keys(SUMS).map((column) => `coalesce(sum(h.${column}), 0) as sum_${column}`);
    const positions = columns.map((_, index) => index + 1).join(', ');
    // Not prepared: its text is the question's own, and there are many.
    const found = await this.database.transaction(scope, (tx) =>
      tx.query<Row[]>(
        `select ${[...columns, ...sums].join(', ')} from (${source}) h
         ${positions && `group by ${positions} order by ${positions}`} limit ${MAX_REPORT_ROWS + 1}`,
        values,
      ),
    );
    if (found.length > MAX_REPORT_ROWS) {
      throw badInput(
        'groupBy',
        `gives more than ${MAX_REPORT_ROWS} rows: narrow the range, filter, or group by less`,
      );
    }
    return found.map(toUsageRow);
  }
}

const DAY_MS = 86_400_000;
const floorToDay = (at: Date): Date => new Date(Math.floor(at.getTime() / DAY_MS) * DAY_MS);
const ceilToDay = (at: Date): Date => new Date(Math.ceil(at.getTime() / DAY_MS) * DAY_MS);

function toUsageRow(row: Row): UsageRow {
  const told: Record<string, string | number | null> = {};
  for (const [column, value] of Object.entries(row)) {
    if (column.startsWith('sum_')) told[SUMS[column.slice(4) as keyof typeof SUMS]] = Number(value);
    else if (value instanceof Date)
      told[column] = column === 'day' ? value.toISOString().slice(0, 10) : value.toISOString();
    else told[NAMES[column]!] = value as string | null;
  }
  return told;
}
