import { AppError, type ErrorCode } from '../common';

/** `code` of an error frame (protocols/agent-channel.md). */
export type ChannelCode =
  | 'bad_request'
  | 'unauthorized'
  | 'agent_not_found'
  | 'session_not_found'
  | 'busy'
  | 'rate_limited'
  | 'quota_exceeded'
  | 'too_large'
  | 'provider_error'
  | 'provider_timeout'
  | 'internal';

export class ChannelError extends Error {
  constructor(
    readonly code: ChannelCode,
    message: string,
  ) {
    super(message);
  }
}

const CODES: Readonly<Partial<Record<ErrorCode, ChannelCode>>> = {
  BAD_INPUT: 'bad_request',
  UNAUTHENTICATED: 'unauthorized',
  TENANT_NOT_PERMITTED: 'unauthorized',
  TENANT_SUSPENDED: 'unauthorized',
  FORBIDDEN: 'unauthorized',
  NOT_FOUND: 'session_not_found',
  REPLY_IN_PROGRESS: 'busy',
  OVERLOADED: 'busy',
  SHUTTING_DOWN: 'busy',
  STORAGE_UNAVAILABLE: 'busy',
  RATE_LIMITED: 'rate_limited',
  QUOTA_EXCEEDED: 'quota_exceeded',
  BODY_TOO_LARGE: 'too_large',
  PROVIDER_FAILED: 'provider_error',
  CREDENTIAL_UNREADABLE: 'provider_error',
  PROVIDER_TIMEOUT: 'provider_timeout',
};

export function channelErrorOf(error: unknown): ChannelError | null {
  if (error instanceof ChannelError) return error;
  if (!(error instanceof AppError)) return null;
  return new ChannelError(CODES[error.code] ?? 'internal', error.message);
}

/** What a stored reply failed of, by its status. */
export function failureCode(status: number): ChannelCode {
  if (status === 429) return 'rate_limited';
  if (status === 504) return 'provider_timeout';
  return status === 500 ? 'internal' : 'provider_error';
}
