import {
  Injectable,
  Logger,
  type BeforeApplicationShutdown,
  type OnApplicationBootstrap,
} from '@nestjs/common';
import {
  AppError,
  idAtTime,
  GroupCommit,
  type ApiKeyId,
  type ConversationId,
  type TenantId,
} from '../common';
import { Config } from '../config';
import { NodeRegistry } from '../database';
import {
  DevicesRepository,
  MessageLog,
  RECENT_CONVERSATIONS,
  type Change,
  type DeviceSession,
  type LogEntry,
  type LogPlace,
  type OpenedDevice,
} from '../messages';
import { CLOSE, Bus, SocketServer, textFrame } from '../realtime';
import { AccessWatch, type LostAccess } from '../tenancy';
import type { Connection } from './connection';
import { DeviceMarks } from './device-marks';
import { LiveMessage } from './live-message';
import { conversationRecord } from './records';

/** A user's device is told what changed of its own: which groups it is in, that another one took its place. */
type Control =
  | { readonly kind: 'joined'; readonly conversationId: ConversationId; readonly fromSeq: number }
  | { readonly kind: 'left'; readonly conversationId: ConversationId; readonly seq: number }
  | { readonly kind: 'replaced'; readonly connectionId: string };

interface Group {
  readonly members: Set<Connection>;
  readonly unsubscribe: () => void;
  /** What waits while a large group is written to bit by bit. */
  turns: LiveMessage[] | undefined;
}

/** An event of the richer dialect. */
export interface RichEvent {
  readonly frame: object;
  /** Lost without harm: typing, presence, a piece of a reply. */
  readonly droppable: boolean;
  /** The connection that caused it and needs no copy. */
  readonly except?: string;
}

const PAGE = 100;
const OPENS_A_BATCH = 100;
const LOOKS_A_BATCH = 200;
const PAGES_A_BATCH = 50;
const READS_AT_ONCE = 2;
/** Conversations of one connection that are caught up side by side. */
const PUMPED_AT_ONCE = 10;
/** More sockets than this are written to in several turns of the event loop, so that others get theirs. */
const FAN_OUT_A_TURN = 250;
const PROOF_MS = 1_000;
const SWEEP_MS = 5_000;
const SLICES = 25;
const MIN_LOOK_MS = 500;
/** What was committed this long before a look may have been missed by the one before. */
const LOOK_OVERLAP_MS = 60_000;
const RETRY_MS = 500;
const MAX_DRAIN_MS = 2_000;

const userKey = (tenantId: TenantId, userId: string): string => `${tenantId}\n${userId}`;

/**
 * Every open connection of this process, and how an entry of a log gets to it. What comes over the bus is a hint:
 * the next number in order is written at once, anything else sends the connection to the log, which is the truth.
 */
@Injectable()
export class Hub implements OnApplicationBootstrap, BeforeApplicationShutdown {
  private readonly logger = new Logger(Hub.name);
  private readonly connections = new Map<string, Connection>();
  private readonly users = new Map<string, { connections: Connection[]; unsubscribe: () => void }>();
  private readonly groups = new Map<ConversationId, Group>();
  private readonly watchers = new Map<string, { connections: Set<Connection>; unsubscribe: () => void }>();
  private readonly perTenant = new Map<TenantId, number>();
  private readonly perKey = new Map<ApiKeyId, number>();
  private readonly perAddress = new Map<string, number>();
  private readonly unproven = new Set<Connection>();
  private readonly opening: GroupCommit<Connection, OpenedDevice | null>;
  private readonly closing: GroupCommit<DeviceSession, undefined>;
  private readonly looking: GroupCommit<Connection, Change[]>;
  private readonly pages = new Map<string, Promise<LogEntry[]>>();
  private readonly reading: GroupCommit<LogPlace, LogEntry[]>;
  private readonly timers: NodeJS.Timeout[] = [];
  private lastLive: { text: string; message: LiveMessage } | undefined;
  private tick = 0;
  private stopping = false;

  constructor(
    private readonly config: Config,
    private readonly bus: Bus,
    private readonly log: MessageLog,
    private readonly devices: DevicesRepository,
    private readonly marks: DeviceMarks,
    private readonly sockets: SocketServer,
    private readonly access: AccessWatch,
    private readonly nodes: NodeRegistry,
  ) {
    this.opening = new GroupCommit((batch) => this.openBatch(batch), OPENS_A_BATCH);
    this.closing = new GroupCommit(async (batch) => {
      await this.devices.close(batch);
      return batch.map(() => undefined);
    }, OPENS_A_BATCH);
    this.reading = new GroupCommit((places) => this.log.next(places, PAGE), PAGES_A_BATCH, READS_AT_ONCE);
    this.looking = new GroupCommit((batch) => this.lookBatch(batch), LOOKS_A_BATCH);
  }

  onApplicationBootstrap(): void {
    const beat = (this.config.env.IM_HEARTBEAT_SECONDS * 1_000) / SLICES;
    this.timers.push(setInterval(() => this.heartbeat(), beat).unref());
    this.timers.push(setInterval(() => this.prove(), PROOF_MS).unref());
    this.timers.push(setInterval(() => void this.sweep(), SWEEP_MS).unref());
    this.access.watch(
      () => ({ tenants: this.perTenant.keys(), keys: this.perKey.keys() }),
      (lost) => this.loseAccess(lost),
    );
  }

  get size(): number {
    return this.connections.size;
  }

  get catchingUp(): number {
    let behind = 0;
    for (const connection of this.connections.values()) if (connection.behind.size > 0) behind += 1;
    return behind;
  }

  connectionsOf(scope: { tenantId: TenantId } | { address: string }): number {
    return 'tenantId' in scope
      ? (this.perTenant.get(scope.tenantId) ?? 0)
      : (this.perAddress.get(scope.address) ?? 0);
  }

  /** Device kinds of a user that are connected to this process. */
  clientsOf(tenantId: TenantId, userId: string): string[] {
    return (this.users.get(userKey(tenantId, userId))?.connections ?? []).map(({ client }) => client);
  }

  // — coming and going —

  add(connection: Connection): void {
    if (this.stopping) {
      connection.close(CLOSE.restarting, 'the server restarts; come back in a moment');
      return;
    }
    const { tenantId, userId, client } = connection;
    const key = userKey(tenantId, userId);
    let user = this.users.get(key);
    const older = user?.connections.find((other) => other.client === client);
    if (older) {
      // The newcomer takes over its row, too: between the two the user is never offline.
      connection.replaces = older.id;
      older.close(CLOSE.replaced, 'this user and client connected anew elsewhere');
      this.detach(older);
    }
    user = this.users.get(key);
    if (!user) {
      const unsubscribe = this.bus.subscribe(userTopic(key), (text) => this.toUser(key, text));
      this.users.set(key, (user = { connections: [], unsubscribe }));
    }
    user.connections.push(connection);
    this.connections.set(connection.id, connection);
    count(this.perTenant, tenantId, 1);
    count(this.perAddress, connection.settings.address, 1);
    const { keyId } = connection.settings.token;
    if (keyId) count(this.perKey, keyId, 1);
    void this.load(connection);
  }

  /** After its socket has closed. */
  remove(connection: Connection): void {
    if (!this.detach(connection) || !connection.ready) return;
    this.presenceChanged(connection);
    this.forget(connection);
  }

  /** False: it was not here any more. */
  private detach(connection: Connection): boolean {
    connection.open = false;
    if (!this.connections.delete(connection.id)) return false;
    const { tenantId, userId } = connection;
    const key = userKey(tenantId, userId);
    const user = this.users.get(key);
    if (user) {
      user.connections = user.connections.filter((other) => other !== connection);
      if (user.connections.length === 0) {
        user.unsubscribe();
        this.users.delete(key);
      }
    }
    for (const group of connection.groups) this.leaveGroup(connection, group);
    for (const watched of connection.watching ?? []) this.unwatch(connection, watched);
    this.unproven.delete(connection);
    count(this.perTenant, tenantId, -1);
    count(this.perAddress, connection.settings.address, -1);
    const { keyId } = connection.settings.token;
    if (keyId) count(this.perKey, keyId, -1);
    return true;
  }

  /** Removes its row, and that of the connection whose place it took without ever having one of its own. */
  private forget(connection: Connection): void {
    const session = sessionOf(connection);
    const { replaces } = connection;
    const sessions = replaces === undefined ? [session] : [session, { ...session, connectionId: replaces }];
    for (const one of sessions) void this.removeSession(one);
  }

  private async removeSession(session: DeviceSession): Promise<void> {
    for (;;) {
      try {
        return await this.closing.add(session);
      } catch (error) {
        // Presence is a lease: past the end of this process it falls by itself.
        this.logger.debug(`a session not removed, will be tried again: ${(error as Error).message}`);
        if (this.stopping) return;
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS).unref());
      }
    }
  }

  /** Sessions of processes that died: their users are offline, unless they have come back meanwhile. */
  private async sweep(): Promise<void> {
    if (!this.nodes.mayJudge) return;
    try {
      const dead = await this.devices.orphanedSessions(OPENS_A_BATCH);
      if (dead.length > 0) await this.devices.close(dead);
    } catch (error) {
      this.logger.debug(`sessions not swept, will be tried again: ${(error as Error).message}`);
    }
  }

  private loseAccess(lost: LostAccess): void {
    if (lost.kind === 'revoked') {
      for (const connection of this.users.get(userKey(lost.tenantId, lost.userId))?.connections ?? []) {
        const { client, issuedAt } = connection.settings.token;
        if ((lost.client === null || lost.client === client) && issuedAt <= lost.at)
          connection.close(CLOSE.unauthorized, 'the token was revoked; get another');
      }
      return;
    }
    for (const connection of this.connections.values()) {
      if (lost.kind === 'suspended' && connection.tenantId === lost.tenantId)
        connection.close(CLOSE.suspended, 'this tenant is suspended');
      if (lost.kind === 'key' && connection.settings.token.keyId === lost.keyId)
        connection.close(CLOSE.unauthorized, 'the key of this token was revoked; get another');
    }
  }

  // — from the log to the socket —

  /** First the live topics, then the log: the other order drops what is stored between the two. */
  private async load(connection: Connection): Promise<void> {
    try {
      const opened = await this.retrying(connection, () => this.opening.add(connection));
      if (!opened || !connection.open) {
        this.forget(connection);
        return;
      }
      const { standings, replaced } = opened;
      if (replaced) {
        const control: Control = { kind: 'replaced', connectionId: replaced.connectionId };
        this.control(connection.tenantId, connection.userId, control);
      }
      let pending = false;
      for (const { id, kind, mark, lastSeq, untilSeq } of standings) {
        const from = Math.max(mark, this.marks.pending(connection, id));
        const target = untilSeq ?? lastSeq;
        connection.positions.set(id, Math.max(from, connection.positions.get(id) ?? 0));
        if (target > from) {
          pending = true;
          connection.behind.set(id, Math.max(target, connection.behind.get(id) ?? 0));
        }
        if (kind === 'group') this.placeInGroup(connection, id, lastSeq, untilSeq);
      }
      if (connection.rich) connection.send(readyFrame(connection, opened, pending));
      connection.ready = true;
      this.presenceChanged(connection);
      if (connection.behind.size > 0) void this.pump(connection);
      // What a group was sent between the reading and the subscribing.
      if (connection.groups.size > 0) await this.look(connection);
    } catch (error) {
      this.logger.error({ err: error }, 'a connection could not be set up');
      connection.close(CLOSE.restarting, 'something went wrong here; come back in a moment');
    }
  }

  private async openBatch(batch: readonly Connection[]): Promise<(OpenedDevice | null)[]> {
    const open = batch.filter((connection) => connection.open);
    if (open.length === 0) return batch.map(() => null);
    const opened = await this.devices.open(open.map(sessionOf));
    const byId = new Map(open.map((connection, index) => [connection.id, opened[index]!]));
    return batch.map(({ id }) => byId.get(id) ?? null);
  }

  /** An entry that is committed: to everybody whose conversation it is in, on every node. */
  publishSingle(tenantId: TenantId, users: readonly string[], message: LiveMessage): void {
    const text = this.encode(message);
    for (const userId of new Set(users)) this.bus.publish(userTopic(userKey(tenantId, userId)), text);
  }

  publishGroup(conversationId: ConversationId, message: LiveMessage): void {
    this.bus.publish(groupTopic(conversationId), this.encode(message));
  }

  /** To the users of a one-to-one conversation or the members of a group, those that speak the richer dialect. */
  publishEvent(
    tenantId: TenantId,
    to: { readonly users: readonly string[] } | { readonly group: ConversationId },
    { frame, droppable, except = '' }: RichEvent,
  ): void {
    const text = `${droppable ? 'd' : 'e'}${except}\n${JSON.stringify(frame)}`;
    if ('group' in to) this.bus.publish(groupTopic(to.group), text);
    else for (const userId of new Set(to.users)) this.bus.publish(userTopic(userKey(tenantId, userId)), text);
  }

  /** Who has come into or gone out of a group, told to that user's own devices before and after the group itself. */
  control(tenantId: TenantId, userId: string, control: Control): void {
    this.bus.publish(userTopic(userKey(tenantId, userId)), `c${JSON.stringify(control)}`);
  }

  private encode(message: LiveMessage): string {
    const text = message.encode();
    this.lastLive = { text, message };
    return text;
  }

  /** In one process what is published is what is received: its bytes are made once. */
  private decode(text: string): LiveMessage {
    if (this.lastLive?.text !== text) this.lastLive = { text, message: LiveMessage.decode(text) };
    return this.lastLive.message;
  }

  private toUser(key: string, text: string): void {
    const connections = this.users.get(key)?.connections ?? [];
    if (text.startsWith('c')) {
      const control = JSON.parse(text.slice(1)) as Control;
      for (const connection of [...connections]) this.obey(connection, control);
    } else if (text.startsWith('m')) {
      const message = this.decode(text);
      for (const connection of connections) this.deliver(connection, message);
    } else this.event(connections, text);
  }

  private toGroup(id: ConversationId, text: string): void {
    const group = this.groups.get(id);
    if (!group) return;
    if (!text.startsWith('m')) {
      this.event(group.members, text);
      return;
    }
    const message = this.decode(text);
    if (group.turns) group.turns.push(message);
    else if (group.members.size <= FAN_OUT_A_TURN) {
      for (const connection of group.members) this.deliver(connection, message);
    } else {
      group.turns = [message];
      void this.inTurns(group);
    }
  }

  private async inTurns(group: Group): Promise<void> {
    const turns = group.turns ?? [];
    try {
      for (const message of turns) {
        let written = 0;
        for (const connection of [...group.members]) {
          this.deliver(connection, message);
          written += 1;
          if (written % FAN_OUT_A_TURN === 0) await new Promise((resolve) => setImmediate(resolve));
        }
      }
    } finally {
      // In the same breath as the look for another one: what comes next begins anew.
      group.turns = undefined;
    }
  }

  private event(connections: Iterable<Connection>, text: string): void {
    const end = text.indexOf('\n');
    const except = text.slice(1, end);
    const frame = textFrame(text.slice(end + 1));
    for (const connection of connections) {
      if (!connection.rich || !connection.ready || connection.id === except) continue;
      if (text.startsWith('d')) connection.writeDroppable(frame);
      else connection.write(frame);
    }
  }

  private deliver(connection: Connection, message: LiveMessage): void {
    const { conversationId: id, seq } = message.entry;
    const position = connection.positions.get(id) ?? (seq === 1 ? 0 : undefined);
    if (position !== undefined && seq <= position) return;
    // Who has much to read already gets the rest from the log, as fast as it reads.
    const next = position === seq - 1 && !connection.behind.has(id) && !connection.congested;
    if (connection.ready && next) this.writeEntry(connection, message);
    else this.fallBehind(connection, id, seq);
  }

  private fallBehind(connection: Connection, id: ConversationId, seq: number): void {
    connection.behind.set(id, Math.max(seq, connection.behind.get(id) ?? 0));
    if (connection.ready) void this.pump(connection);
  }

  private writeEntry(connection: Connection, message: LiveMessage): void {
    const { entry, origin } = message;
    connection.wrote(entry.conversationId, entry.seq);
    // The sender has it; only that very connection can be sure of it where the dialect acknowledges.
    const own = connection.rich
      ? origin === connection.id
      : entry.sender === connection.userId && entry.client === connection.client;
    if (!own) connection.write(connection.rich ? message.rich : message.plain);
    if (!connection.rich) this.unproven.add(connection);
  }

  /** Writes what the connection is behind with, from the log, as fast as it reads. One at a time for a connection. */
  private async pump(connection: Connection): Promise<void> {
    if (connection.pumping) return;
    connection.pumping = true;
    try {
      while (connection.open) {
        const next = [...take(connection.behind, PUMPED_AT_ONCE)];
        if (next.length === 0) break;
        await this.retrying(connection, () =>
          Promise.all(next.map(([id, target]) => this.advance(connection, id, target))),
        );
        await connection.writable();
      }
    } catch (error) {
      this.logger.error({ err: error }, 'catching up failed');
      connection.close(CLOSE.restarting, 'something went wrong here; come back in a moment');
    } finally {
      connection.pumping = false;
    }
  }

  private async advance(connection: Connection, id: ConversationId, target: number): Promise<void> {
    const { tenantId, userId, client } = connection;
    let position = connection.positions.get(id);
    if (position === undefined) {
      const standing = await this.devices.mark(tenantId, userId, client, id);
      if (!standing) {
        connection.behind.delete(id);
        return;
      }
      position = Math.max(standing.mark, this.marks.pending(connection, id));
      connection.positions.set(id, position);
      if (standing.kind === 'group') this.placeInGroup(connection, id, standing.lastSeq, standing.untilSeq);
    }
    const entries = position < target ? await this.page(tenantId, id, position) : [];
    if (!connection.open) return;
    for (const entry of entries) {
      if (connection.congested || entry.seq > (connection.behind.get(id) ?? target)) break;
      if (entry.seq <= (connection.positions.get(id) ?? 0)) continue;
      this.writeEntry(connection, new LiveMessage(entry));
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

  /** Sends a device what it lacks after a place it names itself (`sync`). Resolves to how far it got. */
  async rewind(
    connection: Connection,
    id: ConversationId,
    after: number,
    limit: number,
  ): Promise<{ seq: number; lastSeq: number } | null> {
    const standing = await this.devices.mark(connection.tenantId, connection.userId, connection.client, id);
    if (!standing) return null;
    const last = standing.untilSeq ?? standing.lastSeq;
    let seq = Math.max(after, standing.fromSeq);
    for (let left = limit; left > 0 && seq < last;) {
      const entries = await this.page(connection.tenantId, id, seq);
      // Nothing there any more: it was dropped with its month.
      if (entries.length === 0) seq = last;
      for (const entry of entries.slice(0, left)) {
        if (entry.seq > last || connection.congested) break;
        connection.write(new LiveMessage(entry).rich);
        seq = entry.seq;
      }
      left = limit - (seq - Math.max(after, standing.fromSeq));
      await connection.writable();
    }
    return { seq, lastSeq: last };
  }

  /** Asks the log whether this user missed a hint; not more often than twice a second. */
  async look(connection: Connection): Promise<void> {
    const now = Date.now();
    if (now < connection.nextLookAt) return;
    connection.nextLookAt = now + MIN_LOOK_MS;
    let changes: Change[];
    try {
      changes = await this.looking.add(connection);
    } catch (error) {
      // The database is away: the next look sees as far back.
      this.logger.debug(`not looked for what was missed: ${(error as Error).message}`);
      return;
    }
    connection.lookedAt = now;
    for (const { conversationId: id, kind, fromSeq, lastSeq, untilSeq } of changes) {
      if (kind === 'group') this.placeInGroup(connection, id, lastSeq, untilSeq);
      const target = untilSeq ?? lastSeq;
      if (target > Math.max(connection.positions.get(id) ?? 0, fromSeq))
        this.fallBehind(connection, id, target);
    }
  }

  private lookBatch(batch: readonly Connection[]): Promise<Change[][]> {
    return this.devices.changes(
      batch.map(({ tenantId, userId, lookedAt }) => ({
        tenantId,
        userId,
        since: idAtTime(lookedAt - LOOK_OVERLAP_MS),
      })),
    );
  }

  /** While the database is away a connection waits; it is not closed for that. */
  private async retrying<T>(connection: Connection, work: () => Promise<T>): Promise<T | undefined> {
    while (connection.open) {
      try {
        return await work();
      } catch (error) {
        if (!(error instanceof AppError) || error.code !== 'STORAGE_UNAVAILABLE') throw error;
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS).unref());
      }
    }
    return undefined;
  }

  // — groups, presence —

  private obey(connection: Connection, control: Control): void {
    if (control.kind === 'replaced') {
      if (connection.id !== control.connectionId) return;
      connection.close(CLOSE.replaced, 'this user and client connected anew elsewhere');
      this.detach(connection);
    } else if (control.kind === 'left') {
      connection.memberships.set(control.conversationId, control.seq);
      this.leaveGroup(connection, control.conversationId);
    } else {
      const { conversationId: id, fromSeq } = control;
      connection.memberships.set(id, fromSeq + 1);
      const position = connection.positions.get(id);
      if (position === undefined || position < fromSeq) connection.positions.set(id, fromSeq);
      this.enterGroup(connection, id);
    }
  }

  /** By what the database said; not if that is older than what was told since: who was put out meanwhile stays out. */
  private placeInGroup(
    connection: Connection,
    id: ConversationId,
    lastSeq: number,
    untilSeq: number | null,
  ): void {
    if (lastSeq < (connection.memberships.get(id) ?? 0)) return;
    if (untilSeq === null) this.enterGroup(connection, id);
    else this.leaveGroup(connection, id);
  }

  private enterGroup(connection: Connection, id: ConversationId): void {
    if (!this.connections.has(connection.id)) return;
    let group = this.groups.get(id);
    if (!group) {
      const unsubscribe = this.bus.subscribe(groupTopic(id), (text) => this.toGroup(id, text));
      this.groups.set(id, (group = { members: new Set(), unsubscribe, turns: undefined }));
    }
    group.members.add(connection);
    connection.groups.add(id);
  }

  private leaveGroup(connection: Connection, id: ConversationId): void {
    connection.groups.delete(id);
    const group = this.groups.get(id);
    if (!group?.members.delete(connection) || group.members.size > 0) return;
    group.unsubscribe();
    this.groups.delete(id);
  }

  /** `presence` frames about these users from now on, and one about each now. */
  async watch(connection: Connection, userIds: readonly string[]): Promise<void> {
    for (const watched of connection.watching ?? []) this.unwatch(connection, watched);
    connection.watching = new Set(userIds.map((userId) => userKey(connection.tenantId, userId)));
    for (const key of connection.watching) {
      let watcher = this.watchers.get(key);
      if (!watcher) {
        const made = new Set<Connection>();
        const unsubscribe = this.bus.subscribe(presenceTopic(key), (text) => this.event(made, text));
        this.watchers.set(key, (watcher = { connections: made, unsubscribe }));
      }
      watcher.connections.add(connection);
    }
    const online = await this.devices.online(connection.tenantId, userIds);
    for (const user of new Set(userIds)) {
      const clients = online.filter(({ userId }) => userId === user).map(({ client }) => client);
      connection.send(presenceFrame(user, clients));
    }
  }

  private unwatch(connection: Connection, key: string): void {
    const watcher = this.watchers.get(key);
    if (!watcher?.connections.delete(connection) || watcher.connections.size > 0) return;
    watcher.unsubscribe();
    this.watchers.delete(key);
  }

  private presenceChanged({ tenantId, userId }: Connection): void {
    const frame = presenceFrame(userId, this.clientsOf(tenantId, userId));
    this.bus.publish(presenceTopic(userKey(tenantId, userId)), `d\n${JSON.stringify(frame)}`);
  }

  // — heartbeat —

  /** A part of the connections each time: pings them, and drops those that have been silent since the last one. */
  private heartbeat(): void {
    this.tick = (this.tick + 1) % SLICES;
    const now = Date.now();
    const interval = this.config.env.IM_HEARTBEAT_SECONDS * 1_000;
    let index = 0;
    for (const connection of this.connections.values()) {
      index += 1;
      if (connection.settings.token.expiresAt <= now) {
        connection.close(CLOSE.unauthorized, 'the token has expired; get another');
      }
      if (index % SLICES !== this.tick) continue;
      if (now - connection.pingedAt > 2 * interval && connection.pingedAt > 0) connection.ws.terminate();
      else connection.ping(now);
    }
  }

  private prove(): void {
    const now = Date.now();
    for (const connection of this.unproven) {
      if (connection.proving) continue;
      this.unproven.delete(connection);
      connection.ping(now);
    }
  }

  /** A WebSocket pong: everything written before its ping has been read. */
  pong(connection: Connection, data: string): void {
    const proven = connection.proven(data);
    if (proven) this.marks.save(connection, proven);
    else if (connection.ready) void this.look(connection);
  }

  /** `ack`: the device has everything up to there. Not what it can't have been sent. At once, but for a conversation not seen here. */
  acknowledge(connection: Connection, id: ConversationId, seq: number): void | Promise<void> {
    const most = Math.max(connection.positions.get(id) ?? 0, connection.behind.get(id) ?? 0);
    if (most === 0) return this.acknowledgeUnseen(connection, id, seq);
    const { unproven } = connection;
    if (unproven && (unproven.get(id) ?? 0) <= seq) unproven.delete(id);
    this.marks.saveOne(connection, id, Math.min(seq, most));
  }

  private async acknowledgeUnseen(connection: Connection, id: ConversationId, seq: number): Promise<void> {
    const { tenantId, userId, client } = connection;
    const standing = await this.devices.mark(tenantId, userId, client, id);
    if (standing) this.marks.saveOne(connection, id, Math.min(seq, standing.lastSeq));
  }

  /** What a client that speaks the richer dialect has not acknowledged, so that it notices a lost last message. */
  unacknowledged(connection: Connection): Record<string, number> {
    return Object.fromEntries([...(connection.unproven ?? []), ...connection.behind]);
  }

  // — the end —

  /** Spread over a while: thousands of clients that come back in one instant would fall over the next server. */
  async beforeApplicationShutdown(): Promise<void> {
    this.stopping = true;
    this.sockets.stopAccepting();
    for (const timer of this.timers) clearInterval(timer);
    const all = [...this.connections.values()];
    const window = Math.min(MAX_DRAIN_MS, this.config.env.DRAIN_TIMEOUT_MS, all.length);
    const began = Date.now();
    for (const [index, connection] of all.entries()) {
      connection.close(CLOSE.restarting, 'the server restarts; come back in a moment');
      const due = began + (window * (index + 1)) / all.length;
      if (due - Date.now() > 10) await new Promise((resolve) => setTimeout(resolve, 10));
    }
    const deadline = Date.now() + 1_000;
    while (this.connections.size > 0 && Date.now() < deadline) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    for (const connection of this.connections.values()) connection.ws.terminate();
    await this.marks.stop();
  }
}

const userTopic = (key: string): string => `im.user.${key}`;
const groupTopic = (id: ConversationId): string => `im.group.${id}`;
const presenceTopic = (key: string): string => `im.presence.${key}`;

function* take<T>(all: Iterable<T>, most: number): Generator<T> {
  let taken = 0;
  for (const one of all) {
    if (taken === most) return;
    taken += 1;
    yield one;
  }
}

function count<K>(counts: Map<K, number>, key: K, by: 1 | -1): void {
  const value = (counts.get(key) ?? 0) + by;
  if (value > 0) counts.set(key, value);
  else counts.delete(key);
}

function sessionOf({ tenantId, userId, client, id }: Connection): DeviceSession {
  return { tenantId, userId, client, connectionId: id };
}

function presenceFrame(user: string, clients: readonly string[]): object {
  return { type: 'presence', user, online: clients.length > 0, clients };
}

function readyFrame({ userId, client }: Connection, { standings }: OpenedDevice, resumed: boolean): object {
  return {
    type: 'ready',
    user: userId,
    client,
    conversations: standings
      .filter(({ untilSeq, mark }) => untilSeq === null || untilSeq > mark)
      .slice(0, RECENT_CONVERSATIONS)
      .map((standing) => conversationRecord(standing, userId)),
    resumed,
  };
}
