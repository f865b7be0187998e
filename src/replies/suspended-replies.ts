import { Injectable, type OnApplicationBootstrap } from '@nestjs/common';
import { AccessWatch } from '../tenancy';
import { LiveReplies } from './live-replies';

/** A reply is its tenant's and outlives the key that began it, but not its tenant's suspension: it ends as `stopped`. */
@Injectable()
export class SuspendedReplies implements OnApplicationBootstrap {
  constructor(
    private readonly access: AccessWatch,
    private readonly live: LiveReplies,
  ) {}

  onApplicationBootstrap(): void {
    this.access.watch(
      () => ({ tenants: new Set([...this.live].map(({ settings }) => settings.tenantId)), keys: [] }),
      (lost) => {
        if (lost.kind !== 'suspended') return;
        for (const reply of this.live) if (reply.settings.tenantId === lost.tenantId) reply.abort('stopped');
      },
    );
  }
}
