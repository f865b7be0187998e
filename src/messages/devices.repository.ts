import { Injectable } from '@nestjs/common';
import type { ConversationId, TenantId } from '../common';
import { Database, NodeRegistry, platformScope, tenantScope, type Scope } from '../database';
import type { ConversationKind, Gap, Standing } from './conversation-records';
import {
  closeDevices,
  forgetUnseen,
  lockUsers,
  noteNew,
  openDevices,
  orphanedSessions,
  readChanges,
  readMark,
  readOnline,
  readStandings,
  readUsers,
  saveMarks,
} from './device-statements';

/** A device kind of a user. */
export interface DeviceName {
  readonly tenantId: TenantId;
  readonly userId: string;
  readonly client: string;
}

/** One connection of a user's device kind. */
export interface DeviceSession extends DeviceName {
  readonly connectionId: string;
}

/** Some of a user's conversations, by their ids. */
export interface StandingsPage {
  readonly standings: readonly Standing[];
  /** Where the next page goes on; null: there is none. */
  readonly next: ConversationId | null;
  /** The device's first coming is not noted to the end yet: say so when asking for the next page. */
  readonly fresh: boolean;
}

export interface OpenedDevice {
  readonly page: StandingsPage;
  /** The connection of another live node that this one takes the place of. */
  readonly replaced: { readonly incarnation: bigint; readonly connectionId: string } | null;
}

/** Where a device's page begins. */
export interface StandingsPlace extends DeviceName {
  /** Exclusive. */
  readonly after: ConversationId;
  readonly fresh: boolean;
}

export interface DeviceMark extends DeviceName {
  readonly conversationId: ConversationId;
  readonly seq: number;
}

/** Of one user: what has happened since an id, in some of the conversations. */
export interface ChangeQuery {
  readonly tenantId: TenantId;
  readonly userId: string;
  readonly since: string;
  /** Exclusive. */
  readonly after: ConversationId;
}

export interface Change {
  readonly conversationId: ConversationId;
  readonly kind: ConversationKind;
  readonly key: string;
  /** Where the membership began, its earlier intervals included. */
  readonly fromSeq: number;
  readonly gaps: readonly Gap[];
  readonly lastSeq: number;
  readonly untilSeq: number | null;
}

export interface ChangesPage {
  readonly changes: readonly Change[];
  readonly next: ConversationId | null;
}

/** How a device stands to one conversation. */
export interface MarkedChange extends Change {
  readonly mark: number;
  /** False: the mark is where the device began, not what it has read. */
  readonly marked: boolean;
}

export interface OnlineDevice {
  readonly userId: string;
  readonly client: string;
  readonly connectedAt: Date;
}

/** Before the first conversation. */
export const FIRST_PLACE = '0' as ConversationId;
/** Conversations of a user that are read together with others' users; those after them are read apart. */
const FIRST_PAGE = 200;
const LATER_PAGE = 500;

/** Devices, what each is known to have, and which are connected where. */
@Injectable()
export class DevicesRepository {
  constructor(
    private readonly database: Database,
    private readonly nodes: NodeRegistry,
  ) {}

  /**
   * No device twice in one call. In the order of the input. `since`: what a new device of a known user needs not be
   * told, by the id of a message ({@link openDevices}).
   */
  async open(sessions: readonly DeviceSession[], since: string): Promise<OpenedDevice[]> {
    const places = sessions.map((session) => ({ ...session, after: FIRST_PLACE }));
    const [, replaced, , pages] = await this.database.run(scopeOf(sessions, true), [
      lockUsers(sessions),
      openDevices(sessions, this.nodes.incarnation, since),
      noteNew(places, FIRST_PAGE),
      readStandings(places, FIRST_PAGE),
    ]);
    return sessions.map((_, index) => ({ replaced: replaced.get(index) ?? null, page: pages[index]! }));
  }

  /** Further pages of opened devices. */
  async standings(places: readonly StandingsPlace[]): Promise<StandingsPage[]> {
    const fresh = places.filter((place) => place.fresh);
    const page = readStandings(places, LATER_PAGE);
    if (fresh.length === 0) return this.database.one(scopeOf(places), page);
    const [, pages] = await this.database.run(scopeOf(places), [noteNew(fresh, LATER_PAGE), page]);
    return pages;
  }

  async close(sessions: readonly DeviceSession[]): Promise<void> {
    await this.database.run(scopeOf(sessions, true), [lockUsers(sessions), closeDevices(sessions)]);
  }

  /** Sessions whose process is dead. */
  orphanedSessions(limit: number): Promise<DeviceSession[]> {
    return this.database.one(platformScope(), orphanedSessions(limit));
  }

  /** Marks only grow. */
  async saveMarks(marks: readonly DeviceMark[]): Promise<void> {
    await this.database.one(scopeOf(marks), saveMarks(marks));
  }

  async mark(
    tenantId: TenantId,
    userId: string,
    client: string,
    id: ConversationId,
  ): Promise<MarkedChange | null> {
    return this.database.one(tenantScope(tenantId), readMark(tenantId, userId, client, id));
  }

  /** Per query: of the conversations after its place those that have moved since. `whole`: a page of those read apart. */
  changes(queries: readonly ChangeQuery[], whole = false): Promise<ChangesPage[]> {
    return this.database.one(scopeOf(queries), readChanges(queries, whole ? LATER_PAGE : FIRST_PAGE));
  }

  /** Device kinds of a user that are connected to a live node, with the time each connected. */
  online(tenantId: TenantId, userIds: readonly string[]): Promise<OnlineDevice[]> {
    return this.database.one({ tenants: [tenantId], platform: true }, readOnline(tenantId, userIds));
  }

  /** Every user of the tenant that ever connected a device, by id. */
  users(tenantId: TenantId, after: string, limit: number): Promise<string[]> {
    return this.database.one(tenantScope(tenantId), readUsers(tenantId, after, limit));
  }

  /**
   * Takes the marks of some devices that are not connected and were not seen after `before`; how many devices. Each
   * begins, should it come back, where it was last seen.
   */
  forgetUnseen(tenantId: TenantId, before: Date, limit: number): Promise<number> {
    return this.database.one({ tenants: [tenantId], platform: true }, forgetUnseen(tenantId, before, limit));
  }
}

function scopeOf(of: readonly { readonly tenantId: TenantId }[], platform = false): Scope {
  return { tenants: [...new Set(of.map(({ tenantId }) => tenantId))], platform };
}
