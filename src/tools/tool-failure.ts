import { ProtocolError, SdkErrorCode, SdkHttpError } from '@modelcontextprotocol/client';
import { truncate } from '../common';
import { RefusedAddressError } from '../outbound';
import { isObject, type JsonObject } from './json';

/** A failure whose message a model may read. */
export class ToolFailure extends Error {}

const MAX_REFUSAL_CHARS = 1_000;
const MAX_CAUSES = 5;

const BY_CODE: Readonly<Record<string, string>> = {
  ENOTFOUND: "its host's name can not be resolved",
  EAI_AGAIN: "its host's name can not be resolved",
  ECONNREFUSED: 'its server can not be reached',
  EHOSTUNREACH: 'its server can not be reached',
  ENETUNREACH: 'its server can not be reached',
  ETIMEDOUT: 'its server can not be reached',
  ECONNRESET: 'its server broke the connection off',
  EPIPE: 'its server broke the connection off',
  UND_ERR_SOCKET: 'its server broke the connection off',
  UND_ERR_CONNECT_TIMEOUT: 'its server can not be reached',
  UND_ERR_HEADERS_TIMEOUT: 'its server was too slow',
  UND_ERR_BODY_TIMEOUT: 'its server was too slow',
  [SdkErrorCode.RequestTimeout]: 'its server was too slow',
  [SdkErrorCode.ConnectionClosed]: 'its server broke the connection off',
  [SdkErrorCode.InvalidResult]: 'its server answered with something that is not valid',
  [SdkErrorCode.UnsupportedResultType]: 'it asks for input that nobody here can give',
  [SdkErrorCode.ListPaginationExceeded]: 'its list of tools is too long',
};

/** What went wrong, without addresses, credentials or stacks: of a foreign error only its code is believed. */
export function inPlainWords(error: unknown): string {
  let cause = error;
  for (let depth = 0; depth < MAX_CAUSES && isObject(cause); depth += 1, cause = cause.cause) {
    const words = wordsFor(cause);
    if (words) return words;
  }
  return 'the exchange with its server failed';
}

function wordsFor(error: JsonObject): string | undefined {
  if (error instanceof ToolFailure || error instanceof RefusedAddressError) return error.message;
  if (error instanceof ProtocolError) {
    return `its server refused: ${truncate(error.message, MAX_REFUSAL_CHARS)}`;
  }
  if (error instanceof SdkHttpError && error.status) return statusInWords(error.status);
  if (error.name === 'TimeoutError') return 'its server was too slow';
  const { code } = error;
  if (typeof code !== 'string') return undefined;
  if (/CERT|SELF_SIGNED|UNABLE_TO_VERIFY/.test(code)) return "its server's certificate is not valid";
  return Object.hasOwn(BY_CODE, code) ? BY_CODE[code] : undefined;
}

export function statusInWords(status: number): string {
  const redirect = status >= 300 && status <= 399 ? ', a redirect, which is not followed' : '';
  return `its server answered with status ${status}${redirect}`;
}
