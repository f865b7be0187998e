import { resolve } from 'node:path';
import { refuseBlanks, VARIABLES, type Environment, type VariableName } from './variables';

/** A start-up mistake of the operator: one clear line, exit code 1, no stack. */
export class ConfigError extends Error {}

/** What the server adds to a frame on its way to its receivers, at most. */
const ADDED_BYTES = 1_024;

/** The validated environment, frozen, and what follows from it. */
export class Config {
  private constructor(readonly env: Environment) {
    Object.freeze(this);
  }

  /** Reads every variable of the table; an empty one counts as absent. Throws ConfigError naming the variable, never its value. */
  static load(source: Readonly<Record<string, string | undefined>> = process.env): Config {
    const values: Record<string, unknown> = {};
    for (const name of Object.keys(VARIABLES) as VariableName[]) {
      const raw = source[name] || undefined;
      try {
        if (raw !== undefined) refuseBlanks(raw);
        values[name] = VARIABLES[name].parse(raw);
      } catch (error) {
        throw new ConfigError(`${name} ${(error as Error).message}`);
      }
    }
    const env = Object.freeze(values) as Environment;
    if (env.NODE_ENV === 'production' && !env.PARLEY_SECRET_KEY) {
      throw new ConfigError('PARLEY_SECRET_KEY is required when NODE_ENV=production (32 characters or more)');
    }
    if (!env.S3_ACCESS_KEY_ID !== !env.S3_SECRET_ACCESS_KEY) {
      throw new ConfigError('S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY are needed together, or neither');
    }
    if (env.IM_MAX_FRAME_BYTES + ADDED_BYTES > env.IM_MAX_BUFFERED_BYTES) {
      throw new ConfigError(
        `IM_MAX_BUFFERED_BYTES must be IM_MAX_FRAME_BYTES and ${ADDED_BYTES} more at least: what a client may send its receivers must be able to get`,
      );
    }
    if (env.PROXY_PROTOCOL === 'on' && env.TRUST_PROXY.length === 0) {
      throw new ConfigError('PROXY_PROTOCOL is on, but TRUST_PROXY names nobody who may send such a header');
    }
    return new Config(env);
  }

  get production(): boolean {
    return this.env.NODE_ENV === 'production';
  }

  /** Demo tenant, printed key, open loopback: never in production. */
  get quickstart(): boolean {
    return !this.production;
  }

  /** Whether a start has anything to keep in {@link dataDir}. */
  get usesDataDir(): boolean {
    return this.quickstart || this.env.DATABASE_URL === undefined;
  }

  get dataDir(): string {
    return resolve(this.env.PARLEY_DATA_DIR);
  }

  get privateProviderAddresses(): boolean {
    const setting = this.env.PRIVATE_PROVIDER_ADDRESSES;
    return setting === 'auto' ? !this.production : setting === 'allow';
  }

  /** `loopback`: this machine itself and no other private address. */
  get privateWebhookAddresses(): 'any' | 'loopback' | 'none' {
    const setting = this.env.PRIVATE_WEBHOOK_ADDRESSES;
    if (setting === 'allow') return 'any';
    return setting === 'refuse' || this.production ? 'none' : 'loopback';
  }
}
