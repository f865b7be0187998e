import { truncate } from '../common';
import { mayBeArgument } from './headers';
import { isObject, storable, storableJson, type JsonObject } from './json';
import { DocumentError, References, SchemaWriter } from './openapi-schema';
import { MAX_DESCRIPTION_CHARS, MAX_PARAMETERS_CHARS, MAX_TOOLS, type OfferedTool } from './tool';

/** Where one argument of an operation goes. */
export interface Input {
  /** Its name among the arguments. */
  readonly key: string;
  /** Its name in the request. */
  readonly name: string;
  readonly in: 'path' | 'query' | 'header';
  readonly style: string;
  readonly explode: boolean;
  /** Sent as JSON text. */
  readonly json: boolean;
}

export interface Operation extends OfferedTool {
  readonly method: string;
  /** With `{name}` for its path parameters. */
  readonly path: string;
  readonly inputs: readonly Input[];
  readonly required: readonly string[];
  /** The content type of `body`; undefined: it has none. */
  readonly bodyType: string | undefined;
}

const METHODS = ['get', 'put', 'post', 'delete', 'patch', 'head', 'options'];
const BODILESS = new Set(['get', 'head']);
const MAX_ID_CHARS = 128;
const PLACES = ['path', 'query', 'header'];

/**
 * The operations of an OpenAPI 3.0 or 3.1 document that have an operationId and, if `allow` is given, are named there.
 * DocumentError when the document is not one, or one of them can't be called with JSON.
 */
export function operationsOf(document: JsonObject, allow?: readonly string[]): readonly Operation[] {
  if (typeof document.openapi !== 'string' || !/^3\.[01]\.\d+/.test(document.openapi)) {
    throw new DocumentError('openapi', 'must be 3.0.x or 3.1.x');
  }
  if (!isObject(document.paths)) throw new DocumentError('paths', 'must be an object');
  const references = new References(document);
  const found = new Map<string, Operation>();
  for (const [path, written] of Object.entries(document.paths)) {
    if (path.startsWith('x-')) continue;
    const at = `paths.${path}`;
    if (!path.startsWith('/') || /[?#\\]/.test(path)) {
      throw new DocumentError(at, 'must start with "/" and be a path alone');
    }
    const item = references.follow(written, at);
    for (const method of METHODS.filter((name) => item[name] !== undefined)) {
      const operation = references.follow(item[method], `${at}.${method}`);
      const id = operation.operationId;
      if (id === undefined || (allow && !allow.includes(id as string))) continue;
      if (typeof id !== 'string' || id.length === 0 || id.length > MAX_ID_CHARS) {
        throw new DocumentError(`${at}.${method}.operationId`, `must be 1 to ${MAX_ID_CHARS} characters`);
      }
      if (found.has(id)) throw new DocumentError(`${at}.${method}.operationId`, 'is used twice');
      found.set(id, read(references, { path, method, id, item, operation }));
    }
  }
  if (found.size > MAX_TOOLS) {
    throw new DocumentError('paths', `has ${found.size} operations; choose at most ${MAX_TOOLS} with allow`);
  }
  return [...found.values()];
}

/** The document's first server with its variables' defaults; undefined when it names none. */
export function serverOf(document: JsonObject): string | undefined {
  const server: unknown = Array.isArray(document.servers) ? document.servers[0] : undefined;
  if (!isObject(server) || typeof server.url !== 'string') return undefined;
  const variables = isObject(server.variables) ? server.variables : {};
  return server.url.replace(/\{([^{}]*)\}/g, (whole, name: string) => {
    const variable = Object.hasOwn(variables, name) ? variables[name] : undefined;
    return isObject(variable) && typeof variable.default === 'string' ? variable.default : whole;
  });
}

interface Place {
  readonly path: string;
  readonly method: string;
  readonly id: string;
  readonly item: JsonObject;
  readonly operation: JsonObject;
}

function read(references: References, { path, method, id, item, operation }: Place): Operation {
  const at = `paths.${path}.${method}`;
  const writer = new SchemaWriter(references, at, MAX_PARAMETERS_CHARS);
  const properties = new Map<string, unknown>();
  const required: string[] = [];
  const inputs: Input[] = [];
  for (const parameter of parametersOf(references, at, item, operation)) {
    const input = toInput(parameter, at, properties);
    if (!input) continue;
    inputs.push(input);
    properties.set(input.key, described(writer.write(schemaOf(parameter)), parameter.description));
    if (input.in === 'path' || parameter.required === true) required.push(input.key);
  }
  for (const [, name] of path.matchAll(/\{([^{}]*)\}/g)) {
    if (!inputs.some((input) => input.in === 'path' && input.name === name)) {
      throw new DocumentError(at, `its path's {${name}} is not among its parameters`);
    }
  }
  const body = BODILESS.has(method) ? undefined : bodyOf(references, at, operation);
  if (body) {
    properties.set('body', described(writer.write(body.schema), body.description));
    if (body.required) required.push('body');
  }
  return {
    name: id,
    description: descriptionOf(operation),
    parameters: storableJson({
      type: 'object',
      properties: Object.fromEntries(properties),
      ...(required.length > 0 && { required }),
      additionalProperties: false,
    }),
    method: method.toUpperCase(),
    path,
    inputs,
    required,
    bodyType: body?.type,
  };
}

/** Those of the path, replaced by the operation's of the same name and place. */
function parametersOf(
  references: References,
  at: string,
  item: JsonObject,
  operation: JsonObject,
): readonly JsonObject[] {
  const byPlace = new Map<string, JsonObject>();
  for (const list of [item.parameters, operation.parameters]) {
    if (list === undefined) continue;
    if (!Array.isArray(list)) throw new DocumentError(`${at}.parameters`, 'must be an array');
    for (const written of list) {
      const parameter = references.follow(written, `${at}.parameters`);
      byPlace.set(JSON.stringify([parameter.in, parameter.name]), parameter);
    }
  }
  return [...byPlace.values()];
}

/** Null for a parameter that is not a model's to give: cookies, and headers such as Authorization. */
function toInput(parameter: JsonObject, at: string, taken: ReadonlyMap<string, unknown>): Input | null {
  const { name, in: place } = parameter;
  if (typeof name !== 'string' || name.length === 0) {
    throw new DocumentError(`${at}.parameters`, 'every one needs a name');
  }
  const unusable = place === 'cookie' || (place === 'header' && !mayBeArgument(name));
  if (unusable) return null;
  if (typeof place !== 'string' || !PLACES.includes(place)) {
    throw new DocumentError(`${at}.parameters`, `${name} must be in path, query, header or cookie`);
  }
  const style = typeof parameter.style === 'string' ? parameter.style : place === 'query' ? 'form' : 'simple';
  return {
    key: keyOf(name, place, taken),
    name,
    in: place as Input['in'],
    style,
    explode: typeof parameter.explode === 'boolean' ? parameter.explode : style === 'form',
    json: isObject(parameter.content),
  };
}

/** Providers allow fewer characters than HTTP does; `body` is the body's. */
function keyOf(name: string, place: string, taken: ReadonlyMap<string, unknown>): string {
  const plain = truncate(storable(name).replace(/[^A-Za-z0-9_.-]/g, '_'), 56);
  const isFree = (key: string) => key !== 'body' && !taken.has(key);
  let key = isFree(plain) ? plain : `${place}_${plain}`;
  for (let count = 2; !isFree(key); count += 1) key = `${plain}_${count}`;
  return key;
}

function schemaOf(parameter: JsonObject): unknown {
  if (!isObject(parameter.content)) return parameter.schema ?? {};
  const [content] = Object.values(parameter.content);
  return isObject(content) ? (content.schema ?? {}) : {};
}

interface Body {
  readonly type: string;
  readonly schema: unknown;
  readonly description: unknown;
  readonly required: boolean;
}

function bodyOf(references: References, at: string, operation: JsonObject): Body | undefined {
  if (operation.requestBody === undefined) return undefined;
  const body = references.follow(operation.requestBody, `${at}.requestBody`);
  const content = isObject(body.content) ? body.content : {};
  const type = Object.keys(content).find((key) => /^application\/([\w.+-]+\+)?json(;|$)/i.test(key));
  if (type === undefined) {
    if (body.required !== true) return undefined;
    throw new DocumentError(`${at}.requestBody`, 'takes no JSON, which is all that can be sent');
  }
  const media = content[type];
  return {
    type: storable(type),
    schema: isObject(media) ? (media.schema ?? {}) : {},
    description: body.description,
    required: body.required === true,
  };
}

function described(schema: unknown, description: unknown): unknown {
  if (typeof description !== 'string' || !isObject(schema)) return schema;
  return { ...schema, description: truncate(description, MAX_DESCRIPTION_CHARS) };
}

function descriptionOf({ summary, description }: JsonObject): string {
  const parts = [summary, description].filter((part) => typeof part === 'string' && part !== '');
  return storable(truncate([...new Set(parts)].join('\n\n'), MAX_DESCRIPTION_CHARS));
}
