import type { ErrorShape } from '../common/http';

/** `{"error":"…"}`: how the REST beside the agent channel fails. */
export const agentErrors: ErrorShape = {
  prefix: /^\/api\/v1\/(agents|sessions|tokens)(\/|$)/,
  render: ({ status, message }) => ({ status, body: { error: message } }),
};
