/**
 * Every failure a wire can show, by code. Transports translate: `status` is the HTTP status, `message` the default
 * text. A test keeps this table and docs/errors.md equal.
 */
export const ERRORS = {
  BAD_INPUT: { status: 400, message: 'The request is not valid.' },
  UNAUTHENTICATED: { status: 401, message: 'A valid API key is required.' },
  TENANT_NOT_PERMITTED: { status: 401, message: 'This key may not use that tenant.' },
  TENANT_SUSPENDED: { status: 401, message: 'This tenant is suspended.' },
  FORBIDDEN: { status: 403, message: 'This key does not have the scope for that.' },
  ORIGIN_NOT_ALLOWED: { status: 403, message: 'This tenant lets no page of that origin in.' },
  NOT_FOUND: { status: 404, message: 'No such thing in this tenant.' },
  READ_TOO_SLOWLY: {
    status: 408,
    message: 'The answer was ended: its client read nothing of it for too long.',
  },
  BODY_TOO_SLOW: { status: 408, message: 'The request body did not arrive in time.' },
  CONFLICT: { status: 409, message: 'That conflicts with what is there.' },
  REPLY_IN_PROGRESS: {
    status: 409,
    message: 'That message is still being written; wait for its end or stop it.',
  },
  BODY_TOO_LARGE: { status: 413, message: 'The request body is over the limit.' },
  UNSUPPORTED_MEDIA_TYPE: { status: 415, message: 'Send JSON: Content-Type application/json.' },
  IDEMPOTENCY_MISMATCH: { status: 422, message: 'This Idempotency-Key was used with another request.' },
  RATE_LIMITED: { status: 429, message: 'Too many requests; come back later.' },
  QUOTA_EXCEEDED: { status: 429, message: 'The quota of this day or month is used up.' },
  INTERNAL: { status: 500, message: 'Something went wrong here; it has been logged.' },
  PROVIDER_FAILED: { status: 502, message: 'The model provider failed.' },
  CREDENTIAL_UNREADABLE: {
    status: 502,
    message: "The model provider's credential can not be read any more; an operator has to enter it again.",
  },
  OVERLOADED: { status: 503, message: 'Too much is going on here right now; come back in a moment.' },
  STORAGE_UNAVAILABLE: {
    status: 503,
    message: 'The database is not available right now; come back in a moment.',
  },
  SHUTTING_DOWN: { status: 503, message: 'This server is shutting down; come back in a moment.' },
  PROVIDER_TIMEOUT: { status: 504, message: 'The model provider was too slow.' },
} as const satisfies Record<string, { status: number; message: string }>;

export type ErrorCode = keyof typeof ERRORS;

export interface FieldError {
  /** The field's path as the client wrote it: `speechUserDialogueMessage.content`. */
  readonly field: string;
  readonly message: string;
}

export interface AppErrorOptions {
  readonly message?: string;
  readonly errors?: readonly FieldError[];
  readonly retryAfterSeconds?: number;
  /** What HTTP wires say besides, by lower-case name. */
  readonly headers?: Readonly<Record<string, string>>;
  readonly cause?: unknown;
}

/** The one error class that crosses modules. Its message may be shown to a client; its cause never is. */
export class AppError extends Error {
  readonly errors: readonly FieldError[];
  readonly retryAfterSeconds: number | undefined;
  readonly headers: Readonly<Record<string, string>>;

  constructor(
    readonly code: ErrorCode,
    options: AppErrorOptions = {},
  ) {
    super(options.message ?? ERRORS[code].message, { cause: options.cause });
    this.name = 'AppError';
    this.errors = options.errors ?? [];
    this.retryAfterSeconds = options.retryAfterSeconds;
    this.headers = options.headers ?? {};
  }

  get status(): number {
    return ERRORS[this.code].status;
  }
}

/** 400 that names one field. */
export function badInput(field: string, message: string): AppError {
  return new AppError('BAD_INPUT', { message: `${field}: ${message}`, errors: [{ field, message }] });
}
