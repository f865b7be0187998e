import {
  Injectable,
  Logger,
  type BeforeApplicationShutdown,
  type OnApplicationBootstrap,
} from '@nestjs/common';
import { Periodic, type TenantId } from '../common';
import { Config } from '../config';
import { Database, platformScope, type Statement } from '../database';
import { DevicesRepository } from './devices.repository';

const EVERY_MS = 3_600_000;
const DAY_MS = 86_400_000;
const DEVICES_A_PAGE = 10;

/** Forgets what devices have read that were not seen for IM_DEVICE_RETENTION_DAYS, a few devices at a time. */
@Injectable()
export class DeviceKeeper implements OnApplicationBootstrap, BeforeApplicationShutdown {
  private readonly logger = new Logger(DeviceKeeper.name);
  private keeping: Periodic | undefined;
  private stopping = false;

  constructor(
    private readonly config: Config,
    private readonly database: Database,
    private readonly devices: DevicesRepository,
  ) {}

  onApplicationBootstrap(): void {
    this.keeping = new Periodic(
      EVERY_MS,
      () => this.keep(),
      ({ message }) => this.logger.warn(`devices not forgotten, will be tried again: ${message}`),
    );
  }

  async beforeApplicationShutdown(): Promise<void> {
    this.stopping = true;
    await this.keeping?.stop();
  }

  /** Every tenant's; another process that is at it takes other devices. */
  async keep(now = Date.now()): Promise<void> {
    const days = this.config.env.IM_DEVICE_RETENTION_DAYS;
    if (days === 0) return;
    const before = new Date(now - days * DAY_MS);
    for (const tenantId of await this.database.one(platformScope(), allTenants)) {
      for (let forgotten = DEVICES_A_PAGE; forgotten === DEVICES_A_PAGE && !this.stopping;)
        forgotten = await this.devices.forgetUnseen(tenantId, before, DEVICES_A_PAGE);
    }
  }
}

const allTenants: Statement<TenantId[]> = {
  name: 'devices-tenants',
  text: 'select id from tenants order by id',
  values: [],
  map: (rows) => rows.map((row) => row.id as TenantId),
};
