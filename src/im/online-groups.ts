import { Injectable } from '@nestjs/common';
import type { ConversationId } from '../common';
import { Bus } from '../realtime';
import type { Connection } from './connection';
import { Delivery } from './delivery';
import type { LiveMessage } from './live-message';
import { groupTopic, Publisher } from './publisher';

interface Group {
  readonly members: Set<Connection>;
  readonly unsubscribe: () => void;
  /** What waits while a large group is written to bit by bit. */
  turns: LiveMessage[] | undefined;
}

/** More sockets than this are written to in several turns of the event loop, so that others get theirs. */
const FAN_OUT_A_TURN = 250;

/** The groups that somebody connected here is in: a topic of the bus for each, whose messages go to all its sockets. */
@Injectable()
export class OnlineGroups {
  private readonly groups = new Map<ConversationId, Group>();

  constructor(
    private readonly bus: Bus,
    private readonly publisher: Publisher,
    private readonly delivery: Delivery,
  ) {
    delivery.whenStanding((connection, id, lastSeq, untilSeq) =>
      this.place(connection, id, lastSeq, untilSeq),
    );
  }

  /** By what the database said; not if that is older than what was told since: who was put out meanwhile stays out. */
  place(connection: Connection, id: ConversationId, lastSeq: number, untilSeq: number | null): void {
    if (lastSeq < (connection.memberships.get(id) ?? 0)) return;
    if (untilSeq === null) this.enter(connection, id);
    else this.leave(connection, id);
  }

  enter(connection: Connection, id: ConversationId): void {
    if (!connection.present) return;
    let group = this.groups.get(id);
    if (!group) {
      const unsubscribe = this.bus.subscribe<LiveMessage>(
        groupTopic(id),
        (text) => this.toGroup(id, text),
        (message) => this.deliver(id, message),
      );
      this.groups.set(id, (group = { members: new Set(), unsubscribe, turns: undefined }));
    }
    group.members.add(connection);
    connection.groups.add(id);
  }

  leave(connection: Connection, id: ConversationId): void {
    connection.groups.delete(id);
    const group = this.groups.get(id);
    if (!group?.members.delete(connection) || group.members.size > 0) return;
    group.unsubscribe();
    this.groups.delete(id);
  }

  private toGroup(id: ConversationId, text: string): void {
    if (text.startsWith('m')) this.deliver(id, this.publisher.decode(text));
    else this.delivery.event(this.groups.get(id)?.members ?? [], text);
  }

  private deliver(id: ConversationId, message: LiveMessage): void {
    const group = this.groups.get(id);
    if (!group) return;
    if (group.turns) group.turns.push(message);
    else if (group.members.size <= FAN_OUT_A_TURN) {
      for (const connection of group.members) this.delivery.deliver(connection, message);
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
          this.delivery.deliver(connection, message);
          written += 1;
          if (written % FAN_OUT_A_TURN === 0) await new Promise((resolve) => setImmediate(resolve));
        }
      }
    } finally {
      // In the same breath as the look for another one: what comes next begins anew.
      group.turns = undefined;
    }
  }
}
