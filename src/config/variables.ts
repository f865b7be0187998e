import { isAddressOrRange } from '../common';

/**
 * The environment, variable by variable: the only reader of process.env is `loadConfig` beside this file.
 * `.env.example` is kept equal to this table by a test.
 */
export interface Variable<T> {
  readonly describe: string;
  /** As .env.example shows it; empty when there is no default. */
  readonly example: string;
  /** Throws an Error whose message completes "NAME …", never repeating the value. */
  readonly parse: (raw: string | undefined) => T;
}

/**
 * What no value may hold, whatever its variable: a blank at its ends or a control character is never meant (a line end
 * of a file, a quote that was not closed), and would make another key, path or host of it.
 */
export function refuseBlanks(raw: string): void {
  if (/^\s|\s$/.test(raw)) throw new Error('must not begin or end with a blank');
  // eslint-disable-next-line no-control-regex
  if (/[\u0000-\u001f\u007f]/.test(raw)) throw new Error('must not hold a control character');
}

const text = (describe: string, fallback?: string): Variable<string | undefined> => ({
  describe,
  example: fallback ?? '',
  parse: (raw) => raw ?? fallback,
});

const requiredText = (describe: string, fallback: string): Variable<string> => ({
  describe,
  example: fallback,
  parse: (raw) => raw ?? fallback,
});

const integer = (describe: string, fallback: number, min: number, max: number): Variable<number> => ({
  describe,
  example: String(fallback),
  parse: (raw) => {
    // Decimal digits alone: what else `Number` reads (0x2600, 1e3, +5, 007) is read otherwise elsewhere.
    const value = raw === undefined ? fallback : /^(0|[1-9]\d{0,15})$/.test(raw) ? Number(raw) : NaN;
    if (!Number.isSafeInteger(value) || value < min || value > max) {
      throw new Error(`must be a whole number from ${min} to ${max}, in decimal digits`);
    }
    return value;
  },
});

const choice = <T extends string>(describe: string, values: readonly T[], fallback: T): Variable<T> => ({
  describe,
  example: fallback,
  parse: (raw) => {
    const value = (raw ?? fallback) as T;
    if (!values.includes(value)) throw new Error(`must be one of ${values.join(', ')}`);
    return value;
  },
});

const url = (describe: string, protocols: readonly string[]): Variable<string | undefined> => ({
  describe,
  example: '',
  parse: (raw) => {
    if (raw === undefined) return undefined;
    // `new URL` also takes http:host, http:/host and a blank anywhere, and mends them in silence.
    const begins = protocols.some((protocol) => raw.startsWith(`${protocol}//`));
    if (!begins || /\s/.test(raw) || !URL.canParse(raw)) {
      throw new Error(`must be a URL that begins with ${protocols.map((p) => `${p}//`).join(' or ')}`);
    }
    return raw;
  },
});

const secret = (describe: string, minLength: number): Variable<string | undefined> => ({
  describe,
  example: '',
  parse: (raw) => {
    if (raw !== undefined && raw.replace(/\s/g, '').length < minLength)
      throw new Error(`must have at least ${minLength} characters that are not blanks`);
    return raw;
  },
});

/** A list with commas between its addresses and ranges, in the form that BlockList takes. */
const addresses = (describe: string): Variable<readonly string[]> => ({
  describe,
  example: '',
  parse: (raw) => {
    const entries = raw?.split(',').map((entry) => entry.trim()) ?? [];
    if (!entries.every(isAddressOrRange))
      throw new Error('must be IP addresses or ranges with commas between them, as in 10.0.0.7,fd00::/8');
    return Object.freeze(entries);
  },
});

export const VARIABLES = {
  NODE_ENV: choice(
    'production turns the quickstart off and asks for PARLEY_SECRET_KEY',
    ['development', 'test', 'production'],
    'development',
  ),
  HOST: requiredText('address to listen on; 0.0.0.0 for every interface', '127.0.0.1'),
  PORT: integer('port for HTTP, SSE and WebSocket; 0 picks a free one', 9527, 0, 65_535),
  TRUST_PROXY: addresses(
    'addresses or ranges of the proxies in front, with commas; only what these say of a client is believed',
  ),
  PROXY_PROTOCOL: choice(
    'on: connections from TRUST_PROXY begin with a PROXY header, version 1 or 2',
    ['off', 'on'],
    'off',
  ),
  DATABASE_URL: url(
    'postgres://user:password@host:5432/database; without it an embedded PostgreSQL is started',
    ['postgres:', 'postgresql:'],
  ),
  DATABASE_POOL_SIZE: integer('connections to Postgres a process', 10, 2, 500),
  PARLEY_DATA_DIR: requiredText(
    'where the embedded PostgreSQL and the quickstart keep their files',
    '.parley',
  ),
  PARLEY_SECRET_KEY: secret('signs tokens and encrypts provider credentials; required in production', 32),
  PARLEY_SECRET_KEY_PREVIOUS: secret(
    'the key before, or the one to come: reads what it encrypted and signed, writes nothing',
    32,
  ),
  PARLEY_ROOT_KEY: secret("the platform operator's key for /api/admin", 32),
  OPENAI_API_KEY: text('quickstart: the provider key that the assistant `main` uses'),
  OPENAI_BASE_URL: url('quickstart: an OpenAI-compatible endpoint, e.g. http://localhost:11434/v1', [
    'http:',
    'https:',
  ]),
  OPENAI_MODEL: text('quickstart: the model to ask for'),
  LOG_LEVEL: choice(
    'how much is logged',
    ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'],
    'info',
  ),
  BODY_LIMIT_BYTES: integer('largest request body', 1_048_576, 1_024, 104_857_600),
  BODY_MAX_MEMBERS: integer('members of all objects of a JSON body or frame', 50_000, 100, 10_000_000),
  BODY_MAX_OBJECT_MEMBERS: integer(
    'members of one object of a JSON body or frame, and fields of a form',
    5_000,
    100,
    10_000_000,
  ),
  BODY_MAX_ELEMENTS: integer('elements of all arrays of a JSON body or frame', 250_000, 100, 100_000_000),
  BODY_MAX_DEPTH: integer('levels of objects and arrays of a JSON body or frame', 100, 10, 1_000),
  BODY_SECONDS: integer(
    'a body that is not there after so long has to keep to BODY_MIN_BYTES_PER_SECOND',
    30,
    1,
    3_600,
  ),
  BODY_MIN_BYTES_PER_SECOND: integer(
    'a body that comes more slowly than this after BODY_SECONDS is ended',
    16_384,
    1,
    1_073_741_824,
  ),
  STRANGER_BODY_BYTES: integer(
    'largest body of a path that asks for no key, such as /chat/oauth/token',
    16_384,
    1_024,
    104_857_600,
  ),
  STRANGER_BODY_SECONDS: integer(
    'a body without a key that is not there after so long is ended',
    15,
    1,
    3_600,
  ),
  STRANGER_BODIES: integer('bodies without a key under way at once, a process', 1_000, 1, 1_000_000),
  STRANGER_BODIES_PER_ADDRESS: integer('the same from one address', 100, 1, 1_000_000),
  STRANGER_CONNECTIONS: integer(
    'connections that no key or token has been seen on yet, HTTP and WebSocket, a process',
    5_000,
    1,
    10_000_000,
  ),
  STRANGER_CONNECTIONS_PER_ADDRESS: integer('the same from one address', 1_000, 1, 10_000_000),
  TENANT_MAX_REQUESTS: integer(
    'HTTP requests of one tenant under way in a process, streams that have begun apart; more are refused with 429',
    512,
    1,
    1_000_000,
  ),
  TENANT_REQUESTS_AT_WORK: integer(
    'of them, those worked on at once while other tenants are there, too; the others wait their turn',
    2,
    1,
    1_000_000,
  ),
  TENANT_LARGE_BODY_BYTES_PER_SECOND: integer(
    'of bodies over 16 KiB, what one tenant may send a second while other tenants are there, too, each counted once for every 256 KiB of it; more is refused with 429',
    4_194_304,
    16_384,
    10_737_418_240,
  ),
  MAX_CONCURRENT_REPLIES: integer(
    'replies, completions and generations of all tenants that a process writes at once; more are refused with 503',
    5_000,
    1,
    1_000_000,
  ),
  TENANT_MAX_REPLIES: integer(
    'of them, those of one tenant, so that others find some; more are refused with 429. 0: half of MAX_CONCURRENT_REPLIES, rounded up',
    0,
    0,
    1_000_000,
  ),
  MAX_REPLY_CHARS: integer(
    'longest reply, UTF-16 units; a longer one ends as failed',
    1_000_000,
    1_000,
    10_000_000,
  ),
  STREAM_LOG_RETENTION_MS: integer(
    'how long a finished reply can be re-attached piece by piece',
    600_000,
    1_000,
    86_400_000,
  ),
  STREAM_LOG_MAX_BYTES: integer(
    'memory for finished replies; the oldest go first',
    268_435_456,
    1_048_576,
    17_179_869_184,
  ),
  STREAM_MAX_BUFFERED_BYTES: integer(
    'what may wait for a slow client of an HTTP stream; the model is read no further while half of it does',
    1_048_576,
    65_536,
    1_073_741_824,
  ),
  STREAM_SLOW_READER_SECONDS: integer(
    'an HTTP client that reads nothing of what waits for it for so long is given up',
    60,
    1,
    3_600,
  ),
  DRAIN_TIMEOUT_MS: integer('how long a stopping server lets replies finish', 10_000, 0, 600_000),
  MESSAGE_RETENTION_DAYS: integer(
    'messages of conversations older than this are dropped, month by month; 0 keeps them for ever',
    0,
    0,
    36_500,
  ),
  IM_TOKEN_TTL_SECONDS: integer('how long a user token lives', 86_400, 60, 2_592_000),
  IM_TOKENS_PER_MINUTE: integer('user tokens a key may ask for in a minute', 600, 1, 10_000_000),
  IM_MAX_FRAME_BYTES: integer('largest frame a client may send', 65_536, 1_024, 16_777_216),
  IM_FRAMES_PER_SECOND: integer('frames a second a connection may send for long', 50, 1, 1_000_000),
  IM_FRAMES_BURST: integer('frames a connection may send at once', 200, 1, 1_000_000),
  IM_REPLAY_BYTES_PER_SECOND: integer(
    'bytes a second that a user may have sent again over the sockets for long: resume, sync',
    1_048_576,
    1_024,
    1_073_741_824,
  ),
  IM_REPLAY_BURST_BYTES: integer(
    'bytes that a user may have sent again over the sockets at once',
    16_777_216,
    1_024,
    1_073_741_824,
  ),
  CHANNEL_MAX_FRAME_BYTES: integer(
    'largest frame a client of the agent channel may send; 32,000 characters of any script fit',
    262_144,
    1_024,
    16_777_216,
  ),
  CHANNEL_CONNECTIONS_PER_USER: integer(
    'open connections of one user with tokens on the agent channel, a process; those that vanished count until they are found out',
    100,
    1,
    1_000_000,
  ),
  IM_CONNECTIONS_PER_USER: integer('open connections of one user', 8, 1, 1_000_000),
  IM_CONNECTIONS_PER_TENANT: integer('open connections of one tenant, a process', 100_000, 1, 10_000_000),
  IM_CONNECTIONS_PER_ADDRESS: integer('open connections from one address, a process', 1_000, 1, 10_000_000),
  IM_MAX_GROUP_MEMBERS: integer('members of a group', 10_000, 2, 1_000_000),
  IM_BROADCAST_RECIPIENTS: integer('users that a broadcast may name', 10_000, 1, 100_000),
  IM_BROADCASTS_PER_TENANT: integer('broadcasts of one tenant that are under way', 10, 1, 1_000),
  IM_RECALL_SECONDS: integer('how long a message may be recalled by its sender', 120, 0, 31_536_000),
  IM_HEARTBEAT_SECONDS: integer('a connection that is silent for two of these is dropped', 25, 1, 3_600),
  IM_MAX_BUFFERED_BYTES: integer(
    'what may wait for a slow client; past it the connection is closed, to come back and resume',
    1_048_576,
    262_144,
    1_073_741_824,
  ),
  IM_SLOW_READER_SECONDS: integer(
    'a client that reads nothing of what waits for it for so long is closed, to come back and resume',
    15,
    1,
    3_600,
  ),
  IM_DEVICE_RETENTION_DAYS: integer(
    'marks of a device that was not seen for so many days go; 0 keeps them for ever',
    90,
    0,
    36_500,
  ),
  S3_BUCKET: text('where generated images are kept; without it PostgreSQL keeps them'),
  S3_ENDPOINT: url("an S3-compatible server; without it Amazon's own", ['http:', 'https:']),
  S3_REGION: requiredText("the bucket's region", 'us-east-1'),
  S3_ACCESS_KEY_ID: text("without it what the AWS SDK finds: its variables, files, the machine's role"),
  S3_SECRET_ACCESS_KEY: secret('of that access key', 1),
  S3_FORCE_PATH_STYLE: choice(
    'true: the bucket is in the path and not in the host name, as most servers but Amazon want it',
    ['true', 'false'],
    'false',
  ),
  PRIVATE_PROVIDER_ADDRESSES: choice(
    "auto: a tenant's own providers may point at private addresses except in production",
    ['auto', 'allow', 'refuse'],
    'auto',
  ),
  PRIVATE_WEBHOOK_ADDRESSES: choice(
    'auto: webhooks may lead to no private address; outside production to this machine itself',
    ['auto', 'allow', 'refuse'],
    'auto',
  ),
  PRIVATE_ADDRESSES_ALLOWED: addresses(
    "private addresses and ranges that tenants' providers, tools and webhooks may lead to all the same, e.g. 10.0.0.5,10.1.0.0/16",
  ),
  WEBHOOK_ATTEMPTS: integer('deliveries a process tries at once', 1_000, 1, 100_000),
  WEBHOOK_ATTEMPTS_PER_TENANT: integer(
    'of these, of one tenant; less when many tenants have some',
    100,
    1,
    100_000,
  ),
  WEBHOOK_ATTEMPTS_PER_ORIGIN: integer(
    'of these, of one tenant at one scheme, host and port',
    20,
    1,
    100_000,
  ),
  WEBHOOK_ATTEMPTS_PER_WEBHOOK: integer('of these, at one webhook', 10, 1, 100_000),
  WEBHOOK_TIMEOUT_SECONDS: integer('a receiver that has not answered by then has failed', 10, 1, 45),
  WEBHOOK_PAUSE_FAILURES: integer('failures in a row after which a receiver is paused', 5, 1, 1_000),
  WEBHOOK_PAUSE_SECONDS: integer(
    'the first pause; each further one is twice as long, up to 300 s',
    10,
    1,
    300,
  ),
  WEBHOOK_MAX_WAIT_HOURS: integer(
    'what was due for so long at a paused receiver is a dead letter',
    24,
    1,
    8_760,
  ),
} satisfies Record<string, Variable<unknown>>;

export type VariableName = keyof typeof VARIABLES;
export type Environment = { readonly [N in VariableName]: ReturnType<(typeof VARIABLES)[N]['parse']> };
