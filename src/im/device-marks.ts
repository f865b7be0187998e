import { Injectable, Logger, type OnApplicationBootstrap } from '@nestjs/common';
import { Periodic, type ConversationId } from '../common';
import { DevicesRepository, type DeviceMark } from '../messages';
import type { Connection } from './connection';

const FLUSH_MS = 500;
const MARKS_A_STATEMENT = 1_000;

/** How far each device is known to have read, gathered for a moment before it is stored: losing it costs a repeat, nothing else. */
@Injectable()
export class DeviceMarks implements OnApplicationBootstrap {
  private readonly logger = new Logger(DeviceMarks.name);
  private dirty = new Map<string, DeviceMark>();
  private flushing: Periodic | undefined;

  constructor(private readonly devices: DevicesRepository) {}

  onApplicationBootstrap(): void {
    const failed = ({ message }: Error): void =>
      this.logger.debug(`marks not stored, will be tried again: ${message}`);
    this.flushing = new Periodic(FLUSH_MS, () => this.store(), failed);
  }

  save(connection: Connection, marks: ReadonlyMap<ConversationId, number>): void {
    for (const [conversationId, seq] of marks) this.saveOne(connection, conversationId, seq);
  }

  saveOne(connection: Connection, conversationId: ConversationId, seq: number): void {
    const key = keyOf(connection, conversationId);
    if ((this.dirty.get(key)?.seq ?? -1) >= seq) return;
    const { tenantId, userId, client } = connection;
    this.dirty.set(key, { tenantId, userId, client, conversationId, seq });
  }

  /** What is not stored yet, or 0. */
  pending(connection: Connection, id: ConversationId): number {
    return this.dirty.get(keyOf(connection, id))?.seq ?? 0;
  }

  /** The last ones, when no more will come. */
  async stop(): Promise<void> {
    await this.flushing?.stop();
    await this.flushing?.run();
  }

  private async store(): Promise<void> {
    const all = [...this.dirty];
    for (let from = 0; from < all.length; from += MARKS_A_STATEMENT) {
      const part = all.slice(from, from + MARKS_A_STATEMENT);
      await this.devices.saveMarks(part.map(([, mark]) => mark));
      for (const [key, mark] of part) if (this.dirty.get(key) === mark) this.dirty.delete(key);
    }
  }
}

function keyOf({ tenantId, userId, client }: Connection, id: ConversationId): string {
  return `${id}\n${tenantId}\n${client}\n${userId}`;
}
