import { randomBytes } from 'node:crypto';
import { ConfigError } from '../config';

/** A connection of the application's pool, as far as it is looked at. */
export interface Session {
  query(sql: string): Promise<{ rows: Record<string, unknown>[] }>;
  release(): void;
}

/** A pooler that has one connection for both sessions answers never. */
const PATIENCE_MS = 10_000;
const ROUNDS = 3;
const DIRECTLY = 'let DATABASE_URL lead to PostgreSQL itself';

/**
 * Whether the walls between tenants stand on these connections: they run as `role`, row-level security binds it, and
 * one session is one session. Throws ConfigError, one line that says what is wrong and what to do.
 */
export async function checkConnections(
  open: () => Promise<Session>,
  role: string,
  patienceMs = PATIENCE_MS,
): Promise<void> {
  const one = await open();
  try {
    await checkRole(one, role);
    await checkRowSecurity(one);
    const two = await open();
    try {
      await withPatience(checkSessions(one, two), patienceMs);
    } finally {
      two.release();
    }
  } finally {
    one.release();
  }
}

async function checkRole(session: Session, role: string): Promise<void> {
  const { rows } = await session.query(
    `select current_user as who, current_setting('plan_cache_mode') as plans, current_setting('timezone') as zone`,
  );
  const { who, plans, zone } = rows[0]!;
  const dropped = `a pooler between drops the connection's start-up options: ${DIRECTLY}`;
  if (who !== role) refuse(`connections run as the role "${who as string}" and not as "${role}"; ${dropped}`);
  if (plans !== 'force_generic_plan' || zone !== 'UTC')
    refuse(`connections do not have the settings they asked for; ${dropped}`);
}

async function checkRowSecurity(session: Session): Promise<void> {
  const { rows } = await session.query(
    `select rolname, rolsuper, rolbypassrls from pg_roles where rolname = current_user`,
  );
  const { rolname, rolsuper, rolbypassrls } = rows[0]!;
  if (rolsuper || rolbypassrls) {
    const which = rolsuper ? 'a superuser' : 'allowed to bypass it';
    refuse(
      `row-level security does not bind the role "${rolname as string}", which is ${which}: alter role "${rolname as string}" nosuperuser nobypassrls`,
    );
  }
  // Every table of ours: with a tenant's rows, or with a policy; extensions may have tables of their own beside them.
  const open = await session.query(
    `select c.relname from pg_class c
     where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and c.relname <> 'migrations'
       and (exists (select from pg_policy p where p.polrelid = c.oid)
            or exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id'))
       and not row_security_active(c.oid)
     order by c.relname`,
  );
  const tables = open.rows.map(({ relname }) => relname as string);
  if (tables.length > 0) {
    refuse(
      `row-level security does not hold for ${tables.join(', ')}: alter table … enable row level security, force row level security`,
    );
  }
}

/**
 * A pooler that lends its connections by the transaction gives one session's to the other in between: while the other
 * is in a transaction, its process is the first one's, or the first one's is a new one without the session's setting.
 */
async function checkSessions(one: Session, two: Session): Promise<void> {
  const mark = randomBytes(8).toString('hex');
  const look = async (session: Session) => {
    const { rows } = await session.query(
      `select pg_backend_pid() as pid, current_setting('parley.session', true) as mark`,
    );
    return rows[0]!;
  };
  await one.query(`select set_config('parley.session', '${mark}', false)`);
  for (let round = 0; round < ROUNDS; round += 1) {
    const before = await look(one);
    await two.query('begin');
    const other = await look(two);
    const after = await look(one);
    await two.query('rollback');
    if (before.mark !== mark || after.mark !== mark || before.pid !== after.pid || other.pid === before.pid)
      refuse(
        `a pooler between lends its connections by the transaction or the statement, which breaks prepared statements and settings: ${DIRECTLY}, or set the pooler to session mode with start-up options kept`,
      );
  }
  await one.query('reset parley.session');
}

async function withPatience(check: Promise<void>, ms: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    const what = `two connections at once did not answer within ${ms / 1_000} s`;
    const error = new ConfigError(`DATABASE_URL: ${what} (a pooler with a single one?): ${DIRECTLY}`);
    timer = setTimeout(() => reject(error), ms);
  });
  check.catch(() => undefined); // told by the race, or too late to be told
  try {
    await Promise.race([check, late]);
  } finally {
    clearTimeout(timer);
  }
}

function refuse(what: string): never {
  throw new ConfigError(`DATABASE_URL: ${what}`);
}
