import { TransformationType, type TransformFnParams } from 'class-transformer';
import { defaultMetadataStorage as transformStorage } from 'class-transformer/cjs/storage';
import { getMetadataStorage as checkStorage } from 'class-validator';
import type { FieldError } from '../errors';

type Class = new () => object;

/** What a class of requests knows of one of its fields. */
interface KnownField {
  readonly name: string;
  /** Of what stands in it, or in each element of its list; undefined: it is taken as it is. */
  readonly type: Class | undefined;
  /** Elements of its list, at most. */
  readonly maxElements: number | undefined;
  readonly transforms: readonly ((params: TransformFnParams) => unknown)[];
}

/** What was wrong before any check ran. */
export interface Refused {
  readonly unknown: FieldError[];
  readonly wrong: FieldError[];
}

/** Of fields nobody knows so many are told, and so much of their names. */
const MAX_TOLD = 20;
const MAX_NAME_CHARS = 60;

const known = new Map<Class, ReadonlyMap<string, KnownField>>();

/** The fields that have a check, of the class and of those it extends. */
export function knownFields(type: Class): ReadonlyMap<string, KnownField> {
  const found = known.get(type);
  if (found) return found;
  const checks = checkStorage().getTargetValidationMetadatas(type, '', false, false);
  const fields = new Map<string, KnownField>();
  for (const { propertyName: name } of checks) {
    if (fields.has(name)) continue;
    const longest = checks.find((check) => check.propertyName === name && check.name === 'arrayMaxSize');
    fields.set(name, {
      name,
      type: transformStorage.findTypeMetadata(type, name)?.typeFunction() as Class | undefined,
      maxElements: longest?.constraints[0] as number | undefined,
      transforms: transformStorage
        .findTransformMetadatas(type, name, TransformationType.PLAIN_TO_CLASS)
        .map(({ transformFn }) => transformFn),
    });
  }
  known.set(type, fields);
  return fields;
}

/**
 * An instance with the fields its class knows and nothing else, transformed as they say themselves. The work is by what
 * is known: what is not is never looked into, a field without a class of its own is taken as it is, and a list that is
 * too long, or holds lists where objects are meant, is told in `refused` and left alone.
 */
export function pickKnown(type: Class, given: object, refused: Refused, path = ''): object {
  const fields = knownFields(type);
  const picked = new type() as Record<string, unknown>;
  for (const field of fields.values()) {
    if (!Object.hasOwn(given, field.name)) continue;
    const value = (given as Record<string, unknown>)[field.name];
    picked[field.name] = transformed(valueOf(field, value, refused, `${path}${field.name}`), field, given);
  }
  for (const name in given) {
    if (refused.unknown.length === MAX_TOLD) break;
    if (!fields.has(name))
      refused.unknown.push({ field: path + shown(name), message: 'is not a known field' });
  }
  return picked;
}

function valueOf(field: KnownField, value: unknown, refused: Refused, path: string): unknown {
  const { type, maxElements } = field;
  if (Array.isArray(value) && maxElements !== undefined && value.length > maxElements) {
    refused.wrong.push({ field: path, message: `must contain no more than ${maxElements} elements` });
    return value;
  }
  return type === undefined ? value : within(type, value, refused, path);
}

function within(type: Class, value: unknown, refused: Refused, path: string): unknown {
  if (Array.isArray(value)) return value.map((one, i) => element(type, one, refused, `${path}.${i}`));
  if (typeof value !== 'object' || value === null) return value;
  return pickKnown(type, value, refused, `${path}.`);
}

/** The checks look through a list within a list, and find nothing wrong of an empty one. */
function element(type: Class, value: unknown, refused: Refused, path: string): unknown {
  if (!Array.isArray(value)) return within(type, value, refused, path);
  if (refused.wrong.length < MAX_TOLD) refused.wrong.push({ field: path, message: 'must be an object' });
  return value;
}

function transformed(value: unknown, { name: key, transforms }: KnownField, obj: object): unknown {
  return transforms.reduce<unknown>(
    (so, transform) =>
      transform({ value: so, key, obj, type: TransformationType.PLAIN_TO_CLASS, options: {} }),
    value,
  );
}

const shown = (name: string): string =>
  name.length > MAX_NAME_CHARS ? `${name.slice(0, MAX_NAME_CHARS).toWellFormed()}…` : name.toWellFormed();
