import type { AppError } from '../common';
import type { ErrorShape } from '../common/http';

export interface Envelope<T> {
  readonly code: 200;
  readonly msg: 'success';
  readonly data: T;
}
export interface ListEnvelope<T> {
  readonly code: 200;
  readonly msg: 'success';
  readonly total: number;
  readonly rows: readonly T[];
}

export const success = <T>(data: T): Envelope<T> => ({ code: 200, msg: 'success', data });
export const list = <T>(total: number, rows: readonly T[]): ListEnvelope<T> => ({
  code: 200,
  msg: 'success',
  total,
  rows,
});

/** The wire knows no 403: whoever may not is told so with 401 (protocols/assistant-platform.md, "Envelope"). */
export const envelopeStatus = (error: AppError): number => (error.status === 403 ? 401 : error.status);

/** `{"code":<n>,"msg":"…"}` with the same number as HTTP status. */
export const envelopeErrors: ErrorShape = {
  prefix: /^\/(api\/)?copywriting(\/|$)/,
  render: (error) => {
    const status = envelopeStatus(error);
    return { status, body: { code: status, msg: error.message } };
  },
};
