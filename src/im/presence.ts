import { Injectable } from '@nestjs/common';
import { DevicesRepository } from '../messages';
import { Bus } from '../realtime';
import type { Connection } from './connection';
import { Delivery } from './delivery';
import { presenceFrame, presenceTopic, userKey } from './publisher';

/** Who watches whose comings and goings (protocols/im.md, `watch`). */
@Injectable()
export class Presence {
  private readonly watchers = new Map<string, { connections: Set<Connection>; unsubscribe: () => void }>();

  constructor(
    private readonly bus: Bus,
    private readonly devices: DevicesRepository,
    private readonly delivery: Delivery,
  ) {}

  /** `presence` frames about these users from now on, and one about each now. */
  async watch(connection: Connection, userIds: readonly string[]): Promise<void> {
    this.forget(connection);
    connection.watching = new Set(userIds.map((userId) => userKey(connection.tenantId, userId)));
    for (const key of connection.watching) {
      let watcher = this.watchers.get(key);
      if (!watcher) {
        const made = new Set<Connection>();
        const unsubscribe = this.bus.subscribe(presenceTopic(key), (text) => this.delivery.event(made, text));
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

  /** It watches nobody any more. */
  forget(connection: Connection): void {
    for (const watched of connection.watching ?? []) this.unwatch(connection, watched);
    connection.watching = undefined;
  }

  private unwatch(connection: Connection, key: string): void {
    const watcher = this.watchers.get(key);
    if (!watcher?.connections.delete(connection) || watcher.connections.size > 0) return;
    watcher.unsubscribe();
    this.watchers.delete(key);
  }
}
