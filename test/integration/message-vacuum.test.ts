import { VacuumMessagesLess1799000000000 } from '../../migrations/1799000000000-vacuum-messages-less';
import { AnalyseMessagesAtAGlance1800000000000 } from '../../migrations/1800000000000-analyse-messages-at-a-glance';
import { migratedDatabase } from '../support/migrated-database';

/** The migrations of how months of messages are vacuumed and analysed, there and back: months there were, and new ones. */
const { query, migrate } = migratedDatabase();

const THRESHOLDS = ['autovacuum_vacuum_insert_threshold=5000000', 'autovacuum_analyze_threshold=1000000'];
const DELAY = 'autovacuum_vacuum_cost_delay=10';
let months = 0;

/** Every month's settings, and the statistics targets of its columns; one more month is made before. */
async function settingsOfAll(): Promise<{ reloptions: string[] | null; targets: number[] }[]> {
  months += 1;
  await query(`select ensure_message_partition(now() + interval '${12 + months} months')`);
  const found = await query<{ reloptions: string[] | null; targets: number[] }>(
    `select c.reloptions, (select array_agg(distinct coalesce(attstattarget, -1)) from pg_attribute
       where attrelid = c.oid and attnum > 0 and not attisdropped) as targets
     from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'messages'::regclass`,
  );
  expect(found.length).toBe(3 + months);
  return found;
}

it('change every month and those to come, and change them back', async () => {
  const [less, glance] = [new VacuumMessagesLess1799000000000(), new AnalyseMessagesAtAGlance1800000000000()];
  const expectAll = async (reloptions: string[] | null, target: number): Promise<void> => {
    for (const month of await settingsOfAll()) expect(month).toEqual({ reloptions, targets: [target] });
  };
  await expectAll([...THRESHOLDS, DELAY], 1);
  await migrate(glance, 'down');
  await expectAll(THRESHOLDS, -1);
  await migrate(less, 'down');
  await expectAll(null, -1);
  await migrate(less, 'up');
  await expectAll(THRESHOLDS, -1);
  await migrate(glance, 'up');
  await expectAll([...THRESHOLDS, DELAY], 1);
});
