import { AppError, type ErrorCode } from '../common';
import type { ProviderError, ProviderFailure } from './drivers/text-driver';

const CODE_OF: Readonly<Record<ProviderFailure, ErrorCode>> = {
  unreachable: 'PROVIDER_FAILED',
  refused: 'PROVIDER_FAILED',
  failed: 'PROVIDER_FAILED',
  malformed: 'PROVIDER_FAILED',
  unreadable: 'CREDENTIAL_UNREADABLE',
  timeout: 'PROVIDER_TIMEOUT',
  'rate-limited': 'RATE_LIMITED',
};

/** When a provider that keeps refusing for rate does not say when to come back. */
export const PROVIDER_RATE_RETRY_SECONDS = 5;

/** What our own callers are told of it. */
export function appErrorOf(error: ProviderError): AppError {
  const code = CODE_OF[error.failure];
  const { retryAfterMs } = error.details;
  return new AppError(code, {
    message: error.message,
    cause: error,
    ...(code === 'RATE_LIMITED' && {
      retryAfterSeconds:
        retryAfterMs === undefined ? PROVIDER_RATE_RETRY_SECONDS : Math.ceil(retryAfterMs / 1_000),
    }),
  });
}
