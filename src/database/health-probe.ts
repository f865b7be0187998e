/** What keeps PostgreSQL from serving, as /health/ready says it. */
export type Trouble =
  'no answer' | 'unreachable' | 'starting or stopping' | 'too many connections' | 'disk full' | 'read-only';

const PATIENCE_MS = 2_000;
/**
 * Makes a table larger, as storing messages does: an update of a page that is there goes through on a full disk, too.
 * One implicit transaction; the table is gone with it.
 */
const WRITE = `create temporary table parley_probe (filler text) on commit drop;
  insert into parley_probe select (select string_agg(md5(row::text || part::text), '') from generate_series(1, 50) part)
  from generate_series(1, 100) row`;

/** Null: an error that says nothing of PostgreSQL's state. */
export function troubleOf(error: unknown): Trouble | null {
  for (
    let cause = error;
    cause instanceof Error;
    cause = cause.cause ?? (cause as { driverError?: unknown }).driverError
  ) {
    const { code } = cause as { code?: string };
    if (code === '53100') return 'disk full';
    if (code === '25006') return 'read-only';
    if (code === '53300') return 'too many connections';
    if (code !== undefined && /^57P0[1-5]$/.test(code)) return 'starting or stopping';
    if (/timeout|nothing read/i.test(cause.message)) return 'no answer';
  }
  return null;
}

/** One question to PostgreSQL at a time, however many ask, and an answer in bounded time. */
export class HealthProbe {
  private probing: Promise<Trouble | null> | undefined;
  private writesFail = false;

  constructor(
    private readonly ask: (sql: string) => Promise<unknown>,
    private readonly patienceMs = PATIENCE_MS,
  ) {}

  /** Of a statement's failure. A write that was refused makes the next question a write, until one goes through. */
  note(error: unknown): void {
    const trouble = troubleOf(error);
    if (trouble === 'disk full' || trouble === 'read-only') this.writesFail = true;
  }

  /** Within two seconds. */
  async trouble(): Promise<Trouble | null> {
    this.probing ??= this.look().finally(() => (this.probing = undefined));
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<Trouble>((resolve) => {
      timer = setTimeout(() => resolve('no answer'), this.patienceMs);
    });
    try {
      return await Promise.race([this.probing, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  private async look(): Promise<Trouble | null> {
    const writing = this.writesFail;
    try {
      await this.ask(writing ? WRITE : 'select 1');
      if (writing) this.writesFail = false;
      return null;
    } catch (error) {
      return troubleOf(error) ?? 'unreachable';
    }
  }
}
