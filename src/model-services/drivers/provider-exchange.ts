import {
  headerSecrets,
  Redaction,
  RefusedAddressError,
  urlSecrets,
  type PoolOptions,
  type Secret,
} from '../../outbound';
import { shorten } from './completion-stream';
import { ProviderError, type ProviderEndpoint, type ProviderFailure } from './text-driver';

/** What every question to a provider has in common: where it goes, what it carries, and what its failures are called. */

export const MAX_ERROR_BYTES = 65_536;
export const MAX_TIMER_MS = 2_147_483_647;
/** Of what a provider says of a failure no more is looked at. */
const MAX_ERROR_CHARS = 4_096;
/** Shorter ones are no secret, and replacing them would garble the message. */
const MIN_SECRET_CHARS = 4;

/** Headers, pieces and the whole have time-outs of their own. Not HTTP/2: aborting has to be destroying a socket. */
export const poolOf = ({ connectTimeoutMs }: ProviderEndpoint): PoolOptions => ({
  connectMs: connectTimeoutMs,
  silenceMs: 0,
  allowH2: false,
});

/** `path` under the endpoint's base URL, whose query stays. */
export function targetOf({ baseUrl }: ProviderEndpoint, path: string): { origin: string; path: string } {
  // Not the URL's own error: that one quotes the address.
  if (!URL.canParse(baseUrl)) throw providerError('refused', 'cannot be asked: its address is not valid.');
  const { origin, pathname, search } = new URL(baseUrl);
  return { origin, path: `${pathname.replace(/\/+$/, '')}${path}${search}` };
}

/** The provider's own headers win over `ours`, however they are cased. Throws for a credential that can not be read. */
export function headersOf(
  { apiKey, headers, unreadable }: ProviderEndpoint,
  ours: Readonly<Record<string, string>>,
): Record<string, string> {
  if (unreadable)
    throw providerError('unreadable', 'has a credential that can not be read any more: enter it again.');
  const own = Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value] as const);
  return { ...ours, ...(apiKey && { authorization: `Bearer ${apiKey}` }), ...Object.fromEntries(own) };
}

export function providerError(
  failure: ProviderFailure,
  what: string,
  details: { status?: number; retryAfterMs?: number; cause?: unknown } = {},
): ProviderError {
  return new ProviderError(failure, `The model provider ${what}`, { ...details, attempts: 1 });
}

/** `said`: that the answer told of a failure, whatever its status. */
export function failureOf(status: number, said: boolean): ProviderFailure {
  if (status === 429) return 'rate-limited';
  if (status >= 500) return 'failed';
  if (status >= 400) return 'refused';
  return status <= 299 && said ? 'failed' : 'malformed';
}

/** Why there was no answer, or no end of it. `answered`: its beginning had come. */
export function brokenOff(cause: NodeJS.ErrnoException, answered: boolean): ProviderError {
  const code = cause.code ?? '';
  if (cause instanceof RefusedAddressError)
    return providerError('refused', 'leads to a private address, which is not allowed here.', { cause });
  if (code === 'UND_ERR_CONNECT_TIMEOUT')
    return providerError('timeout', 'could not be connected to in time.', { cause });
  if (code === 'UND_ERR_INVALID_ARG')
    return providerError('refused', 'cannot be asked: its address or a header is not valid.', { cause });
  if (answered) return providerError('failed', 'broke off in the middle of its answer.', { cause });
  if (code.startsWith('HPE_') || code === 'UND_ERR_HEADERS_OVERFLOW')
    return providerError('malformed', 'answered no HTTP.', { cause });
  return providerError('unreachable', 'could not be reached.', { cause });
}

/** One line that may be shown: some providers quote the key they refuse, or the address they were asked at. */
export function shownMessage(message: string, endpoint: ProviderEndpoint): string {
  const line = message.replace(/\s+/g, ' ');
  const start = line.length > MAX_ERROR_CHARS ? `${line.slice(0, MAX_ERROR_CHARS)}…` : line;
  return shorten(new Redaction(secretsOf(endpoint)).of(start));
}

function secretsOf({ apiKey = '', headers, baseUrl }: ProviderEndpoint): Secret[] {
  const { origin, host, hostname } = URL.canParse(baseUrl)
    ? new URL(baseUrl)
    : { origin: '', host: '', hostname: '' };
  return [
    { value: apiKey, mark: '[key]', parts: true },
    ...headerSecrets(headers, '[key]'),
    ...urlSecrets(baseUrl, '[key]'),
    ...[baseUrl, baseUrl.replace(/[?#].*/s, ''), origin, host, hostname].map((value) => ({
      value,
      mark: '[address]',
      parts: false,
    })),
  ].filter(({ value }) => value.length >= MIN_SECRET_CHARS);
}
