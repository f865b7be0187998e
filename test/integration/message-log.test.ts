import fc from 'fast-check';
import {
  IdGenerator,
  type AppError,
  type ConversationId,
  type MessageId,
  type TenantId,
} from '../../src/common';
import { Database } from '../../src/database';
import {
  ConversationsRepository,
  MessageLog,
  type Appended,
  type MessageDraft,
  type Side,
} from '../../src/messages';
import { bootApp, type TestApp } from '../support/app';
import { freshDatabase, query } from '../support/database';

/** One node of an installation. */
interface Node {
  readonly app: TestApp;
  readonly log: MessageLog;
  readonly ids: IdGenerator;
}

let database: Awaited<ReturnType<typeof freshDatabase>>;
let nodes: readonly [Node, Node];
let conversations: ConversationsRepository;
let acme: TenantId;
let rival: TenantId;
let made = 0;

beforeAll(async () => {
  database = await freshDatabase();
  const boot = async (): Promise<Node> => {
    const app = await bootApp({}, database.url);
    const { nest } = app.app;
    return { app, log: nest.get(MessageLog), ids: nest.get(IdGenerator) };
  };
  nodes = [await boot(), await boot()];
  const [{ app }] = nodes;
  conversations = app.app.nest.get(ConversationsRepository);
  [acme, rival] = (await Promise.all([app.tenant(), app.tenant()])).map(({ id }) => id as TenantId) as [
    TenantId,
    TenantId,
  ];
});
afterAll(async () => {
  for (const { app } of nodes) await app.close();
  await database.drop();
});

function conversation(tenantId = acme): Promise<ConversationId> {
  made += 1;
  return conversations.single(tenantId, `a${made}`, `b${made}`, null);
}

/** A message as the wire makes one: `dedupe` of sender, msgId and timestamp. */
function draft(
  { ids }: Node,
  conversationId: ConversationId,
  said: {
    readonly sender?: string;
    readonly msgId?: number;
    readonly content?: string;
    readonly more?: Partial<MessageDraft>;
  } = {},
): MessageDraft {
  const { sender = 'ann', msgId, content = 'hello', more } = said;
  const timestamp = Date.now();
  const msg = { ...(msgId !== undefined && { msgId, timestamp: '1611065986' }), content };
  return {
    id: ids.next<MessageId>(),
    tenantId: acme,
    conversationId,
    sender,
    side: SIDES.get(sender) ?? null,
    client: 'pc',
    dedupe: msgId === undefined ? null : `${sender}\n${msgId}\n1611065986`,
    clientTime: msgId === undefined ? timestamp : 1_611_065_986_000,
    frame: JSON.stringify({ type: 'single', source: sender, target: 'ben', msg }),
    only: null,
    assistantId: null,
    ...more,
  };
}

/** Of two of them the conversation's own row knows how many they sent; of the others, a row of their own. */
const SIDES: ReadonlyMap<string, Side> = new Map([
  ['ann', 0],
  ['ben', 1],
  ['s0', 0],
  ['s1', 1],
]);

interface StoredRow {
  readonly id: string;
  readonly seq: number;
  readonly frame: string;
  readonly dedupe: string | null;
}

/** Past every wall and every statement of the application. */
async function stored(conversationId: ConversationId): Promise<StoredRow[]> {
  const rows = await query<StoredRow & { seq: string }>(
    database.url,
    'select id, seq, frame, dedupe from messages where conversation_id = $1 order by seq',
    [conversationId],
  );
  return rows.map((row) => ({ ...row, seq: Number(row.seq) }));
}

/** The conversation's row, who has sent how many, and its log. */
async function state(conversationId: ConversationId): Promise<unknown[]> {
  return [
    await query(database.url, 'select * from conversations where id = $1', [conversationId]),
    await query(
      database.url,
      'select * from conversation_senders where conversation_id = $1 order by sender',
      [conversationId],
    ),
    await stored(conversationId),
  ];
}

/** How many messages each sender has here, as the log keeps count of it. */
async function counts(conversationId: ConversationId, [first, second] = ['ann', 'ben']) {
  const rows = await query<{ sender: string; sent: string }>(
    database.url,
    `select $2 as sender, sent_first as sent from conversations where id = $1 and sent_first > 0
     union all select $3, sent_second from conversations where id = $1 and sent_second > 0
     union all select sender, sent from conversation_senders where conversation_id = $1`,
    [conversationId, first, second],
  );
  return Object.fromEntries(rows.map(({ sender, sent }) => [sender, Number(sent)]));
}

const numbersTo = (count: number): number[] => Array.from({ length: count }, (_, index) => index + 1);

interface Step {
  readonly conversation: number;
  readonly sender: number;
  /** Null: nothing is taken for a retry of it. */
  readonly msgId: number | null;
  readonly content: number;
  readonly node: number;
  /** On the other node at the same moment, too. */
  readonly twice: boolean;
  /** Then: go on at once, in a later turn of the event loop, or when everything so far is settled. */
  readonly then: 'go on' | 'turn' | 'settle';
}

const steps = fc.array(
  fc.record<Step>({
    conversation: fc.nat({ max: 2 }),
    sender: fc.nat({ max: 2 }),
    msgId: fc.option(fc.nat({ max: 4 }), { freq: 5 }),
    content: fc.oneof({ weight: 4, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.constant(1) }),
    node: fc.nat({ max: 1 }),
    twice: fc.boolean(),
    then: fc.oneof(
      { weight: 6, arbitrary: fc.constant('go on' as const) },
      { weight: 3, arbitrary: fc.constant('turn' as const) },
      { weight: 1, arbitrary: fc.constant('settle' as const) },
    ),
  }),
  { minLength: 1, maxLength: 80, size: 'max' },
);

interface Attempt {
  readonly draft: MessageDraft;
  readonly result: Appended;
}

async function play(script: readonly Step[], places: readonly ConversationId[]): Promise<Attempt[]> {
  const attempts: Promise<Attempt>[] = [];
  for (const step of script) {
    const on = step.twice ? [0, 1] : [step.node];
    for (const index of on) {
      const node = nodes[index]!;
      const one = draft(node, places[step.conversation]!, {
        sender: `s${step.sender}`,
        content: `c${step.content}`,
        ...(step.msgId !== null && { msgId: step.msgId }),
      });
      attempts.push(node.log.store(one).then((result) => ({ draft: one, result })));
    }
    if (step.then === 'turn') await new Promise((resolve) => setImmediate(resolve));
    if (step.then === 'settle') await Promise.all(attempts);
  }
  return Promise.all(attempts);
}

it('numbers 1 … n, each message once, whoever sends it how often over whichever node', async () => {
  await fc.assert(
    fc.asyncProperty(steps, async (script) => {
      const places = [await conversation(), await conversation(), await conversation()];
      const attempts = await play(script, places);
      const logs = new Map(
        await Promise.all(places.map(async (id): Promise<[string, StoredRow[]]> => [id, await stored(id)])),
      );

      for (const id of places) {
        const log = logs.get(id)!;
        expect(log.map(({ seq }) => seq)).toEqual(numbersTo(log.length));
        const here = attempts.filter(({ draft: { conversationId } }) => conversationId === id);
        const keys = new Set(here.flatMap(({ draft: { dedupe } }) => (dedupe === null ? [] : [dedupe])));
        const keyless = here.filter(({ draft: { dedupe } }) => dedupe === null);
        expect(log).toHaveLength(keys.size + keyless.length);
        const senders = log.map(({ frame }) => (JSON.parse(frame) as { source: string }).source);
        expect(await counts(id, ['s0', 's1'])).toEqual(
          Object.fromEntries(
            [...new Set(senders)].map((one) => [one, senders.filter((sender) => sender === one).length]),
          ),
        );
        expect(keyless.every(({ result }) => result.outcome === 'stored')).toBe(true);
      }
      const firsts = new Map<string, Attempt>();
      for (const attempt of attempts.filter(({ result: { outcome } }) => outcome === 'stored')) {
        const { conversationId, dedupe, id } = attempt.draft;
        const key = `${conversationId} ${dedupe ?? id}`;
        expect(firsts.get(key)).toBeUndefined();
        firsts.set(key, attempt);
      }
      for (const { draft: tried, result } of attempts) {
        const first = firsts.get(`${tried.conversationId} ${tried.dedupe ?? tried.id}`)!;
        expect(first).toBeDefined();
        if (tried.frame !== first.draft.frame) {
          expect(result).toEqual({ outcome: 'conflict' });
          continue;
        }
        const { id, seq } = first.result as { id: string; seq: number };
        const outcome = tried === first.draft ? 'stored' : 'repeated';
        expect(result).toEqual({ outcome, id, seq });
        expect(logs.get(tried.conversationId)![seq - 1]).toEqual({
          id,
          seq,
          frame: tried.frame,
          dedupe: tried.dedupe,
        });
      }
    }),
    {
      numRuns: 20,
      // Found here: a retry that waited for a message with another content was refused as that one was.
      examples: [
        [
          [
            { conversation: 1, sender: 1, msgId: 4, content: 1, node: 0, twice: false, then: 'go on' },
            { conversation: 1, sender: 1, msgId: 4, content: 0, node: 0, twice: true, then: 'turn' },
          ],
        ],
      ],
    },
  );
}, 60_000);

it('takes a burst that comes while the next batch gathers, the fullest batches first', async () => {
  const [node] = nodes;
  const { log } = node;
  const id = await conversation();
  const burst = (size: number): Promise<Appended[]> =>
    Promise.all(Array.from({ length: size }, () => log.store(draft(node, id))));
  const before = log.counters.batches;
  const first = await burst(120);
  const then = await burst(650);
  expect([...first, ...then].map((stored) => 'seq' in stored && stored.seq)).toEqual(numbersTo(770));
  expect(log.counters.batches - before).toBe(3);
});

it('stores the rest of a batch of which one message can not be stored', async () => {
  const [node] = nodes;
  const [here, there] = [await conversation(), await conversation()];
  // Postgres takes no NUL in a text; the wire refuses such a frame before.
  const bad = draft(node, here, { content: 'bad', more: { frame: '{"msg":"\0"}' } });
  const drafts = [
    ...numbersTo(10).map((msgId) => draft(node, here, { msgId })),
    ...numbersTo(5).map((msgId) => draft(node, there, { msgId })),
    bad,
    ...numbersTo(10).map((msgId) => draft(node, here, { sender: 'ben', msgId })),
  ];
  const results = await Promise.allSettled(drafts.map((one) => node.log.store(one)));
  results.forEach((result, index) => {
    if (drafts[index] === bad)
      expect(result).toMatchObject({ status: 'rejected', reason: { code: 'INTERNAL' } });
    else expect(result).toMatchObject({ status: 'fulfilled', value: { outcome: 'stored' } });
  });
  expect((await stored(here)).map(({ seq, id }) => [seq, id])).toEqual(
    drafts
      .filter((one) => one.conversationId === here && one !== bad)
      .map(({ id }, index) => [index + 1, id]),
  );
  expect((await stored(there)).map(({ seq }) => seq)).toEqual(numbersTo(5));
});

it('refuses who is not a member of a group, or may not speak in it, and no number is taken', async () => {
  const [node] = nodes;
  made += 1;
  const groupId = `g${made}`;
  const enter = (tenantId: TenantId, userId: string) =>
    conversations.join(
      tenantId,
      { groupId, userId, client: 'pc', frame: JSON.stringify({ type: 'join', source: userId }) },
      { mayCreate: true, maxMembers: 10 },
    );
  // In the rival's group of the same id the stranger is a member.
  await enter(rival, 'zed');
  const { conversationId } = (await enter(acme, 'ann'))!;
  await enter(acme, 'mute');
  await conversations.updateMember(acme, groupId, 'mute', { mutedUntil: new Date(Date.now() + 60_000) });
  await enter(acme, 'gone');
  await conversations.leave(acme, { groupId, userId: 'gone', client: 'pc', frame: '{"type":"leave"}' });
  const before = (await stored(conversationId)).length;

  const senders = ['zed', 'ann', 'mute', 'gone', 'ann', 'nobody', 'ann'];
  const results = await Promise.all(
    senders.map((sender, msgId) =>
      node.log.store(draft(node, conversationId, { sender, msgId, more: { only: 'member' } })),
    ),
  );
  const seqs = results.map((result, index) => {
    if (senders[index] !== 'ann') expect(result).toEqual({ outcome: 'refused' });
    return 'seq' in result ? [result.seq] : [];
  });
  expect(seqs.flat()).toEqual([before + 1, before + 2, before + 3]);
  expect((await stored(conversationId)).map(({ seq }) => seq)).toEqual(numbersTo(before + 3));
  // Refused is not stored: once the sender may speak, the same message is a new one.
  await enter(acme, 'zed');
  const again = await node.log.store(
    draft(node, conversationId, { sender: 'zed', msgId: 0, more: { only: 'member' } }),
  );
  expect(again).toMatchObject({ outcome: 'stored', seq: before + 5 });
});

describe('the short way of a batch', () => {
  const unchanged = async (node: Node, work: () => Promise<unknown>): Promise<number> => {
    const before = node.log.counters.unchanged;
    await work();
    return node.log.counters.unchanged - before;
  };
  /** Whatever earlier tests have made it doubt. */
  const trusting = async (node: Node): Promise<ConversationId> => {
    const id = await conversation();
    for (;;) {
      if (await unchanged(node, () => node.log.store(draft(node, id)))) return id;
    }
  };

  it('is taken where this process wrote last, and is as good as the long one', async () => {
    const [node] = nodes;
    const id = await trusting(node);
    const before = (await stored(id)).length;
    const database = node.app.app.nest.get(Database);
    const run = jest.spyOn(database, 'run');
    const runTwice = jest.spyOn(database, 'runTwice');
    const sent = [1, 2, 3].map((msgId) => node.log.store(draft(node, id, { msgId })));
    expect(await unchanged(node, () => Promise.all(sent))).toBe(1);
    // The server's own clocks ask Postgres too, whenever they like.
    const ofTheLog = [...run.mock.calls, ...runTwice.mock.calls].filter(([, statements]) =>
      statements.some(({ name }) => name.startsWith('log-')),
    );
    expect(ofTheLog.map(([, statements]) => statements.map(({ name }) => name))).toEqual([['log-store-if']]);
    jest.restoreAllMocks();
    expect((await Promise.all(sent)).map((result) => 'seq' in result && result.seq)).toEqual([
      before + 1,
      before + 2,
      before + 3,
    ]);
    const [[row]] = (await state(id)) as [{ last_seq: string }[]];
    expect(row!.last_seq).toBe(String(before + 3));
    expect(await counts(id)).toEqual({ ann: before + 3 });
  });

  it.each([
    ['a message that was stored before', (node: Node, id: ConversationId) => draft(node, id, { msgId: 1 })],
    [
      "another tenant's message",
      (node: Node, id: ConversationId) => draft(node, id, { more: { tenantId: rival } }),
    ],
    ['who is no member', (node: Node, id: ConversationId) => draft(node, id, { more: { only: 'member' } })],
  ])('is not taken for %s, nor for what is beside it', async (_, make) => {
    const [node] = nodes;
    const id = await trusting(node);
    await node.log.store(draft(node, id, { msgId: 1 }));
    const before = await stored(id);
    const beside = draft(node, id, { msgId: 2 });
    const results: Appended[] = [];
    const taken = await unchanged(node, async () => {
      results.push(...(await Promise.all([node.log.store(make(node, id)), node.log.store(beside)])));
    });
    expect(taken).toBe(0);
    expect(results[0]!.outcome).toMatch(/repeated|refused/);
    expect(results[1]).toEqual({ outcome: 'stored', id: beside.id, seq: before.length + 1 });
    expect(await stored(id)).toHaveLength(before.length + 1);
  });

  it('is not taken when another process has written, nor when a webhook listens', async () => {
    const [node, other] = nodes;
    const [id, beside] = [await trusting(node), await trusting(node)];
    await other.log.store(draft(other, id));
    expect(await unchanged(node, () => node.log.store(draft(node, id)))).toBe(0);
    // Only where others write is doubted.
    expect(await unchanged(node, () => node.log.store(draft(node, beside)))).toBe(1);
    expect(await counts(id)).toEqual({ ann: (await stored(id)).length });
    const known = await trusting(node);
    const webhookId = other.ids.next();
    await query(
      database.url,
      `insert into webhooks (id, tenant_id, url, secret, events) values ($1, $2, 'https://hook.test', '-', '{message.created}')`,
      [webhookId, acme],
    );
    try {
      const said = draft(node, known);
      expect(await unchanged(node, () => node.log.store(said))).toBe(0);
      const told = await query(
        database.url,
        'select event_id from webhook_deliveries where webhook_id = $1',
        [webhookId],
      );
      expect(told).toEqual([{ event_id: said.id }]);
    } finally {
      await query(database.url, 'delete from webhooks where id = $1', [webhookId]);
    }
  });
});

describe("a message for another tenant's conversation", () => {
  const settle = async (node: Node, drafts: readonly MessageDraft[]): Promise<(Appended | AppError)[]> =>
    Promise.all(drafts.map((one) => node.log.store(one).catch((error: unknown) => error as AppError)));

  it('changes nothing', async () => {
    const [node] = nodes;
    const theirs = await conversation();
    await node.log.store(draft(node, theirs, { msgId: 1 }));
    const before = await state(theirs);
    const more = { tenantId: rival };
    // The second has the key of what is there: not even that is told.
    const results = await settle(node, [
      draft(node, theirs, { sender: 'eve', msgId: 7, more }),
      draft(node, theirs, { msgId: 1, more }),
      draft(node, theirs, { sender: 'eve', more }),
    ]);
    for (const result of results) expect(result).not.toHaveProperty('seq');
    expect(await state(theirs)).toEqual(before);
    // And the conversation's own people are not disturbed by what was tried.
    expect(await node.log.store(draft(node, theirs, { sender: 'eve', msgId: 7 }))).toMatchObject({
      outcome: 'stored',
      seq: 2,
    });
  });

  it('changes nothing in a batch with messages of both tenants, either', async () => {
    const [node] = nodes;
    const [theirs, ours] = [await conversation(acme), await conversation(rival)];
    const more = { tenantId: rival };
    const drafts = [
      draft(node, theirs, { msgId: 1 }),
      draft(node, theirs, { sender: 'eve', msgId: 1, more }),
      draft(node, ours, { msgId: 1, more }),
      draft(node, theirs, { msgId: 2 }),
      draft(node, ours, { msgId: 2 }),
      draft(node, ours, { msgId: 3, more }),
    ];
    const results = await settle(node, drafts);
    expect(results.map((result) => ('seq' in result ? result.seq : null))).toEqual([1, null, 1, 2, null, 2]);
    for (const [id, sent] of [
      [theirs, drafts.slice(0, 4).filter(({ tenantId }) => tenantId === acme)],
      [ours, drafts.filter((one) => one.conversationId === ours && one.tenantId === rival)],
    ] as const) {
      expect((await stored(id)).map((row) => row.id)).toEqual(sent.map((one) => one.id));
      expect(await counts(id)).toEqual({ ann: 2 });
    }
    expect(await node.log.store(draft(node, theirs, { msgId: 3 }))).toMatchObject({ seq: 3 });
    expect(await node.log.store(draft(node, ours, { msgId: 4, more }))).toMatchObject({ seq: 3 });
  });
});

describe("a tenant's backlog", () => {
  const BACKLOG = 3_000;

  it("holds up another tenant's message by no more than the batch that is being stored, and both keep their order", async () => {
    const [node] = nodes;
    const [busy, quiet] = await Promise.all([conversation(), conversation(rival)]);
    const settled: TenantId[] = [];
    const seqs = new Map<ConversationId, number[]>([
      [busy, []],
      [quiet, []],
    ]);
    const said = (conversationId: ConversationId, tenantId: TenantId): Promise<void> =>
      new Promise((resolve, reject) => {
        node.log.append(draft(node, conversationId, { more: { tenantId } }), (result, error) => {
          if (result?.outcome !== 'stored') return reject(error ?? new Error(result?.outcome));
          settled.push(tenantId);
          seqs.get(conversationId)!.push(result.seq);
          resolve();
        });
      });
    const all = Array.from({ length: BACKLOG }, () => said(busy, acme));
    for (let n = 0; n < 30; n += 1) all.push(said(quiet, rival));
    await Promise.all(all);
    // Everything was there before the first batch began: its 500 of acme go before those of the rival that fit.
    expect(settled.indexOf(rival)).toBe(500);
    expect(settled.slice(500, 525)).toEqual(Array(25).fill(rival));
    // The others of them go with the second batch.
    expect(settled.lastIndexOf(rival)).toBe(1_029);
    for (const [conversationId, count] of [
      [busy, BACKLOG],
      [quiet, 30],
    ] as const)
      expect(seqs.get(conversationId)).toEqual(Array.from({ length: count }, (_, n) => n + 1));
  });
});
