import { headerSecrets, Redaction } from '../outbound';

/** RFC 9110's tokens and what may stand in a field's value. */
const NAME = /^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$/;
const VALUE = /^[\t\x20-\x7e\x80-\xff]{0,4096}$/;

/** Decided by the connection or the protocol, never by an operator. */
const OURS =
  /^(host|connection|content-length|content-type|content-encoding|transfer-encoding|te|trailer|upgrade|keep-alive|expect|accept-encoding|http2-settings|proxy-.*|sec-.*|mcp-.*|last-event-id)$/i;

/** Decided by us or the operator, never by a model's arguments. */
const NOT_FOR_MODELS =
  /^(authorization|cookie|set-cookie|accept|user-agent|referer|origin|forwarded|via|x-forwarded-.*|x-real-ip|x-http-method.*|x-method-override|x-original-.*|x-rewrite-.*)$/i;

export const isHeaderValue = (value: string): boolean => VALUE.test(value);
export const mayConfigure = (name: string): boolean => NAME.test(name) && !OURS.test(name);
export const mayBeArgument = (name: string): boolean => mayConfigure(name) && !NOT_FOR_MODELS.test(name);

const MIN_SECRET_CHARS = 8;

/** What takes the values of configured headers out of a text: services like to repeat what they were asked with. */
export function redactionOf(headers: Readonly<Record<string, string>> | undefined): Redaction {
  const secrets = headerSecrets(headers ?? {}, '[hidden]');
  return new Redaction(secrets.filter(({ value }) => value.length >= MIN_SECRET_CHARS));
}
