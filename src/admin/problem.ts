import type { ErrorShape } from '../common/http';

/** RFC 9457. `type` is the code, as a relative reference into docs/errors.md. */
export const problemErrors: ErrorShape = {
  prefix: /^\/api\/admin(\/|$)/,
  render: (error) => ({
    status: error.status,
    contentType: 'application/problem+json; charset=utf-8',
    body: {
      type: `/docs/errors#${error.code.toLowerCase().replaceAll('_', '-')}`,
      title: error.code,
      status: error.status,
      detail: error.message,
      errors: error.errors,
    },
  }),
};
