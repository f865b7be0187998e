import { isObject, type JsonObject } from './json';

/** A document that can not be made tools of; `at` is the place in it. */
export class DocumentError extends Error {
  constructor(
    readonly at: string,
    message: string,
  ) {
    super(message);
  }
}

const MAX_REFERENCES = 8;
const MAX_LEVELS = 40;
const LISTS = new Set(['allOf', 'anyOf', 'oneOf', 'prefixItems']);
const MAPS = new Set(['properties', 'patternProperties', 'dependentSchemas']);
const SINGLE = new Set([
  'items',
  'additionalProperties',
  'not',
  'if',
  'then',
  'else',
  'contains',
  'propertyNames',
  'unevaluatedItems',
  'unevaluatedProperties',
]);
/** What tells a model nothing, or what is resolved here. */
const DROPPED =
  /^(\$ref|\$schema|\$id|\$anchor|\$dynamicRef|\$dynamicAnchor|\$defs|definitions|nullable|example|examples|xml|externalDocs|discriminator|x-.*)$/;

/** The references of one document: `#/…` alone, as we fetch nothing. */
export class References {
  constructor(private readonly document: JsonObject) {}

  /** The object that stands at `value`, or where its `$ref` leads. DocumentError when that is nowhere. */
  follow(value: unknown, at: string): JsonObject {
    let found = value;
    for (let hops = 0; isObject(found) && typeof found.$ref === 'string'; hops += 1) {
      if (hops === MAX_REFERENCES) throw new DocumentError(at, 'its references lead too far');
      found = this.target(found.$ref, at);
    }
    if (!isObject(found)) throw new DocumentError(at, 'must be an object');
    return found;
  }

  target(reference: string, at: string): unknown {
    if (!reference.startsWith('#/')) throw new DocumentError(at, 'refers to something outside the document');
    let found: unknown = this.document;
    for (const step of reference.slice(2).split('/')) {
      const key = unescaped(step);
      if (typeof found !== 'object' || found === null || !Object.hasOwn(found, key)) {
        throw new DocumentError(at, `refers to ${reference.slice(0, 200)}, which is not there`);
      }
      found = (found as Record<string, unknown>)[key];
    }
    return found;
  }
}

function unescaped(step: string): string {
  try {
    return decodeURIComponent(step).replaceAll('~1', '/').replaceAll('~0', '~');
  } catch {
    return step;
  }
}

/**
 * Writes schemas of a document out as plain JSON schema. A schema that contains itself, or references more than 8 deep,
 * end in `{}`, which allows anything. All that one writer writes has to fit into `room` characters, because references
 * can make much of little: DocumentError when it does not.
 */
export class SchemaWriter {
  constructor(
    private readonly references: References,
    private readonly at: string,
    private room: number,
  ) {}

  write(schema: unknown, followed: readonly string[] = [], level = 0): unknown {
    this.spend(2);
    if (typeof schema === 'boolean') return schema;
    if (!isObject(schema)) throw new DocumentError(this.at, 'a schema must be an object');
    if (level > MAX_LEVELS) return {};
    const own = this.own(schema, followed, level);
    if (typeof schema.$ref !== 'string') return own;
    const { $ref } = schema;
    if (followed.includes($ref) || followed.length === MAX_REFERENCES) return own;
    const target = this.write(this.references.target($ref, this.at), [...followed, $ref], level + 1);
    return isObject(target) ? { ...target, ...own } : target;
  }

  private own(schema: JsonObject, followed: readonly string[], level: number): JsonObject {
    const inner = (value: unknown) => this.write(value, followed, level + 1);
    const entries = Object.entries(schema)
      .filter(([key, value]) => !DROPPED.test(key) && !isDraft4Bound(key, value))
      .map(([key, value]): [string, unknown] => {
        this.spend(key.length + 4);
        if (SINGLE.has(key)) return [key, inner(value)];
        if (LISTS.has(key) && Array.isArray(value)) return [key, value.map(inner)];
        if (MAPS.has(key) && isObject(value)) return [key, this.map(value, inner)];
        this.spend(JSON.stringify(value).length);
        return [key, value];
      });
    return asJsonSchema(schema, Object.fromEntries(entries));
  }

  private map(schemas: JsonObject, inner: (schema: unknown) => unknown): JsonObject {
    return Object.fromEntries(
      Object.entries(schemas).map(([key, value]) => {
        this.spend(key.length + 4);
        return [key, inner(value)];
      }),
    );
  }

  private spend(characters: number): void {
    this.room -= characters;
    if (this.room < 0) {
      throw new DocumentError(this.at, 'its schema is too large once its references are written out');
    }
  }
}

const isDraft4Bound = (key: string, value: unknown): boolean =>
  (key === 'exclusiveMinimum' || key === 'exclusiveMaximum') && typeof value === 'boolean';

/** What OpenAPI 3.0 says otherwise than JSON schema: `nullable`, and exclusive bounds as flags. */
function asJsonSchema(schema: JsonObject, written: Record<string, unknown>): JsonObject {
  const { minimum, maximum, ...rest } = written;
  const exclusive = schema.exclusiveMinimum === true;
  const below = schema.exclusiveMaximum === true;
  return {
    ...rest,
    ...(minimum !== undefined && { [exclusive ? 'exclusiveMinimum' : 'minimum']: minimum }),
    ...(maximum !== undefined && { [below ? 'exclusiveMaximum' : 'maximum']: maximum }),
    ...(schema.nullable === true && typeof written.type === 'string' && { type: [written.type, 'null'] }),
    ...(schema.nullable === true &&
      Array.isArray(written.enum) && { enum: [...(written.enum as unknown[]), null] }),
  };
}
