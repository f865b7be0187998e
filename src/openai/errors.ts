import type { AppError, ErrorCode } from '../common';
import type { ErrorShape } from '../common/http';
import { ProviderError } from '../model-services';

export interface OpenAiError {
  readonly message: string;
  readonly type: string;
  /** The field as the client wrote it: `messages[0].role`. */
  readonly param: string | null;
  readonly code: string | null;
}

const REQUEST = 'invalid_request_error';
const TYPES: Readonly<Partial<Record<ErrorCode, readonly [type: string, code: string | null]>>> = {
  BAD_INPUT: [REQUEST, null],
  UNAUTHENTICATED: [REQUEST, 'invalid_api_key'],
  TENANT_NOT_PERMITTED: [REQUEST, 'invalid_api_key'],
  TENANT_SUSPENDED: [REQUEST, 'account_deactivated'],
  FORBIDDEN: [REQUEST, 'insufficient_permissions'],
  ORIGIN_NOT_ALLOWED: [REQUEST, 'origin_not_allowed'],
  NOT_FOUND: [REQUEST, 'model_not_found'],
  READ_TOO_SLOWLY: [REQUEST, 'read_too_slowly'],
  BODY_TOO_SLOW: [REQUEST, 'request_timeout'],
  CONFLICT: [REQUEST, 'conflict'],
  REPLY_IN_PROGRESS: [REQUEST, 'reply_in_progress'],
  BODY_TOO_LARGE: [REQUEST, 'request_too_large'],
  UNSUPPORTED_MEDIA_TYPE: [REQUEST, null],
  IDEMPOTENCY_MISMATCH: [REQUEST, 'idempotency_mismatch'],
  RATE_LIMITED: ['rate_limit_error', 'rate_limit_exceeded'],
  QUOTA_EXCEEDED: ['insufficient_quota', 'insufficient_quota'],
  CREDENTIAL_UNREADABLE: ['api_error', 'credential_unreadable'],
};

/** What is wrong for good, however often it is sent again. The SDKs ask again after 408, 409, 429 and any 5xx unless told. */
const FOR_GOOD: ReadonlySet<ErrorCode> = new Set([
  'CONFLICT',
  'CREDENTIAL_UNREADABLE',
  'INTERNAL',
  'QUOTA_EXCEEDED',
]);

/** The cause of a failure whose turn is in a conversation by now: to send it again would be to say it again. */
export const TURN_KEPT = new Error('the turn is kept');

/** `{"error":{"message","type","param","code"}}` (protocols/openai.md). */
export function openAiError(error: AppError): OpenAiError {
  const [type, code] = TYPES[error.code] ?? ['api_error', null];
  const field = error.code === 'BODY_TOO_LARGE' ? 'body' : error.errors[0]?.field;
  const param = field === undefined ? null : asWritten(field);
  return {
    message: field === undefined ? error.message : error.message.replace(field, asWritten(field)),
    type,
    param,
    code: error.code === 'NOT_FOUND' && error.message === 'No such path.' ? 'unknown_url' : code,
  };
}

/** `messages.0.role` as a client writes it. */
const asWritten = (field: string): string => field.replace(/\.(\d+)(?=\.|$)/g, '[$1]');

export const openAiErrors: ErrorShape = {
  prefix: /^\/(v1|api\/v1\/(models|chat|embeddings|images|audio))(\/|$)/,
  render: (error) => ({
    // A body over the limit is a bad request like any other here.
    status: error.code === 'BODY_TOO_LARGE' ? 400 : error.status,
    body: { error: openAiError(error) },
    headers: shouldRetry(error),
  }),
};

/** `x-should-retry`, which the official SDKs obey; without it they go by the status. */
function shouldRetry({ code, status, cause }: AppError): Record<string, string> {
  // What the provider refused it will refuse again: our credential, or the request.
  const refused = status >= 500 && cause instanceof ProviderError && cause.failure === 'refused';
  if (FOR_GOOD.has(code) || cause === TURN_KEPT || refused) return { 'x-should-retry': 'false' };
  return status === 429 || status >= 500 || code === 'REPLY_IN_PROGRESS' ? { 'x-should-retry': 'true' } : {};
}
