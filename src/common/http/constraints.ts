import { applyDecorators } from '@nestjs/common';
import { ApiPropertyOptional } from '@nestjs/swagger';
import { Transform } from 'class-transformer';
import { IsInt, IsOptional, Max, Min, ValidateBy, ValidateIf, type ValidationOptions } from 'class-validator';
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

/** No NUL and no half of a surrogate pair: for text that is stored as JSON, where neither can be. */
export function IsStorableText(options?: ValidationOptions): PropertyDecorator {
  return ValidateBy(
    {
      name: 'isStorableText',
      validator: {
        validate: (value) => typeof value !== 'string' || (value.isWellFormed() && !value.includes('\0')),
        defaultMessage: () => '$property must not contain NUL or half of a surrogate pair',
      },
    },
    options,
  );
}

/** May be left out, and nothing else: null is a value of the wrong type, never "none" or "all". */
export const Present = (): PropertyDecorator => ValidateIf((_, value) => value !== undefined);

/** `""` counts as absent. */
export function EmptyIsAbsent(): PropertyDecorator {
  return Transform(({ value }: { value: unknown }) => (value === '' || value === null ? undefined : value));
}

/** NUL and lone surrogates, as JSON.stringify escapes them; an escaped backslash before the `u` is just text. jsonb holds neither. */
const UNSTORABLE = /(?<!\\)(?:\\\\)*\\u(?:0000|d[89a-f][0-9a-f]{2})/i;

const MAX_URL_CHARS = 2_000;
const MAX_ORIGIN_CHARS = 300;
/** What `new URL` would drop, or read as a slash, is no part of what anybody means. */
const HTTP_URL = /^https?:\/\/[^\s\p{Cc}\\]+$/iu;

/**
 * An http or https URL of at most 2,000 characters that `new URL` takes, as everything does that will ask there: other
 * checks take what it throws at, such as the zone id of an IPv6 address. `credentials: false`: with none of them in it.
 */
export function IsHttpUrl({ credentials = true } = {}): PropertyDecorator {
  return ValidateBy({
    name: 'isHttpUrl',
    validator: {
      validate: (value) => isHttpUrl(value) && (credentials || !holdsCredentials(new URL(value))),
      defaultMessage: () =>
        `$property must be an http(s) URL of at most ${MAX_URL_CHARS} characters${credentials ? '' : ', without credentials'}`,
    },
  });
}

function isHttpUrl(value: unknown): value is string {
  return (
    typeof value === 'string' &&
    value.length <= MAX_URL_CHARS &&
    value.isWellFormed() &&
    HTTP_URL.test(value) &&
    URL.canParse(value)
  );
}

const holdsCredentials = ({ username, password }: URL): boolean => username !== '' || password !== '';

/** An origin exactly as a browser sends it: what is written otherwise would never be met. */
export function IsOrigin(options?: ValidationOptions): PropertyDecorator {
  return ValidateBy(
    {
      name: 'isOrigin',
      validator: {
        validate: (value) =>
          isHttpUrl(value) && value.length <= MAX_ORIGIN_CHARS && new URL(value).origin === value,
        defaultMessage: () => '$property must hold origins such as https://app.example',
      },
    },
    options,
  );
}

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

/** Any JSON whose text is at most `maxChars` long and can be stored. */
export function IsJson(maxChars: number, options?: ValidationOptions): PropertyDecorator {
  return ValidateBy(
    {
      name: 'isJson',
      validator: {
        validate: (value) => {
          const text = JSON.stringify(value) ?? 'null';
          return text.length <= maxChars && !UNSTORABLE.test(text);
        },
        defaultMessage: () => `$property must be JSON of at most ${maxChars} characters, without NUL`,
      },
    },
    options,
  );
}

/** Decimal digits of a query string become a number; anything else is left for the checks to refuse. */
export function ToNumber(): PropertyDecorator {
  return Transform(({ value }: { value: unknown }) =>
    typeof value === 'string' && /^\d{1,15}$/.test(value) ? Number(value) : value,
  );
}

/** `limit` of a page read by keyset: 1 to `max`. */
export function IsPageLimit(max: number, byDefault: number): PropertyDecorator {
  return applyDecorators(
    ApiPropertyOptional({ minimum: 1, maximum: max, default: byDefault, type: Number }),
    ToNumber(),
    IsOptional(),
    IsInt(),
    Min(1),
    Max(max),
  );
}
