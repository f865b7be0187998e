import { Injectable } from '@nestjs/common';
import { DevicesRepository, type Standing, type StandingsPage, type StandingsPlace } from '../messages';
import type { Connection } from './connection';
import { Delivery } from './delivery';
import { DeviceMarks } from './device-marks';
import { LaterPages } from './later-pages';
import { OnlineGroups } from './online-groups';
import { RecentConversations } from './recent-conversations';

/** That `ready` tells of. */
const RECENT_CONVERSATIONS = 500;

export interface KnownStandings {
  /** Newest first. */
  readonly recent: readonly Standing[];
  /** Something waits for the device, in one of these or in an older one. */
  readonly resumed: boolean;
}

/** Finds where a connection that has just come is to go on, page by page of its user's conversations. */
@Injectable()
export class Arrivals {
  private readonly paging: LaterPages<StandingsPlace, StandingsPage>;

  constructor(
    private readonly devices: DevicesRepository,
    private readonly delivery: Delivery,
    private readonly groups: OnlineGroups,
    private readonly marks: DeviceMarks,
  ) {
    this.paging = new LaterPages((places) => this.devices.standings(places));
  }

  /** In every conversation in which something waits for the device, and in the most recent ones. Null: it has gone. */
  async place(connection: Connection, first: StandingsPage): Promise<KnownStandings | null> {
    const { tenantId, userId, client } = connection;
    const recent = new RecentConversations(RECENT_CONVERSATIONS);
    let resumed = false;
    for (let page = first; ;) {
      for (const standing of page.standings) {
        const target = standing.untilSeq ?? standing.lastSeq;
        const lacks = target > Math.max(standing.mark, this.marks.pending(connection, standing.id));
        if (lacks) this.begin(connection, standing);
        resumed ||= lacks;
      }
      recent.add(page.standings.filter(({ untilSeq, mark }) => untilSeq === null || untilSeq > mark));
      const { next, fresh } = page;
      if (next === null) {
        const newest = recent.newestFirst();
        for (const standing of newest) this.begin(connection, standing);
        return { recent: newest, resumed };
      }
      const place = { tenantId, userId, client, after: next, fresh };
      const further = await this.delivery.retrying(connection, () => this.paging.read(place));
      if (!further) return null;
      page = further;
    }
  }

  private begin(connection: Connection, standing: Standing): void {
    const { id, kind, lastSeq, untilSeq } = standing;
    const target = untilSeq ?? lastSeq;
    const from = this.delivery.begin(connection, id, standing);
    if (target > from) connection.behind.set(id, Math.max(target, connection.behind.get(id) ?? 0));
    if (kind === 'group') this.groups.place(connection, id, lastSeq, untilSeq);
  }
}
