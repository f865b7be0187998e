import { badInput, isInDoublesRange, NO_JSON_BOUNDS, rawNumber } from '../common';
import { clientTime, parseFrame, type MessageFrame } from './frames';
import { SYSTEM } from './messenger';
import { MAX_ATTRIBUTES_CHARS, MAX_MESSAGE_CHARS } from './requests';

/**
 * What REST sends, under the same rules as a frame that comes over the socket, and with every digit: from the fields of
 * an exact body that has been checked. Throws BAD_INPUT.
 */
export function frameOf({
  type,
  source = SYSTEM,
  target,
  msgType,
  msg,
  extra,
}: Readonly<Record<string, unknown>>): MessageFrame {
  const text = JSON.stringify({ type, source, target, msgType, msg, extra });
  // They were measured with their numbers rounded.
  if (text.length > MAX_MESSAGE_CHARS) {
    for (const [field, value] of Object.entries({ msg, extra })) {
      if ((JSON.stringify(value) ?? '').length > MAX_MESSAGE_CHARS)
        throw badInput(field, `must be at most ${MAX_MESSAGE_CHARS} characters as JSON`);
    }
  }
  // The body it came in was held against the bounds already.
  const parsed = parseFrame(text, false, NO_JSON_BOUNDS).frame as MessageFrame;
  clientTime(parsed.msg, Date.now());
  return parsed;
}

/**
 * Of an exact body that has been checked. Throws BAD_INPUT for a number outside a double's range: Postgres would write
 * it out, all its zeros included.
 */
export function attributesOf(attributes: Readonly<Record<string, unknown>>): Record<string, unknown> {
  let outside: string | undefined;
  const text = JSON.stringify(attributes, (_key, value: unknown) => {
    const number = rawNumber(value);
    if (number !== null && !isInDoublesRange(number)) outside = number;
    return value;
  });
  if (outside !== undefined)
    throw badInput('attributes', `must hold no number like ${outside.slice(0, 40)}: send it as a string`);
  if (text.length > MAX_ATTRIBUTES_CHARS)
    throw badInput('attributes', `must be at most ${MAX_ATTRIBUTES_CHARS} characters as JSON`);
  return attributes;
}
