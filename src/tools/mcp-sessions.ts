import { McpSource, type McpTarget } from './mcp-source';
import type { ToolNetwork } from './tool-network';

interface Kept {
  readonly source: McpSource;
  uses: number;
  idle: NodeJS.Timeout | undefined;
}

/** A kept session, lent until it is given back. */
export interface McpLease {
  readonly source: McpSource;
  release(): void;
}

/** How long a session that nobody uses is kept. */
export const MCP_IDLE_MS = 60_000;
/** The one that has been idle for longest goes first; one that is in use never does. */
const MAX_KEPT = 500;

/**
 * Sessions with MCP servers, one for each source in this process, shared by the replies that use it at the same time:
 * opening one for every reply costs a second with some servers.
 */
export class McpSessions {
  /** By last use, the oldest first. */
  private readonly kept = new Map<string, Kept>();
  private closed = false;

  constructor(
    private readonly network: ToolNetwork,
    private readonly idleMs = MCP_IDLE_MS,
  ) {}

  /** `key` names the source with all that its session depends on. */
  lease(key: string, target: McpTarget): McpLease {
    const kept = this.kept.get(key) ?? {
      source: new McpSource(target, this.network),
      uses: 0,
      idle: undefined,
    };
    clearTimeout(kept.idle);
    kept.uses += 1;
    this.kept.delete(key);
    this.kept.set(key, kept);
    let released = false;
    return {
      source: kept.source,
      release: () => {
        if (released) return;
        released = true;
        kept.uses -= 1;
        if (kept.uses === 0) this.rest(key, kept);
      },
    };
  }

  get size(): number {
    return this.kept.size;
  }

  /** Ends those that nobody uses, and each of the others when it is given back. */
  async close(): Promise<void> {
    this.closed = true;
    const idle = [...this.kept].filter(([, { uses }]) => uses === 0);
    await Promise.all(idle.map(([key, kept]) => this.end(key, kept)));
  }

  private rest(key: string, kept: Kept): void {
    if (this.closed) return void this.end(key, kept);
    kept.idle = setTimeout(() => void this.end(key, kept), this.idleMs).unref();
    if (this.kept.size <= MAX_KEPT) return;
    const oldest = [...this.kept].find(([, { uses }]) => uses === 0);
    if (oldest) void this.end(...oldest);
  }

  private async end(key: string, kept: Kept): Promise<void> {
    clearTimeout(kept.idle);
    if (this.kept.get(key) === kept) this.kept.delete(key);
    await kept.source.close();
  }
}
