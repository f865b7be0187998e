import type { ErrorShape } from '../common/http';

/** RFC 9457. `type` is a URN of the code; docs/errors.md says what each means. */
export const problemErrors: ErrorShape = {
  prefix: /^\/api\/admin(\/|$)/,
  render: (error) => ({
    status: error.status,
    contentType: 'application/problem+json; charset=utf-8',
    body: {
      type: `urn:parley:error:${error.code.toLowerCase().replaceAll('_', '-')}`,
      title: error.code,
      status: error.status,
      detail: error.message,
      errors: error.errors,
    },
  }),
};
