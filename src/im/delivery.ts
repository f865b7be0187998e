import { Injectable, Logger } from '@nestjs/common';
import { GroupCommit, idAtTime, isStorageAway, type ConversationId, type TenantId } from '../common';
import {
  DevicesRepository,
  FIRST_PLACE,
  MessageLog,
  pastGaps,
  type Change,
  type ChangeQuery,
  type ChangesPage,
  type Gap,
  type LogEntry,
  type LogPlace,
  type Standing,
} from '../messages';
import { CLOSE, textFrame } from '../realtime';
import type { Connection } from './connection';
import { DeviceMarks } from './device-marks';
import { LaterPages } from './later-pages';
import { LiveMessage } from './live-message';

const PAGE = 100;
const LOOKS_A_BATCH = 200;
const PAGES_A_BATCH = 50;
const READS_AT_ONCE = 2;
/** Conversations of one connection that are caught up side by side. */
const PUMPED_AT_ONCE = 10;
const MIN_LOOK_MS = 500;
/** What was committed this long before a look may have been missed by the one before. */
const LOOK_OVERLAP_MS = 60_000;
const RETRY_MS = 500;

/** What the database says of a device in a group: how far the group's log reaches, and until where it is a member. */
export type OnStanding = (
  connection: Connection,
  id: ConversationId,
  lastSeq: number,
  untilSeq: number | null,
) => void;

/**
 * How an entry of a log gets to a connection. A hint that is the next number in order is written at once; anything
 * else sends the connection to the log, which is the truth.
 */
@Injectable()
export class Delivery {
  /** Written to, and not yet pinged for the proof that it was read. */
  readonly unproven = new Set<Connection>();
  private readonly logger = new Logger(Delivery.name);
  private readonly looking: GroupCommit<ChangeQuery, ChangesPage>;
  private readonly lookingOn: LaterPages<ChangeQuery, ChangesPage>;
  private readonly pages = new Map<string, Promise<LogEntry[]>>();
  private readonly reading: GroupCommit<LogPlace, LogEntry[]>;
  private standing: OnStanding = () => undefined;

  constructor(
    private readonly log: MessageLog,
    private readonly devices: DevicesRepository,
    private readonly marks: DeviceMarks,
  ) {
    this.reading = new GroupCommit((places) => this.log.next(places, PAGE), PAGES_A_BATCH, READS_AT_ONCE);
    this.looking = new GroupCommit((queries) => this.devices.changes(queries), LOOKS_A_BATCH);
    this.lookingOn = new LaterPages((queries) => this.devices.changes(queries, true));
  }

  /** Who keeps the groups' members is told when a look into the database finds where a device stands in one. */
  whenStanding(listener: OnStanding): void {
    this.standing = listener;
  }

  /** An event to those of these connections that speak the richer dialect. */
  event(connections: Iterable<Connection>, text: string): void {
    const end = text.indexOf('\n');
    const except = text.slice(1, end);
    const frame = textFrame(text.slice(end + 1));
    for (const connection of connections) {
      if (!connection.rich || !connection.ready || connection.id === except) continue;
      if (text.startsWith('d')) connection.writeDroppable(frame);
      else connection.write(frame);
    }
  }

  /** An entry that has just been stored: written at once if it is the next one, else the log is read. */
  deliver(connection: Connection, message: LiveMessage): void {
    const { conversationId: id, seq } = message.entry;
    const position = connection.positions.get(id) ?? (seq === 1 ? 0 : undefined);
    if (position !== undefined && seq <= position) return;
    // Who has much to read already gets the rest from the log, as fast as it reads.
    const next = position === seq - 1 && !connection.behind.has(id) && !connection.congested;
    if (connection.ready && next && connection.fits(bytesOf(connection, message)))
      this.writeEntry(connection, message);
    else this.fallBehind(connection, id, seq);
  }

  fallBehind(connection: Connection, id: ConversationId, seq: number): void {
    connection.behind.set(id, Math.max(seq, connection.behind.get(id) ?? 0));
    if (connection.ready) void this.pump(connection);
  }

  private writeEntry(connection: Connection, message: LiveMessage): void {
    const { entry } = message;
    connection.wrote(entry.conversationId, entry.seq);
    if (!isOwn(connection, message)) connection.write(connection.rich ? message.rich : message.plain);
    if (!connection.rich) this.unproven.add(connection);
  }

  /** Writes what the connection is behind with, from the log, as fast as it reads. One at a time for a connection. */
  async pump(connection: Connection): Promise<void> {
    if (connection.pumping) return;
    connection.pumping = true;
    try {
      while (connection.open) {
        const next = [...take(connection.behind, PUMPED_AT_ONCE)];
        if (next.length === 0) break;
        let largest = 0;
        const waits = (bytes: number): void => void (largest = Math.max(largest, bytes));
        await this.retrying(connection, () =>
          Promise.all(next.map(([id, target]) => this.advance(connection, id, target, waits))),
        );
        await connection.writable(largest);
      }
    } catch (error) {
      this.logger.error({ err: error }, 'catching up failed');
      connection.close(CLOSE.failed, 'something went wrong here; come back in a moment');
    } finally {
      connection.pumping = false;
    }
  }

  /** Notes where a connection is to go on in a conversation. */
  begin(
    connection: Connection,
    id: ConversationId,
    { mark, marked, gaps }: Pick<Standing, 'mark' | 'marked' | 'gaps'>,
  ): number {
    const from = Math.max(mark, this.marks.pending(connection, id));
    connection.positions.set(id, Math.max(from, connection.positions.get(id) ?? 0));
    if (connection.rich && !marked && mark > 0) (connection.beginnings ??= new Map()).set(id, mark);
    this.noteGaps(connection, id, gaps);
    return from;
  }

  /** The connection's user is in again; what the device lacks of the time before it gets before what comes now. */
  rejoin(connection: Connection, id: ConversationId, gap: Gap): void {
    this.noteGaps(connection, id, [...(connection.gaps?.get(id) ?? []), gap]);
    const position = connection.positions.get(id);
    if (position !== undefined) connection.positions.set(id, pastGaps([gap], position));
  }

  /** Of those that the connection was told of itself the newest may not be among what was read meanwhile. */
  private noteGaps(connection: Connection, id: ConversationId, gaps: readonly Gap[]): void {
    const told = connection.gaps?.get(id) ?? [];
    if (gaps.length === 0 && told.length === 0) return;
    const read = gaps.at(-1)?.until ?? 0;
    const position = connection.positions.get(id) ?? 0;
    const all = [...gaps, ...told.filter(({ after }) => after >= read)];
    const ahead = all.filter(({ until }) => until > position);
    if (ahead.length > 0) (connection.gaps ??= new Map()).set(id, ahead);
    else connection.gaps?.delete(id);
  }

  /** `waits` is told of the entry that there was no room for. */
  private async advance(
    connection: Connection,
    id: ConversationId,
    target: number,
    waits: (bytes: number) => void,
  ): Promise<void> {
    const { tenantId, userId, client } = connection;
    let position = connection.positions.get(id);
    if (position === undefined) {
      const standing = await this.devices.mark(tenantId, userId, client, id);
      if (!standing) {
        connection.behind.delete(id);
        return;
      }
      position = this.begin(connection, id, standing);
      if (standing.kind === 'group') this.standing(connection, id, standing.lastSeq, standing.untilSeq);
    }
    const gaps = connection.gaps?.get(id) ?? [];
    position = pastGaps(gaps, position);
    connection.positions.set(id, Math.max(position, connection.positions.get(id) ?? 0));
    const entries = position < target ? await this.page(tenantId, id, position) : [];
    if (!connection.open) return;
    for (const entry of entries) {
      if (connection.congested || entry.seq > (connection.behind.get(id) ?? target)) break;
      if (entry.seq <= (connection.positions.get(id) ?? 0)) continue;
      const place = pastGaps(gaps, entry.seq - 1);
      if (place >= entry.seq) {
        connection.positions.set(id, place);
        continue;
      }
      const message = new LiveMessage(entry);
      const bytes = bytesOf(connection, message);
      if (!connection.fits(bytes)) {
        waits(bytes);
        break;
      }
      this.writeEntry(connection, message);
    }
    const reached = connection.positions.get(id)!;
    // An empty page: what was hinted at is not there, or was dropped with its month.
    if (entries.length === 0 || reached >= connection.behind.get(id)!) {
      connection.behind.delete(id);
      if (entries.length === 0 && target > reached) connection.wrote(id, target);
    }
  }

  /** Many devices of one group come back at once: each page is read once for all of them. */
  private page(tenantId: TenantId, id: ConversationId, after: number): Promise<LogEntry[]> {
    const key = `${id}/${after}`;
    let page = this.pages.get(key);
    if (!page) {
      page = this.reading.add({ tenantId, conversationId: id, after }).finally(() => this.pages.delete(key));
      this.pages.set(key, page);
    }
    return page;
  }

  /** Sends a device what it lacks after a place it names itself (`sync`). Resolves to how far it got with how many. */
  async rewind(
    connection: Connection,
    id: ConversationId,
    after: number,
    limit: number,
  ): Promise<{ seq: number; lastSeq: number; sent: number } | null> {
    const standing = await this.devices.mark(connection.tenantId, connection.userId, connection.client, id);
    if (!standing) return null;
    const { gaps } = standing;
    const last = standing.untilSeq ?? standing.lastSeq;
    const { replay } = connection;
    let seq = pastGaps(gaps, Math.max(after, standing.fromSeq));
    let sent = 0;
    while (sent < limit && seq < last && connection.open) {
      const entries = await this.page(connection.tenantId, id, seq);
      let waits = 0;
      // Nothing there any more: it was dropped with its month.
      if (entries.length === 0) seq = last;
      for (const entry of entries) {
        if (sent === limit || entry.seq > last) break;
        if (entry.seq <= seq) continue;
        const place = pastGaps(gaps, entry.seq - 1);
        if (place < entry.seq) {
          if (connection.congested || replay.waitSeconds() > 0) break;
          const { rich } = new LiveMessage(entry);
          if (!connection.fits(rich.length)) {
            waits = rich.length;
            break;
          }
          connection.write(rich);
          replay.spend(rich.length);
          sent += 1;
        }
        seq = pastGaps(gaps, entry.seq);
      }
      await connection.writable(waits);
      if (replay.waitSeconds() > 0) break;
    }
    return { seq, lastSeq: last, sent };
  }

  /** Asks the log whether this user missed a hint; not more often than twice a second. */
  async look(connection: Connection): Promise<void> {
    const now = Date.now();
    if (now < connection.nextLookAt) return;
    // Nor while a look is under way.
    connection.nextLookAt = Infinity;
    const { tenantId, userId, lookedAt } = connection;
    const query = { tenantId, userId, since: idAtTime(lookedAt - LOOK_OVERLAP_MS) };
    try {
      let page = await this.looking.add({ ...query, after: FIRST_PLACE });
      this.follow(connection, page.changes);
      while (page.next !== null && connection.open) {
        page = await this.lookingOn.read({ ...query, after: page.next });
        this.follow(connection, page.changes);
      }
      connection.lookedAt = now;
    } catch (error) {
      // The database is away: the next look sees as far back.
      this.logger.debug(`not looked for what was missed: ${(error as Error).message}`);
    } finally {
      connection.nextLookAt = now + MIN_LOOK_MS;
    }
  }

  private follow(connection: Connection, changes: readonly Change[]): void {
    for (const { conversationId: id, kind, fromSeq, gaps, lastSeq, untilSeq } of changes) {
      this.noteGaps(connection, id, gaps);
      if (kind === 'group') this.standing(connection, id, lastSeq, untilSeq);
      const target = untilSeq ?? lastSeq;
      if (target > Math.max(connection.positions.get(id) ?? 0, fromSeq))
        this.fallBehind(connection, id, target);
    }
  }

  /** While the database is away a connection waits; it is not closed for that. */
  async retrying<T>(connection: Connection, work: () => Promise<T>): Promise<T | undefined> {
    while (connection.open) {
      try {
        return await work();
      } catch (error) {
        if (!isStorageAway(error)) throw error;
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS).unref());
      }
    }
    return undefined;
  }
}

/** The sender has it; only that very connection can be sure of it where the dialect acknowledges. */
function isOwn({ rich, id, userId, client }: Connection, { entry, origin }: LiveMessage): boolean {
  return rich ? origin === id : entry.sender === userId && entry.client === client;
}

/** What it takes to write it. */
function bytesOf(connection: Connection, message: LiveMessage): number {
  if (isOwn(connection, message)) return 0;
  return (connection.rich ? message.rich : message.plain).length;
}

function* take<T>(all: Iterable<T>, most: number): Generator<T> {
  let taken = 0;
  for (const one of all) {
    if (taken === most) return;
    taken += 1;
    yield one;
  }
}
