import { ValidateBy, type ValidationOptions } from 'class-validator';
import { badInput } from '../common';
import { ASSISTANT_PREFIX } from '../messages';
import { isPartyId, MAX_ID_CHARS } from './frames';
import { SYSTEM } from './messenger';

/** They would be seen by nobody, and mark in keys where one part ends. */
// eslint-disable-next-line no-control-regex -- these very characters are meant
export const CONTROL = /[\u0000-\u001f\u007f]/;

/** Those past what a double holds are taken by their digits: see {@link exactIds}. */
const isIntegerId = (value: unknown): boolean => Number.isInteger(value) && Math.abs(value as number) < 1e127;

/** A user's id, number or string; neither the platform's own sender nor anything that looks like an assistant. */
export function isUserId(value: unknown): value is string | number {
  return (
    isIntegerId(value) ||
    (typeof value === 'string' &&
      value.length >= 1 &&
      value.length <= MAX_ID_CHARS &&
      !CONTROL.test(value) &&
      value.isWellFormed() &&
      value !== SYSTEM &&
      !value.startsWith(ASSISTANT_PREFIX))
  );
}

export function IsUserId(options?: ValidationOptions): PropertyDecorator {
  return ValidateBy(
    {
      name: 'isUserId',
      validator: {
        validate: isUserId,
        defaultMessage: () =>
          `$property must be an integer or a string of 1 to ${MAX_ID_CHARS} characters, not ${SYSTEM} and not beginning with ${ASSISTANT_PREFIX}`,
      },
    },
    options,
  );
}

/** A user's, group's or assistant's id on the wire: a number or a string. */
export function IsTarget(options?: ValidationOptions): PropertyDecorator {
  return ValidateBy(
    {
      name: 'isTarget',
      validator: {
        validate: (value: unknown) => isUserId(value) || (typeof value === 'string' && isTargetText(value)),
        defaultMessage: () => `$property must be an integer or a string of 1 to ${MAX_ID_CHARS} characters`,
      },
    },
    options,
  );
}

function isTargetText(value: string): boolean {
  return (
    value.length <= MAX_ID_CHARS &&
    (value === SYSTEM || value.startsWith(ASSISTANT_PREFIX)) &&
    value.isWellFormed() &&
    !value.includes('\0')
  );
}

/** No control character: a group's id. */
export function NoControl(options?: ValidationOptions): PropertyDecorator {
  return ValidateBy(
    {
      name: 'noControl',
      validator: {
        validate: (value) => typeof value !== 'string' || (!CONTROL.test(value) && value.isWellFormed()),
        defaultMessage: () => '$property must hold no control character or half of a surrogate pair',
      },
    },
    options,
  );
}

/**
 * Ids of a body that has been checked, with every digit: `values` are its field as {@link exactBody} has it. BAD_INPUT
 * for a number that only looked like an integer because it was rounded.
 */
export function exactIds(field: string, values: readonly unknown[]): (string | number)[] {
  for (const value of values) {
    if (!isPartyId(value as string | number))
      throw badInput(field, `must be an integer or a string of 1 to ${MAX_ID_CHARS} characters`);
  }
  return values as (string | number)[];
}
