import { Injectable } from '@nestjs/common';

/**
 * The quickstart's tenant, where there is one: clients on this very machine may be let into it without a credential
 * (protocols/agent-channel.md, "Connecting"). Only the quickstart opens it, and that runs in development alone.
 */
@Injectable()
export class DemoTenant {
  private key: string | undefined;

  open(apiKey: string): void {
    this.key = apiKey;
  }

  get apiKey(): string | undefined {
    return this.key;
  }
}
