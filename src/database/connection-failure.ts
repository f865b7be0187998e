/** What went wrong with a connection, without the URL's password. */
export function connectionFailure(error: unknown): string {
  const { code, message } = error as { code?: string; message?: string };
  if (/startup parameter/i.test(message ?? ''))
    return `a pooler stands between and refuses the start-up options of the connection (${message}): connect to PostgreSQL itself`;
  if (/statement pooling/i.test(message ?? ''))
    return `a pooler stands between that allows no transactions (${message}): connect to PostgreSQL itself`;
  switch (code) {
    case 'ECONNREFUSED':
      return 'nothing answers at that host and port (is PostgreSQL running?)';
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return "that host's name can't be resolved";
    case '28P01':
    case '28000':
      return 'PostgreSQL refuses that user or password';
    case '3D000':
      return 'that database does not exist';
    default:
      return `can't connect: ${message || code || 'unknown reason'}`;
  }
}
