import {
  Injectable,
  Logger,
  type BeforeApplicationShutdown,
  type OnApplicationBootstrap,
} from '@nestjs/common';
import { AssistantsRepository } from './assistants';
import { SecretBox, UnreadableSecretError, type SealedRow, type SealedRows, type TenantId } from './common';
import { Database, platformScope } from './database';
import { ModelProvidersRepository } from './model-services';
import { TenantsRepository } from './tenancy';
import { ToolSecrets } from './tools';
import { SecretOpener, WebhooksRepository } from './webhooks';

const TENANTS_AT_ONCE = 500;
const ROWS_AT_ONCE = 200;
const MAX_NAMED = 20;
const MAX_PASSES = 5;

/** What is bound into sealed values besides the row: none opens in another place. */
const CONTEXT = {
  provider: (id: string): string => id,
  webhook: (id: string): string => `webhook:${id}`,
  tool: (id: string): string => `tool:${id}`,
};

/** Secrets of webhooks, sealed in the installation's box. */
export function webhookSecretsOf(box: SecretBox): SecretOpener {
  return {
    seal: (secret, id) => box.seal(secret, CONTEXT.webhook(id)),
    open: (sealed, id) => {
      const secret = box.tryOpen(sealed, CONTEXT.webhook(id));
      // Told as the delivery's last error.
      if (secret === null) throw new UnreadableSecretError('its secret can not be read any more: replace it');
      return secret;
    },
    readable: (sealed, id) => box.tryOpen(sealed, CONTEXT.webhook(id)) !== null,
  };
}

/** Headers of tool sources, sealed in the installation's box. */
export function toolSecretsOf(box: SecretBox): ToolSecrets {
  return {
    seal: (text, id) => box.seal(text, CONTEXT.tool(id)),
    open: (sealed, id) => box.open(sealed, CONTEXT.tool(id)),
    readable: (sealed, id) => box.tryOpen(sealed, CONTEXT.tool(id)) !== null,
  };
}

export interface FoundRow extends SealedRow {
  readonly what: 'model provider' | 'assistant' | 'webhook';
}

export interface ResealReport {
  /** Rows whose values are under the key of now since. */
  readonly resealed: number;
  /** Rows that were so before. */
  readonly current: number;
  readonly unreadable: readonly FoundRow[];
}

interface Owner {
  readonly what: FoundRow['what'];
  readonly rows: SealedRows;
  readonly context: (id: string) => string;
}

/** Everything that is sealed under PARLEY_SECRET_KEY, whoever owns it: told of when it can not be read, sealed anew when the key changed. */
@Injectable()
export class SealedValues implements OnApplicationBootstrap, BeforeApplicationShutdown {
  private readonly logger = new Logger('secrets');
  private readonly owners: readonly Owner[];
  private looking: Promise<void> | undefined;
  private stopping = false;

  constructor(
    private readonly database: Database,
    private readonly box: SecretBox,
    private readonly tenants: TenantsRepository,
    providers: ModelProvidersRepository,
    assistants: AssistantsRepository,
    webhooks: WebhooksRepository,
  ) {
    this.owners = [
      { what: 'model provider', rows: providers, context: CONTEXT.provider },
      { what: 'assistant', rows: assistants, context: CONTEXT.tool },
      { what: 'webhook', rows: webhooks, context: CONTEXT.webhook },
    ];
  }

  /** Beside the start, which does not wait for it. */
  onApplicationBootstrap(): void {
    this.looking = this.warn().catch((error: Error) =>
      this.logger.debug(`secrets were not looked through: ${error.message}`),
    );
  }

  async beforeApplicationShutdown(): Promise<void> {
    this.stopping = true;
    await this.looking;
  }

  async unreadable(): Promise<FoundRow[]> {
    const found: FoundRow[] = [];
    for await (const { row, owner } of this.all())
      if (row.sealed.some((value) => this.box.tryOpen(value, owner.context(row.context)) === null))
        found.push({ ...row, what: owner.what });
    return found;
  }

  /**
   * While servers run: a value that somebody changes meanwhile stays as they left it. Goes over everything until it
   * finds nothing more to do, for they may have copied what was still under the key before.
   */
  async reseal(): Promise<ResealReport> {
    const first = await this.pass();
    let { resealed } = first;
    let last = first;
    for (let pass = 1; last.resealed > 0 && pass < MAX_PASSES; pass += 1) {
      last = await this.pass();
      resealed += last.resealed;
    }
    return { resealed, current: first.current, unreadable: last.unreadable };
  }

  private async pass(): Promise<ResealReport> {
    let resealed = 0;
    let current = 0;
    const unreadable: FoundRow[] = [];
    for await (const { row, owner } of this.all()) {
      if (row.sealed.every((value) => this.box.isCurrent(value))) {
        current += 1;
        continue;
      }
      const context = owner.context(row.context);
      const plain = row.sealed.map((value) => this.box.tryOpen(value, context));
      if (plain.some((value) => value === null)) unreadable.push({ ...row, what: owner.what });
      // What can be read of a row is sealed anew, whatever else is in it.
      const sealed = plain.map((value, at) =>
        value === null ? row.sealed[at]! : this.box.seal(value, context),
      );
      if (plain.every((value) => value === null)) continue;
      if (await owner.rows.reseal(row, sealed)) resealed += 1;
    }
    return { resealed, current, unreadable };
  }

  private async warn(): Promise<void> {
    const found = await this.unreadable();
    if (found.length === 0) return;
    this.logger.warn(
      `${found.length} secrets can not be read, for they were encrypted under another PARLEY_SECRET_KEY: ` +
        `enter them again, or set PARLEY_SECRET_KEY_PREVIOUS: ${named(found)}`,
    );
  }

  private async *all(): AsyncGenerator<{ row: SealedRow; owner: Owner }> {
    for await (const tenants of this.tenantsByPage())
      for (const owner of this.owners) {
        // The platform's own rows come with the first page, and are not told again with the others.
        for await (const row of this.rowsOf(owner, tenants.ids))
          if (row.tenantId !== null || tenants.first) yield { row, owner };
      }
  }

  private async *tenantsByPage(): AsyncGenerator<{ ids: TenantId[]; first: boolean }> {
    for (let cursor: string | undefined; !this.stopping;) {
      const page = await this.database.transaction(platformScope(), (tx) =>
        this.tenants.list(tx, { limit: TENANTS_AT_ONCE, ...(cursor !== undefined && { cursor }) }),
      );
      yield { ids: page.data.map(({ id }) => id), first: cursor === undefined };
      if (!page.nextCursor) return;
      cursor = page.nextCursor;
    }
  }

  private async *rowsOf({ rows }: Owner, tenants: readonly TenantId[]): AsyncGenerator<SealedRow> {
    for (let after = '0'; !this.stopping;) {
      const page = await rows.sealedRows(tenants, after, ROWS_AT_ONCE);
      yield* page;
      if (page.length < ROWS_AT_ONCE) return;
      after = page.at(-1)!.id;
    }
  }
}

/** `model provider "Main" (7312) of tenant 7311; …` */
export function named(rows: readonly FoundRow[]): string {
  const names = rows
    .slice(0, MAX_NAMED)
    .map(
      ({ what, name, id, tenantId }) =>
        `${what} ${JSON.stringify(name)} (${id}) of ${tenantId === null ? 'the platform' : `tenant ${tenantId}`}`,
    );
  const more = rows.length - names.length;
  return names.join('; ') + (more > 0 ? `; and ${more} more` : '');
}
