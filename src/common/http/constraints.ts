import { ValidateBy, type ValidationOptions } from 'class-validator';
import { Transform } from 'class-transformer';
import { isId } from '../ids';

/** An id: a decimal string, or a number that lost no digits. Becomes a string. */
export function IsEntityId(options?: ValidationOptions): PropertyDecorator {
  const toText = Transform(({ value }: { value: unknown }) =>
    typeof value === 'number' && Number.isSafeInteger(value) ? String(value) : value,
  );
  const check = ValidateBy(
    {
      name: 'isEntityId',
      validator: { validate: isId, defaultMessage: () => '$property must be an id (a decimal string)' },
    },
    options,
  );
  return (target, key) => {
    toText(target, key);
    check(target, key);
  };
}

/** Postgres text can't hold NUL; neither can anything a client would show. */
export function NoNul(options?: ValidationOptions): PropertyDecorator {
  return ValidateBy(
    {
      name: 'noNul',
      validator: {
        validate: (value) => typeof value !== 'string' || !value.includes('\0'),
        defaultMessage: () => '$property must not contain NUL',
      },
    },
    options,
  );
}

/** `""` counts as absent. */
export function EmptyIsAbsent(): PropertyDecorator {
  return Transform(({ value }: { value: unknown }) => (value === '' || value === null ? undefined : value));
}

/** NUL and lone surrogates, as JSON.stringify escapes them; an escaped backslash before the `u` is just text. jsonb holds neither. */
const UNSTORABLE = /(?<!\\)(?:\\\\)*\\u(?:0000|d[89a-f][0-9a-f]{2})/i;

/** A plain JSON object whose text is at most `maxChars` long and holds no NUL. */
export function IsJsonObject(maxChars: number, options?: ValidationOptions): PropertyDecorator {
  return ValidateBy(
    {
      name: 'isJsonObject',
      validator: {
        validate: (value) => {
          if (typeof value !== 'object' || value === null || Array.isArray(value)) return false;
          const text = JSON.stringify(value);
          return text.length <= maxChars && !UNSTORABLE.test(text);
        },
        defaultMessage: () => `$property must be an object of at most ${maxChars} characters as JSON`,
      },
    },
    options,
  );
}
