import { isDeepStrictEqual } from 'node:util';
import { Injectable, Logger, type BeforeApplicationShutdown } from '@nestjs/common';
import { LRUCache } from 'lru-cache';
import {
  AppError,
  idAtTime,
  parseExact,
  type ConversationId,
  type MessageId,
  type TenantId,
} from '../common';
import { Database, tenantsScope, type Row, type Statement } from '../database';
import {
  CONVERSATIONS_HAVE_MOVED,
  findAppended,
  findKnown,
  findListeners,
  findRefused,
  lockConversations,
  storeIfUnchanged,
  storeStatements,
  type ConversationEnd,
  type FirstCopies,
  type KnownMessage,
  type MessageDraft,
  type NumberedMessage,
} from './append-statements';
import type { LogEntry } from './conversation-records';

export type Appended =
  | { readonly outcome: 'stored' | 'repeated'; readonly id: MessageId; readonly seq: number }
  /** The same sender, msgId and timestamp in this conversation, but another content. */
  | { readonly outcome: 'conflict' }
  /** Not a member who may speak. */
  | { readonly outcome: 'refused' };

/** Called once: with how it went, or with the error. Synchronously for a whole batch, so that a caller may gather. */
export type OnAppended = (result: Appended | null, error: AppError | null) => void;

/** Where somebody has got to in a conversation. */
export interface LogPlace {
  readonly tenantId: TenantId;
  readonly conversationId: ConversationId;
  /** Exclusive. */
  readonly after: number;
}

export interface LogRange {
  readonly after?: number;
  readonly before?: number;
  readonly limit: number;
}

export interface LogPage {
  readonly entries: LogEntry[];
  readonly hasMore: boolean;
}

interface Pending {
  readonly draft: MessageDraft;
  readonly done: OnAppended[];
  readonly since: number;
  settled: boolean;
}

/** How often the short way is not to be tried `now`, and how often not when it has failed once more. */
interface Doubts {
  readonly now: number;
  readonly next: number;
}

/** The end of a conversation as this process knows it. Doubted where others write, too. */
interface KnownEnd extends ConversationEnd {
  readonly doubts: Doubts;
}

/** How far a batch takes a conversation. */
interface Reached {
  readonly before: KnownEnd;
  lastSeq: number;
}

/** Messages that are stored together. */
class Batch {
  readonly messages: Pending[] = [];
  private chars = 0;
  /** How many of whom; most batches are of one tenant alone. */
  private first: TenantId | undefined;
  private ofFirst = 0;
  private ofOthers: Map<TenantId, number> | undefined;

  /**
   * `byKey`: by {@link underwayKey}, this batch's and perhaps others'. A map goes with its batch: of one that lived on,
   * with a key coming and going for every message, V8 would keep each table it ever outgrew linked to the next, and so
   * every message until a full collection.
   */
  constructor(readonly byKey: Map<string, Pending> = new Map()) {}

  /** A batch that one tenant has filled takes a few of each other, too: they do not wait for its next ones. */
  hasRoomFor({ frame, tenantId }: MessageDraft): boolean {
    const others = this.of(tenantId) < FEW ? ROOM_FOR_OTHERS : 0;
    return (
      this.messages.length < MAX_BATCH + others &&
      (this.chars === 0 || this.chars + frame.length <= MAX_BATCH_CHARS * (others > 0 ? 1.25 : 1))
    );
  }

  of(tenantId: TenantId): number {
    return tenantId === this.first ? this.ofFirst : (this.ofOthers?.get(tenantId) ?? 0);
  }

  add(pending: Pending, key: string | null): void {
    const { tenantId, frame } = pending.draft;
    this.messages.push(pending);
    this.chars += frame.length;
    this.first ??= tenantId;
    if (tenantId === this.first) this.ofFirst += 1;
    else (this.ofOthers ??= new Map()).set(tenantId, this.of(tenantId) + 1);
    if (key !== null) this.byKey.set(key, pending);
  }
}

/** One statement; measured: more messages in one bring nothing, and delay the first of them. */
const MAX_BATCH = 500;
const MAX_BATCH_CHARS = 4_000_000;
/** In a batch that is full, for tenants that have fewer than {@link FEW} messages in it. */
const ROOM_FOR_OTHERS = 100;
const FEW = 25;
const MAX_GATHER_MS = 12;
/** So many are worth a batch without waiting for more. */
const ENOUGH = 200;
const MAX_PENDING = 100_000;
const MAX_SHARED_KEYS = 10_000;
/** How long messages wait for a database that is away before their senders are told. */
const PATIENCE_MS = 20_000;
const RETRY_MS = 250;
/** Conversations whose end is remembered. */
const MAX_ENDS = 100_000;
const NO_DOUBTS: Doubts = { now: 0, next: 1 };
const MOST_DOUBTS: Doubts = { now: 64, next: 64 };
/** No sender's clock runs further ahead (im.md, 3): bounds how much older than its timestamp a first copy can be. */
export const MAX_CLOCK_AHEAD_MS = 30 * 86_400_000;
/** No server's clock is further ahead of another's. */
const MAX_SERVERS_APART_MS = 86_400_000;
export const MAX_PAGE = 200;
/** As stored; of large messages a page holds few. */
const MAX_PAGE_BYTES = 262_144;

/**
 * The numbered log of every conversation: 1, 2, 3 … without gaps, each message once. Group commit: while one batch is
 * being committed the next one fills. Whatever it reports as stored is durable; a database that is away for a while
 * costs time, nothing else.
 */
@Injectable()
export class MessageLog implements BeforeApplicationShutdown {
  /** Since the start of the process, for /metrics. */
  readonly counters = {
    stored: 0,
    repeated: 0,
    conflict: 0,
    refused: 0,
    failed: 0,
    batches: 0,
    unchanged: 0,
  };
  private readonly logger = new Logger(MessageLog.name);
  /** Oldest first: `ended` ones that are stored and not told, one being stored, others waiting, the last being filled. */
  private readonly batches: Batch[] = [];
  private ended = 0;
  private begun = 0;
  private waitingMessages = 0;
  private running: Promise<void> | undefined;
  /** Stored; told in this order, when the next batch is on its way. */
  private readonly untold: { readonly messages: Pending[]; readonly results: readonly Appended[] }[] = [];
  /** Where conversations ended when this process last wrote to them. */
  private readonly ends = new LRUCache<ConversationId, KnownEnd>({ max: MAX_ENDS });
  /** Batches that go the long way without trying the short one, which something in them has made vain. */
  private doubts = NO_DOUBTS;
  private stopping = false;
  /** While the next batch gathers. */
  private endGathering: (() => void) | undefined;

  constructor(private readonly database: Database) {}

  /** Messages that wait for their batch. */
  get waiting(): number {
    return this.waitingMessages;
  }

  append(draft: MessageDraft, done: OnAppended): void {
    const key = draft.dedupe === null ? null : underwayKey(draft, draft.dedupe);
    const first = key === null ? undefined : this.findUnderway(key);
    if (first) {
      const same = sameContent(first.draft.frame, draft.frame);
      first.done.push((result, error) => {
        // What it waited for was not the first copy after all: it is judged by itself.
        if (result?.outcome === 'conflict' && !same) this.append(draft, done);
        else done(result && repeatOf(result, same), error);
      });
      return;
    }
    if (this.waitingMessages >= MAX_PENDING) {
      done(null, new AppError('OVERLOADED', { retryAfterSeconds: 1 }));
      return;
    }
    this.batchFor(draft).add({ draft, done: [done], since: Date.now(), settled: false }, key);
    this.waitingMessages += 1;
    if (this.endGathering && this.enoughWaits()) this.endGathering();
    this.running ??= this.run();
  }

  /** The first one with room, but none before its tenant's last message: those stay in their order. */
  private batchFor(draft: MessageDraft): Batch {
    const { batches, begun } = this;
    const last = batches.length > begun ? batches.at(-1) : undefined;
    if (last && batches.length === begun + 1 && last.hasRoomFor(draft)) return last;
    let at = batches.length - 1;
    while (at > begun && batches[at]!.of(draft.tenantId) === 0) at -= 1;
    for (at = Math.max(at, begun); at < batches.length; at += 1)
      if (batches[at]!.hasRoomFor(draft)) return batches[at]!;
    // Where batches queue up, many share a map: whether a message is under way is looked up in each.
    const batch = new Batch(last && last.byKey.size < MAX_SHARED_KEYS ? last.byKey : undefined);
    batches.push(batch);
    return batch;
  }

  /** Of what is waiting or being stored: a retry that comes before its first copy is stored joins it. */
  private findUnderway(key: string): Pending | undefined {
    let last: Batch['byKey'] | undefined;
    for (const { byKey } of this.batches) {
      if (byKey === last) continue;
      const pending = byKey.get(key);
      if (pending && !pending.settled) return pending;
      last = byKey;
    }
    return undefined;
  }

  /** The same as a promise, for callers that send one message at a time. */
  store(draft: MessageDraft): Promise<Appended> {
    return new Promise((resolve, reject) => {
      this.append(draft, (result, error) => (result ? resolve(result) : reject(error!)));
    });
  }

  /**
   * Entries of a conversation, oldest first; `after` and `before` are exclusive. At most `limit` (200) and some 256 KiB,
   * but one at least: with `before` alone those right before it, and `hasMore` is about older ones; else the first ones.
   */
  page(tenantId: TenantId, conversationId: ConversationId, range: LogRange): Promise<LogPage> {
    return this.database.one(tenantsScope([tenantId]), entriesWithin(tenantId, conversationId, range));
  }

  /**
   * The next entries of many conversations at once, at most `limit` and some 256 KiB of each, but one at least. For whoever catches up: a device comes
   * back to a handful of conversations, and after a restart thousands of devices do.
   */
  async next(places: readonly LogPlace[], limit: number): Promise<LogEntry[][]> {
    const found = await this.database.one(
      tenantsScope(places.map(({ tenantId }) => tenantId)),
      entriesAfterPlaces(places, Math.min(limit, MAX_PAGE)),
    );
    return places.map((_, index) => found.get(index) ?? []);
  }

  async beforeApplicationShutdown(): Promise<void> {
    this.stopping = true;
    await this.running;
  }

  private async run(): Promise<void> {
    // Everything that this very read of the sockets brings goes into the first batch.
    await Promise.resolve();
    while (this.batches.length > this.begun) {
      const { messages } = this.batches[this.begun]!;
      const began = performance.now();
      this.begun += 1;
      this.waitingMessages -= messages.length;
      const committing = this.commit(messages);
      // Told by now, unless there is nobody to send to, or the batch goes the long way.
      if (this.ended > 0) {
        await nextTurn();
        this.tell();
      }
      await committing;
      this.ended += 1;
      const early = began + gatherMs(messages.length) - performance.now();
      if (this.batches.length === this.begun || early > 0) this.tell();
      await this.gather(early);
    }
    this.running = undefined;
  }

  /** Whether the next batch is worth its while: it holds as many as that, or no more go into it. */
  private enoughWaits(): boolean {
    const waiting = this.batches.length - this.begun;
    return waiting > 1 || (waiting === 1 && this.batches[this.begun]!.messages.length >= ENOUGH);
  }

  /** Resolves after `ms`, or as soon as enough messages wait; never at once. */
  private gather(ms: number): Promise<void> {
    // What has come to the sockets meanwhile is read first: it goes into the next batch, not into one of its own.
    if (ms <= 0 || this.enoughWaits()) return nextTurn();
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.endGathering?.(), ms);
      this.endGathering = () => {
        clearTimeout(timer);
        this.endGathering = undefined;
        resolve();
      };
    });
  }

  /** Resolves when every message of the batch is settled, or stored and to be told. Never rejects. */
  private async commit(batch: Pending[]): Promise<void> {
    let rest = batch;
    let inDoubt = false;
    while (rest.length > 0) {
      try {
        if (inDoubt) rest = await this.settleFound(rest);
        if (rest.length > 0) await this.storeBatch(rest);
        return;
      } catch (error) {
        const failure = error instanceof AppError ? error : new AppError('INTERNAL', { cause: error });
        if (failure.code !== 'STORAGE_UNAVAILABLE') {
          this.logger.error(`a batch of ${rest.length} was not stored: ${(error as Error).stack}`);
          await this.isolate(rest, failure);
          return;
        }
        inDoubt = true;
        rest = this.giveUp(rest, failure);
        if (rest.length > 0) await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      }
    }
  }

  private async storeBatch(batch: Pending[]): Promise<void> {
    if (this.doubts.now > 0) this.doubts = fewer(this.doubts);
    else if (await this.storeUnchanged(batch)) return;
    const drafts = batch.map(({ draft }) => draft);
    const results: Appended[] = [];
    const guarded = drafts.some(({ only }) => only !== null);
    const ends = new Map<ConversationId, KnownEnd>();
    await this.database.runTwice(
      scopeOf(drafts),
      [
        lockConversations(conversationsOf(drafts)),
        findKnown(drafts, firstCopiesOf(drafts)),
        findListeners([...new Set(drafts.map(({ tenantId }) => tenantId))]),
        ...(guarded ? [findRefused(drafts)] : []),
      ] as const,
      ([conversations, known, listeners, refused]) => {
        const last = new Map([...conversations].map(([id, { lastSeq }]) => [id, lastSeq]));
        const numbered: NumberedMessage[] = [];
        drafts.forEach((draft, index) => {
          const { conversationId, tenantId, id } = draft;
          const first = known.get(index);
          if (first) results.push(repetition(draft, first));
          // Also where the tenant has no such conversation.
          else if (conversations.get(conversationId)?.tenantId !== tenantId || refused?.has(index)) {
            results.push({ outcome: 'refused' });
          } else {
            const seq = last.get(conversationId)! + 1;
            last.set(conversationId, seq);
            numbered.push({ draft, seq });
            results.push({ outcome: 'stored', id, seq });
          }
        });
        for (const [id, found] of conversations) {
          const known = this.ends.get(id);
          const moved = known !== undefined && known.lastSeq !== found.lastSeq;
          const doubts = moved ? more(known.doubts) : fewer(known?.doubts ?? NO_DOUBTS);
          ends.set(id, { tenantId: found.tenantId, lastSeq: last.get(id)!, doubts });
        }
        if (listeners.size > 0) this.doubts = MOST_DOUBTS;
        return storeStatements(numbered, listeners);
      },
    );
    for (const [id, end] of ends) this.ends.set(id, end);
    this.settleBatch(batch, results);
  }

  /** The short way: one round trip, where nobody else has written to these conversations since this process did. */
  private async storeUnchanged(batch: Pending[]): Promise<boolean> {
    const reached = new Map<ConversationId, Reached>();
    const numbered: NumberedMessage[] = [];
    const drafts: MessageDraft[] = [];
    for (const { draft } of batch) {
      const { conversationId, tenantId, assistantId } = draft;
      let end = reached.get(conversationId);
      if (!end) {
        const known = this.ends.get(conversationId);
        if (!known || known.doubts.now > 0) return false;
        reached.set(conversationId, (end = { before: known, lastSeq: known.lastSeq }));
      }
      if (end.before.tenantId !== tenantId || assistantId !== null) return false;
      end.lastSeq += 1;
      numbered.push({ draft, seq: end.lastSeq });
      drafts.push(draft);
    }
    try {
      const unchanged = await this.database.one(
        scopeOf(drafts),
        storeIfUnchanged(numbered, (id) => reached.get(id)!.before.lastSeq, firstCopiesOf(drafts)),
        // Postgres is given its work before the sockets are given theirs: both are done at the same time.
        () => this.tell(),
      );
      if (!unchanged) {
        this.doubts = more(this.doubts);
        return false;
      }
    } catch (error) {
      // Which of the conversations it was, the long way will see.
      if ((error as { code?: unknown }).code === CONVERSATIONS_HAVE_MOVED) return false;
      throw error;
    }
    this.doubts = NO_DOUBTS;
    this.counters.unchanged += 1;
    for (const [id, { before, lastSeq }] of reached)
      this.ends.set(id, { tenantId: before.tenantId, lastSeq, doubts: NO_DOUBTS });
    this.settleBatch(
      batch,
      numbered.map(({ draft: { id }, seq }) => ({ outcome: 'stored', id, seq })),
    );
    return true;
  }

  private settleBatch(batch: Pending[], results: readonly Appended[]): void {
    this.counters.batches += 1;
    this.untold.push({ messages: batch, results });
  }

  /** Everybody whose message has ended. */
  private tell(): void {
    for (const { messages, results } of this.untold.splice(0)) {
      messages.forEach((pending, index) => this.settle(pending, results[index]!));
    }
    this.batches.splice(0, this.ended);
    this.begun -= this.ended;
    this.ended = 0;
  }

  /** Whether the first attempt was committed is unknown: what it stored is found by id, under the conversations' locks. */
  private async settleFound(batch: Pending[]): Promise<Pending[]> {
    const drafts = batch.map(({ draft }) => draft);
    const [, found] = await this.database.run(scopeOf(drafts), [
      lockConversations(conversationsOf(drafts)),
      findAppended(drafts),
    ]);
    const rest = batch.filter((pending) => {
      const seq = found.get(pending.draft.id);
      if (seq !== undefined) this.settle(pending, { outcome: 'stored', id: pending.draft.id, seq });
      return seq === undefined;
    });
    return rest;
  }

  /** One message that Postgres refuses must not take its neighbours with it. */
  private async isolate(batch: Pending[], failure: AppError): Promise<void> {
    if (batch.length === 1) {
      this.settle(batch[0]!, null, failure);
      return;
    }
    const half = batch.length >> 1;
    await this.commit(batch.slice(0, half));
    await this.commit(batch.slice(half));
  }

  private giveUp(batch: Pending[], failure: AppError): Pending[] {
    const oldest = this.stopping ? Infinity : Date.now() - PATIENCE_MS;
    const rest = batch.filter((pending) => {
      const over = pending.since < oldest;
      if (over) this.settle(pending, null, failure);
      return !over;
    });
    // Whoever waits behind them has waited as long, nearly: they are told with their own batch.
    return rest;
  }

  private settle(pending: Pending, result: Appended | null, error: AppError | null = null): void {
    pending.settled = true;
    this.counters[result?.outcome ?? 'failed'] += 1;
    for (const tell of pending.done) {
      try {
        tell(result, error);
      } catch (failure) {
        // The message is what it is; its neighbours must not be stored again for a listener's fault.
        this.logger.error({ err: failure }, 'after a message was settled');
      }
    }
  }
}

const more = ({ next }: Doubts): Doubts => ({ now: next, next: Math.min(MOST_DOUBTS.next, next * 2) });
const fewer = (doubts: Doubts): Doubts => (doubts.now > 0 ? { ...doubts, now: doubts.now - 1 } : doubts);

/**
 * From one batch's beginning to the next one's, at least, unless {@link ENOUGH} have come. Few messages wait for nothing;
 * many are cheaper together, in Postgres and on the sockets (docs/adr, 0009).
 */
const gatherMs = (messages: number): number => Math.min(MAX_GATHER_MS, messages / 5);
const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

function scopeOf(drafts: readonly MessageDraft[]) {
  return tenantsScope(drafts.map(({ tenantId }) => tenantId));
}

function conversationsOf(drafts: readonly MessageDraft[]): ConversationId[] {
  return [...new Set(drafts.map(({ conversationId }) => conversationId))];
}

function underwayKey(draft: MessageDraft, dedupe: string): string {
  return `${draft.conversationId}\n${dedupe}`;
}

function firstCopiesOf(drafts: readonly MessageDraft[]): FirstCopies {
  const now = Date.now();
  let oldest = now;
  for (const { dedupe, clientTime } of drafts) {
    if (dedupe !== null) oldest = Math.min(oldest, clientTime ?? 0);
  }
  return { oldest: idAtTime(oldest - MAX_CLOCK_AHEAD_MS), newest: idAtTime(now + MAX_SERVERS_APART_MS) };
}

/** Of a recalled message nothing is left to compare. */
function repetition(draft: MessageDraft, { id, seq, frame, recalled }: KnownMessage): Appended {
  return repeatOf({ outcome: 'stored', id, seq }, recalled || sameContent(frame, draft.frame));
}

function repeatOf(first: Appended, same: boolean): Appended {
  if (first.outcome === 'conflict' || first.outcome === 'refused') return first;
  return same ? { ...first, outcome: 'repeated' } : { outcome: 'conflict' };
}

/** The order of keys and the spelling of strings are the client's affair. */
function sameContent(a: string, b: string): boolean {
  return a === b || isDeepStrictEqual(content(a), content(b));
}

function content(frame: string): unknown {
  const { msg, msgType, extra } = parseExact(frame);
  // These two are what it is known by: they are the same, however they are spelt.
  const { timestamp: _, msgId: __, ...rest } = (msg ?? {}) as Record<string, unknown>;
  return { rest, msgType: msgType ?? 'text', extra };
}

const ENTRY_COLUMNS = 'id, seq, conversation_id, sender, client, frame, recalled_at is not null as recalled';

const entriesWithin = (
  tenantId: TenantId,
  conversationId: ConversationId,
  { after, before, limit }: LogRange,
): Statement<LogPage> => {
  const backwards = before !== undefined && after === undefined;
  const order = `order by seq ${backwards ? 'desc' : 'asc'}`;
  return {
    name: backwards ? 'log-before' : 'log-after',
    // One more than a page tells whether there is one.
    text: `select * from (
             select *, row_number() over (${order}) as n, count(*) over () as found,
               sum(octet_length(frame)) over (${order}) - octet_length(frame) as bytes_before
             from (select ${ENTRY_COLUMNS} from messages
                   where tenant_id = $1 and conversation_id = $2 and seq > $3 and seq < $4
                   ${order} limit $5 + 1) page) m
           where n <= $5 and bytes_before < ${MAX_PAGE_BYTES} order by seq`,
    values: [
      tenantId,
      conversationId,
      after ?? -1,
      before ?? Number.MAX_SAFE_INTEGER,
      Math.min(limit, MAX_PAGE),
    ],
    map: (rows) => ({
      entries: rows.map(toEntry),
      hasMore: rows.length > 0 && Number(rows[0]!.found) > rows.length,
    }),
  };
};

const entriesAfterPlaces = (
  places: readonly LogPlace[],
  limit: number,
): Statement<Map<number, LogEntry[]>> => ({
  name: 'log-after-places',
  text: `select i.ord, m.* from unnest($1::bigint[], $2::bigint[], $3::bigint[]) with ordinality
           as i(tenant_id, conversation_id, after, ord)
         cross join lateral (
           select *, sum(bytes) over (order by seq) - bytes as before from (
             select ${ENTRY_COLUMNS}, pg_column_size(frame) as bytes from messages
             where tenant_id = i.tenant_id and conversation_id = i.conversation_id and seq > i.after
             order by seq limit $4) page) m
         where m.before < ${MAX_PAGE_BYTES}
         order by i.ord, m.seq`,
  values: [
    places.map(({ tenantId }) => tenantId),
    places.map(({ conversationId }) => conversationId),
    places.map(({ after }) => after),
    limit,
  ],
  map: (rows) => {
    const found = new Map<number, LogEntry[]>();
    for (const row of rows) {
      const index = Number(row.ord) - 1;
      const entries = found.get(index);
      if (entries) entries.push(toEntry(row));
      else found.set(index, [toEntry(row)]);
    }
    return found;
  },
});

export function toEntry(row: Row): LogEntry {
  return {
    id: row.id as MessageId,
    seq: Number(row.seq),
    conversationId: row.conversation_id as ConversationId,
    sender: row.sender as string,
    client: row.client as string,
    frame: row.frame as string,
    recalled: row.recalled as boolean,
  };
}
