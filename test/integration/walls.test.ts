import { randomUUID } from 'node:crypto';
import type { DataSource } from 'typeorm';
import { migrations } from '../../migrations';
import { entities } from '../../src/app';
import {
  AssistantsRepository,
  GenerationAppsRepository,
  GenerationRecordsRepository,
} from '../../src/assistants';
import { PostgresBlobStore, type BlobHash } from '../../src/blobs';
import {
  IdGenerator,
  SecretBox,
  type AssistantVersionId,
  type ConversationId,
  type DialogueId,
  type GenerationAppId,
  type GenerationRecordId,
  type MessageId,
  type ModelServiceId,
  type TenantId,
} from '../../src/common';
import {
  applicationDataSource,
  Database,
  migrationDataSource,
  platformScope,
  tenantScope,
  type Scope,
} from '../../src/database';
import {
  ConversationErasure,
  ConversationsRepository,
  DialogueArchive,
  DialoguesRepository,
  MessageLog,
} from '../../src/messages';
import { Eraser } from '../../src/retention';
import { ModelServicesRepository } from '../../src/model-services';
import { UsageReport, UsageRollUp } from '../../src/usage';
import { ask, bootApp, says, type TestApp, type TestTenant } from '../support/app';
import { freshDatabase, query } from '../support/database';

let app: TestApp;
let acme: TestTenant;
let rival: TestTenant;
let dialogueId: DialogueId;
let replyId: MessageId;
let conversationId: ConversationId;
let appId: GenerationAppId;
let recordId: GenerationRecordId;
let imageHash: BlobHash;

beforeAll(async () => {
  app = await bootApp();
  [acme, rival] = await Promise.all([app.tenant(), app.tenant()]);
  const limits = { requestsPerDay: 1_000, userTokensPerMonth: 1_000_000 };
  await ask(app.url, 'PATCH', `/api/admin/tenants/${acme.id}`, { limits }, { 'x-api-key': app.rootKey });
  await new Promise((resolve) => setTimeout(resolve, 1_000));
  const client = await acme.send(says('secret'));
  await client.end();
  dialogueId = client.record.id as DialogueId;
  replyId = client.last.messageId as MessageId;
  const sent = await acme.post('/api/v1/im/messages', {
    type: 'single',
    source: 'ann',
    target: 'bob',
    msg: { msgId: 1, content: 'secret' },
  });
  conversationId = (sent.body as { conversationId: ConversationId }).conversationId;
  await acme.post('/api/v1/im/groups', { groupId: 'team', owner: 'ann', members: ['bob'] });
  await generateImage();
  // As if today had ended: its sum by the day is there, too.
  await query(app.databaseUrl, `update usage_roll_up set days_until = now() + interval '1 day'`);
  await app.app.nest.get(UsageRollUp).run();
  // What is held only while a request runs.
  await query(
    app.databaseUrl,
    `insert into usage_reservations (tenant_id, id, tokens, credits, scopes, scope_ids, periods, starts)
     values ($1, 1, 1, 1, '{}', '{}', '{}', '{}')`,
    [acme.id],
  );
  await query(
    app.databaseUrl,
    `insert into open_requests (tenant_id, id, incarnation, user_id, model_service_id, model, input_price, output_price, wire, prompt_tokens)
     values ($1, 1, (select incarnation from nodes limit 1), 'ann', 1, '', 0, 0, 'openai', 1)`,
    [acme.id],
  );
});
afterAll(() => app.close());

it('has rows of acme in every table of usage', async () => {
  for (const table of [
    'model_prices',
    'open_requests',
    'usage_counters',
    'usage_hours',
    'usage_days',
    'usage_ledger',
    'usage_reservations',
    'usage_user_days',
    'usage_user_hours',
  ]) {
    const rows = await query(app.databaseUrl, `select 1 from ${table} where tenant_id = $1 limit 1`, [
      acme.id,
    ]);
    expect([table, rows.length]).toEqual([table, 1]);
  }
});

async function generateImage(): Promise<void> {
  const post = async (path: string, body: object): Promise<{ id: string }> =>
    (await acme.post(`/api/admin/${path}`, body)).body as { id: string };
  const { providerId } = acme;
  const { id: modelServiceId } = await post('model-services', { name: 'p', model: 'p', type: 1, providerId });
  const made = await post('generation-apps', {
    name: 'x',
    type: 1,
    promptTemplate: 'secret',
    modelServiceId,
  });
  const { body } = await acme.post(`/api/copywriting/userCopywriting/${made.id}`, {});
  const { id, images } = (body as { data: { id: GenerationRecordId; images: { url: string }[] } }).data;
  appId = made.id as GenerationAppId;
  recordId = id;
  imageHash = /[0-9a-f]{64}/.exec(images[0]!.url)![0] as BlobHash;
  // What a text that is being written has.
  await query(app.databaseUrl, 'insert into generations_in_progress values ($1, $2, $3)', [id, acme.id, 1]);
}

/** Every table that holds a tenant's things. */
async function tenantTables(): Promise<string[]> {
  const rows = await query<{ table_name: string }>(
    app.databaseUrl,
    `select c.table_name from information_schema.columns c join pg_class p on p.relname = c.table_name
     where c.table_schema = 'public' and c.column_name = 'tenant_id' and not p.relispartition`,
  );
  return rows.map((row) => row.table_name);
}

/** A pool whose first wall is down: the repositories' WHERE clauses are not asked, bare SQL is. */
async function withPool<T>(
  work: (database: Database, source: DataSource) => Promise<T>,
  url = app.databaseUrl,
): Promise<T> {
  const source = await applicationDataSource({ url, poolSize: 2, entities }).initialize();
  try {
    return await work(new Database(source), source);
  } finally {
    await source.destroy();
  }
}

const count = (database: Database, scope: Scope, table: string) =>
  database.one(scope, {
    name: `${table}-${randomUUID()}`.slice(0, 63),
    text: `select count(*) as n, count(*) filter (where tenant_id = ${acme.id}) as acme from ${table}`,
    values: [],
    map: ([row]) => ({ all: Number(row!.n), acme: Number(row!.acme) }),
  });

describe('the wall of row-level security, with no WHERE clause in front of it', () => {
  it('is on, and forced, for every table', async () => {
    const open = await query(
      app.databaseUrl,
      `select relname from pg_class where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace
       and relname <> 'migrations' and not (relrowsecurity and relforcerowsecurity)`,
    );
    expect(open).toEqual([]);
  });

  it('cannot be bypassed by the application role', async () => {
    const role = await query(
      app.databaseUrl,
      `select rolsuper, rolbypassrls, rolcanlogin from pg_roles where rolname = 'parley_app'`,
    );
    expect(role).toEqual([{ rolsuper: false, rolbypassrls: false, rolcanlogin: false }]);
    await withPool(async (database) => {
      const who = await database.one(tenantScope(rival.id as TenantId), {
        name: 'who',
        text: 'select current_user as u',
        values: [],
        map: ([row]) => row!.u,
      });
      expect(who).toBe('parley_app');
    });
  });

  it("shows the rival none of acme's rows in any table, and nothing at all without a scope", async () => {
    await withPool(async (database) => {
      for (const table of await tenantTables()) {
        expect([table, (await count(database, tenantScope(rival.id as TenantId), table)).acme]).toEqual([
          table,
          0,
        ]);
        expect([table, (await count(database, { tenants: [], platform: false }, table)).all]).toEqual([
          table,
          0,
        ]);
      }
    });
  });

  it('shows the platform nothing of what was said', async () => {
    await withPool(async (database) => {
      for (const table of [
        'dialogues',
        'dialogue_messages',
        'reply_checkpoints',
        'assistants',
        'assistant_versions',
        'conversations',
        'conversation_members',
        'messages',
        'devices',
        'device_marks',
        'past_memberships',
        'generation_apps',
        'generation_records',
        'blobs',
      ]) {
        expect([table, (await count(database, platformScope(), table)).all]).toEqual([table, 0]);
      }
    });
  });

  it('lets nobody at a partition past its parent', async () => {
    const [partition] = await query<{ name: string }>(
      app.databaseUrl,
      `select relname as name from pg_class
       where relispartition and relkind = 'r' and relnamespace = 'public'::regnamespace limit 1`,
    );
    await withPool(async (database) => {
      await expect(count(database, tenantScope(acme.id as TenantId), partition!.name)).rejects.toThrow(
        /permission denied/,
      );
    });
  });

  it('lets nobody write into, move to, or delete from another tenant', async () => {
    await withPool(async (database) => {
      const attempt = (text: string) =>
        database.one(tenantScope(rival.id as TenantId), {
          name: randomUUID(),
          text,
          values: [],
          map: (rows) => rows.length,
        });
      await expect(
        attempt(`insert into assistants (id, tenant_id, slug, name) values (1, ${acme.id}, 'spy', 'Spy')`),
      ).rejects.toThrow(/row-level security/);
      await expect(attempt(`update assistants set tenant_id = ${acme.id} returning 1`)).rejects.toThrow(
        /row-level security/,
      );
      expect(
        await attempt(`update dialogue_messages set content = '' where tenant_id = ${acme.id} returning 1`),
      ).toBe(0);
      expect(await attempt(`delete from dialogues where id = ${dialogueId} returning 1`)).toBe(0);
      expect(
        await attempt(`update tenants set name = 'x' where id = ${rival.id} returning 1`).catch(() => 0),
      ).toBe(0);
    });
  });

  it('forgets a scope with its transaction', async () => {
    await withPool(async (database, source) => {
      await count(database, tenantScope(acme.id as TenantId), 'dialogues');
      const rows: { n: string }[] = await source.query('select count(*) as n from dialogues');
      expect(rows).toEqual([{ n: '0' }]);
    });
  });
});

describe('the wall of the repositories, with row-level security down', () => {
  it("finds nothing of acme's for the rival", async () => {
    const copy = await freshDatabase();
    try {
      // The same rows in a database whose policies let everything through.
      const tables = ['tenants', ...(await tenantTables())];
      for (const table of tables) await query(copy.url, `alter table ${table} disable row level security`);
      for (const table of [
        'tenants',
        'model_providers',
        'model_services',
        'assistants',
        'assistant_versions',
        'dialogues',
        'dialogue_messages',
        'conversations',
        'conversation_members',
        'messages',
        'generation_apps',
        'generation_records',
        'generation_images',
        'blobs',
        'usage_hours',
        'usage_days',
      ]) {
        const rows = await query(app.databaseUrl, `select * from ${table}`);
        await query(
          copy.url,
          `set session_replication_role = replica; insert into ${table} select * from jsonb_populate_recordset(null::${table}, '${JSON.stringify(rows).replaceAll("'", "''")}')`,
        );
      }
      await withPool(async (database) => {
        const me = rival.id as TenantId;
        const ids = new IdGenerator();
        const dialogues = new DialoguesRepository(database);
        const services = new ModelServicesRepository(
          database,
          ids,
          new SecretBox('secret-of-the-tests-0123456789abcdef'),
        );
        const assistants = new AssistantsRepository(database, ids);
        expect(await dialogues.findDialogue(acme.id as TenantId, dialogueId)).not.toBeNull();
        expect(await dialogues.findDialogue(me, dialogueId)).toBeNull();
        expect(await dialogues.findReply(me, replyId)).toBeNull();
        expect(
          await dialogues.listMessages(me, dialogueId, {
            orderBy: 'id',
            descending: false,
            offset: 0,
            limit: 10,
          }),
        ).toBeNull();
        expect(
          (
            await dialogues.listDialogues(me, {
              orderBy: 'createdAt',
              descending: false,
              offset: 0,
              limit: 10,
            })
          ).total,
        ).toBe(0);
        expect(await dialogues.stop(me, dialogueId, { close: true, onlyUser: null })).toBeNull();
        expect(await dialogues.inProgress(me, dialogueId)).toEqual([]);
        expect(await dialogues.checkpointed(me, replyId)).toEqual({ content: '', reasoning: '' });
        expect(await services.resolve(me, acme.serviceId as ModelServiceId)).toBeNull();
        expect(
          (
            await services.listUsable(me, { orderBy: 'name', descending: false, offset: 0, limit: 10 })
          ).rows.map(({ id }) => id),
        ).toEqual([rival.serviceId]);
        expect(await assistants.findVersion(me, acme.versionId as AssistantVersionId)).toBeNull();
        const draft = {
          tenantId: me,
          newDialogueId: ids.next<DialogueId>(),
          rootId: ids.next<MessageId>(),
          messageId: ids.next<MessageId>(),
          replyId: ids.next<MessageId>(),
          dialogueId,
          parentId: null,
          content: 'x',
          name: 'x',
          userId: 'u',
          createdBy: 'k',
          keyId: null,
          assistantId: null,
          versionId: null,
          modelServiceId: rival.serviceId as ModelServiceId,
          incarnation: 1n,
          idempotency: null,
          onlyUser: null,
          session: null,
          tellConversation: true,
          history: [],
          wire: 'dialogue',
          maxHistoryChars: 1000,
        };
        expect(await dialogues.storeTurn(draft)).toEqual({ outcome: 'no-dialogue' });
        const apps = new GenerationAppsRepository(database, ids);
        const records = new GenerationRecordsRepository(database);
        const blobs = new PostgresBlobStore(database);
        const whole = { orderBy: 'createdAt', descending: true, offset: 0, limit: 10 } as const;
        expect(await apps.find(acme.id as TenantId, appId)).not.toBeNull();
        expect(await records.find(acme.id as TenantId, recordId)).not.toBeNull();
        expect(await blobs.get(acme.id as TenantId, imageHash)).not.toBeNull();
        expect(await apps.find(me, appId)).toBeNull();
        expect(await records.find(me, recordId)).toBeNull();
        expect(await records.list(me, whole)).toEqual({ total: 0, rows: [] });
        expect(await records.list(me, { ...whole, appId })).toEqual({ total: 0, rows: [] });
        expect(await blobs.get(me, imageHash)).toBeNull();
        expect(await records.claimImage(me, recordId, imageHash)).toBe(false);
        await blobs.deleteUnless(me, imageHash, () => Promise.resolve(false));
        expect(await blobs.get(acme.id as TenantId, imageHash)).not.toBeNull();
        const conversations = new ConversationsRepository(database, ids);
        const log = new MessageLog(database);
        expect((await log.page(acme.id as TenantId, conversationId, { limit: 9 })).entries).toHaveLength(1);
        expect((await log.page(me, conversationId, { limit: 9 })).entries).toEqual([]);
        expect(await conversations.find(me, conversationId)).toBeNull();
        expect(await conversations.findGroup(me, 'team')).toBeNull();
        expect((await conversations.listGroups(me, '', 9)).groups).toEqual([]);
        expect(await conversations.members(me, conversationId, '', 9)).toEqual([]);
        expect(await conversations.markRead(me, conversationId, 'bob', 1)).toBeNull();
        await expect(conversations.recall(me, conversationId, 1, null, 0, String)).rejects.toMatchObject({
          code: 'NOT_FOUND',
        });
        const message = { id: ids.next<MessageId>(), conversationId, sender: 'ann', client: '', frame: '{}' };
        expect(
          await log.store({
            ...message,
            tenantId: me,
            side: null,
            dedupe: null,
            clientTime: null,
            only: null,
            assistantId: null,
          }),
        ).toEqual({ outcome: 'refused' });
        expect((await log.page(acme.id as TenantId, conversationId, { limit: 9 })).entries).toHaveLength(1);
        await database.transaction(tenantScope(me), async (tx) => {
          const archive = new DialogueArchive();
          const erasure = new ConversationErasure();
          const eraser = new Eraser(archive, erasure, records);
          const page = { limit: 9 };
          expect((await archive.list(tx, acme.id as TenantId, page)).data).toHaveLength(1);
          expect((await archive.list(tx, me, page)).data).toEqual([]);
          for (const attempt of [
            archive.get(tx, me, dialogueId),
            archive.messages(tx, me, dialogueId, page),
            eraser.eraseDialogue(tx, me, dialogueId),
            eraser.eraseUser(tx, me, 'ann'),
            services.get(tx, me, acme.serviceId as ModelServiceId),
            services.listPrices(tx, me, acme.serviceId as ModelServiceId),
          ])
            await expect(attempt).rejects.toMatchObject({ code: 'NOT_FOUND' });
          expect(await archive.erase(tx, me, [dialogueId])).toEqual({
            dialogues: 0,
            replyIds: [],
            conversationIds: [],
            underWay: [],
          });
          const soon = new Date(Date.now() + 86_400_000);
          const erasable = async (tenantId: TenantId) =>
            (await records.erasable(tx, tenantId, { before: soon }, 9)).map(({ id }) => id);
          expect(await erasable(acme.id as TenantId)).toContain(recordId);
          expect(await erasable(me)).toEqual([]);
          expect(await records.isImageShown(tx, acme.id as TenantId, imageHash)).toBe(true);
          expect(await records.isImageShown(tx, me, imageHash)).toBe(false);
          await records.erase(tx, me, [recordId]);
          expect(await erasable(acme.id as TenantId)).toContain(recordId);
          expect(await erasure.voicesOf(tx, me, 'ann')).toEqual([]);
          expect(await erasure.silence(tx, me, { conversationId, sender: null })).toBe(0);
          const all = { from: '0' as ConversationId, conversations: 9, messages: 9 };
          expect(await erasure.deleteOld(tx, me, soon, all)).toEqual({ next: null, deleted: 0 });
          expect(await archive.untouchedSince(tx, me, soon, 9)).toEqual([]);
          expect((await archive.list(tx, acme.id as TenantId, page)).data).toHaveLength(1);
        });
        expect(await dialogues.replyStands(me, replyId)).toBe(false);
        expect(await dialogues.progress(me, replyId)).toBeNull();
        const report = new UsageReport(database, { fresh: () => Promise.resolve() } as UsageRollUp);
        const month = { from: new Date('2020-01-01'), to: new Date('2099-01-01'), groupBy: [] };
        const usage = (tenantId: TenantId) => report.rows(tenantScope(tenantId), { ...month, tenantId });
        // The reply and the image.
        expect(await usage(acme.id as TenantId)).toMatchObject([{ requests: 2 }]);
        expect(await usage(me)).toMatchObject([{ requests: 0 }]);
        await database.transaction(tenantScope(me), async (tx) => {
          await expect(assistants.get(tx, me, acme.assistantId as never)).rejects.toMatchObject({
            code: 'NOT_FOUND',
          });
          await expect(apps.get(tx, me, appId)).rejects.toMatchObject({ code: 'NOT_FOUND' });
          await expect(apps.delete(tx, me, appId)).rejects.toMatchObject({ code: 'NOT_FOUND' });
        });
      }, copy.url);
    } finally {
      await copy.drop();
    }
  });
});

it('has entities that agree with what the migrations make', async () => {
  const source = await migrationDataSource(app.databaseUrl, entities).initialize();
  try {
    const { upQueries } = await source.driver.createSchemaBuilder().log();
    expect(
      upQueries
        .map((statement) => statement.query)
        .filter((sql) => /add column|drop column|alter column|create table/i.test(sql)),
    ).toEqual([]);
  } finally {
    await source.destroy();
  }
});

it('can be taken down and built again by its migrations', async () => {
  const database = await freshDatabase();
  try {
    const source = await migrationDataSource(database.url).initialize();
    try {
      for (let undone = 0; undone < migrations.length; undone += 1) await source.undoLastMigration();
      expect(
        await query(
          database.url,
          `select 1 from information_schema.tables where table_schema = 'public' and table_name <> 'migrations'`,
        ),
      ).toEqual([]);
      expect(await source.runMigrations()).toHaveLength(migrations.length);
    } finally {
      await source.destroy();
    }
  } finally {
    await database.drop();
  }
});
