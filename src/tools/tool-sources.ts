import { Injectable, type BeforeApplicationShutdown } from '@nestjs/common';
import { LRUCache } from 'lru-cache';
import { UnreadableSecretError } from '../common';
import { shownUrl } from '../outbound';
import { redactionOf } from './headers';
import { storable } from './json';
import { McpSessions } from './mcp-sessions';
import type { McpTools } from './mcp-source';
import { operationsOf, serverOf, type Operation } from './openapi-document';
import { DocumentError } from './openapi-schema';
import { OpenApiSource } from './openapi-source';
import { checkedSources, endpointOf } from './source-checks';
import type { OpenSource } from './tool';
import { inPlainWords, ToolFailure } from './tool-failure';
import { ToolNetwork } from './tool-network';
import { ToolSecrets } from './tool-secrets';
import type { StoredMcpSource, StoredOpenApiSource, StoredToolSource, ToolSource } from './tool-source';
import { OpenToolbox, unlessAborted, type NamedSource, type SourceFailure, type Toolbox } from './toolbox';

const OPEN_MS = 5_000;
const LISTS_MS = 60_000;
const MAX_LISTS = 1_000;
const MAX_LISTS_CHARS = 32_000_000;

/** The way from what an operator wrote to tools that can be called. */
@Injectable()
export class ToolSources implements BeforeApplicationShutdown {
  /** Compiled once for as long as somebody holds the stored source. */
  private readonly operations = new WeakMap<StoredOpenApiSource, readonly Operation[]>();
  private readonly lists = new LRUCache<string, McpTools>({
    max: MAX_LISTS,
    maxSize: MAX_LISTS_CHARS,
    sizeCalculation: (list) => JSON.stringify(list).length,
    ttl: LISTS_MS,
  });

  private readonly sessions: McpSessions;

  constructor(
    private readonly secrets: ToolSecrets,
    private readonly network: ToolNetwork,
  ) {
    this.sessions = new McpSessions(network);
  }

  async beforeApplicationShutdown(): Promise<void> {
    await this.sessions.close();
  }

  /** The sources, if they are well-formed and may be called. BAD_INPUT naming the field: `tools.0.url: …`. */
  async check(sources: unknown): Promise<ToolSource[]> {
    const checked = checkedSources(sources);
    for (const [index, source] of checked.entries()) {
      const { field, url } = endpointOf(index, source);
      await this.network.check(field, url);
    }
    return checked;
  }

  /** As they are stored. `id` is bound in: they open under the same one only. */
  seal(sources: readonly ToolSource[], id: string): StoredToolSource[] {
    return sources.map(({ headers, ...source }) => ({
      ...source,
      ...(headers && { headers: this.secrets.seal(JSON.stringify(headers), id) }),
    }));
  }

  /**
   * Stored sources as an operator may see them: `headers` is `true` where there are any, never their names or values,
   * and `headersStatus` says whether they can still be read; a URL is without the values of its query. `brief`, for
   * lists and logs: `spec` is `true`, too.
   */
  shown(stored: readonly unknown[], id: string, detail: 'whole' | 'brief'): unknown[] {
    return (stored as readonly StoredToolSource[]).map(({ headers, ...source }) => ({
      ...source,
      ...('url' in source && { url: shownUrl(source.url) }),
      ...(headers !== undefined && {
        headers: true,
        headersStatus: this.secrets.readable(headers, id) ? 'ok' : 'enter-again',
      }),
      ...('spec' in source && detail === 'brief' && { spec: true }),
    }));
  }

  /**
   * Opens all sources side by side, within 5 s. Those that fail are among the toolbox's failures. Rejects with the
   * signal's reason when that is aborted, and with nothing else. The toolbox has to be closed.
   */
  async open(stored: readonly StoredToolSource[], id: string, signal: AbortSignal): Promise<Toolbox> {
    signal.throwIfAborted();
    const limit = AbortSignal.any([signal, AbortSignal.timeout(OPEN_MS)]);
    const outcomes = await Promise.all(stored.map((source) => this.openOne(source, id, limit)));
    const opened = outcomes.filter((outcome) => 'name' in outcome);
    const toolbox = new OpenToolbox(
      opened,
      outcomes.filter((outcome) => 'message' in outcome),
    );
    if (signal.aborted) {
      void toolbox.close();
      throw signal.reason;
    }
    return toolbox;
  }

  private async openOne(
    stored: StoredToolSource,
    id: string,
    limit: AbortSignal,
  ): Promise<NamedSource | SourceFailure> {
    let headers: Record<string, string> | undefined;
    try {
      headers = this.unseal(stored.headers, id);
      const source =
        stored.type === 'mcp'
          ? await this.openMcp(stored, headers, id, limit)
          : this.openOpenApi(stored, headers);
      return { name: stored.name, headers, source };
    } catch (error) {
      const message = limit.aborted ? `it did not answer within ${OPEN_MS / 1_000} s` : inPlainWords(error);
      return { source: stored.name, message: storable(redactionOf(headers).of(message)) };
    }
  }

  private unseal(sealed: string | undefined, id: string): Record<string, string> | undefined {
    if (sealed === undefined) return undefined;
    try {
      return JSON.parse(this.secrets.open(sealed, id)) as Record<string, string>;
    } catch (error) {
      if (!(error instanceof UnreadableSecretError)) throw error;
      throw new ToolFailure('its headers can not be unsealed; enter them again');
    }
  }

  /** A known list spares the connection until a tool is called. */
  private async openMcp(
    stored: StoredMcpSource,
    headers: Record<string, string> | undefined,
    id: string,
    limit: AbortSignal,
  ): Promise<OpenSource> {
    const key = JSON.stringify([id, stored.url, stored.headers, stored.allow]);
    const lease = this.sessions.lease(key, { url: stored.url, headers, allow: stored.allow });
    try {
      const known = this.lists.get(key);
      const list = known ?? (await unlessAborted(lease.source.list(limit), limit));
      if (!known) this.lists.set(key, list);
      return {
        ...list,
        call: (tool, args, signal) => lease.source.call(tool, args, signal),
        close: async () => lease.release(),
      };
    } catch (error) {
      lease.release();
      throw error;
    }
  }

  private openOpenApi(
    stored: StoredOpenApiSource,
    headers: Record<string, string> | undefined,
  ): OpenApiSource {
    const baseUrl = stored.baseUrl ?? serverOf(stored.spec);
    if (baseUrl === undefined) throw new ToolFailure('its document names no server');
    return new OpenApiSource(this.operationsOf(stored), baseUrl, headers, this.network);
  }

  private operationsOf(stored: StoredOpenApiSource): readonly Operation[] {
    const known = this.operations.get(stored);
    if (known) return known;
    try {
      const operations = operationsOf(stored.spec, stored.allow);
      this.operations.set(stored, operations);
      return operations;
    } catch (error) {
      throw error instanceof DocumentError ? new ToolFailure('its document is not valid') : error;
    }
  }
}
