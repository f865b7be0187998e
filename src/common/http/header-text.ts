import { isUtf8 } from 'node:buffer';
import type { IncomingHttpHeaders } from 'node:http';
import { badInput } from '../errors';

const USER_ID = 'user-id';

/** A header's text; of several the first. Node has its bytes as Latin-1: ids are UTF-8 like all text. */
export function headerText(headers: IncomingHttpHeaders, name: string): string | undefined {
  return bytesOf(headers, name)?.toString('utf8').trim();
}

/** The header `user-id`. BAD_INPUT for bytes that are not UTF-8: decoded, the ids of several users would be the same. */
export function userIdOf(headers: IncomingHttpHeaders): string | undefined {
  const bytes = bytesOf(headers, USER_ID);
  if (bytes && !isUtf8(bytes)) throw badInput(USER_ID, 'must be UTF-8');
  return headerText(headers, USER_ID);
}

function bytesOf(headers: IncomingHttpHeaders, name: string): Buffer | undefined {
  const value = headers[name];
  const text = Array.isArray(value) ? value[0] : value;
  return text === undefined ? undefined : Buffer.from(text, 'latin1');
}
