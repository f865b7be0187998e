import { badInput } from '../common';
import { isHeaderValue, mayConfigure } from './headers';
import { isObject, type JsonObject } from './json';
import { operationsOf, serverOf } from './openapi-document';
import { DocumentError } from './openapi-schema';
import { MAX_TOOLS } from './tool';
import type { McpToolSource, OpenApiToolSource, ToolSource } from './tool-source';

const MAX_SOURCES = 16;
const MAX_SPEC_CHARS = 200_000;
const MAX_TOTAL_CHARS = 400_000;
const MAX_URL_CHARS = 2_000;
const MAX_HEADERS = 20;
const MAX_HEADERS_CHARS = 16_384;
const MAX_TOOL_NAME_CHARS = 128;
const FIELDS = {
  mcp: ['type', 'name', 'url', 'headers', 'allow'],
  openapi: ['type', 'name', 'spec', 'baseUrl', 'headers', 'allow'],
} as const;

/** Tool sources as an operator wrote them, all but where their hosts lead. BAD_INPUT naming the field that is wrong. */
export function checkedSources(value: unknown): ToolSource[] {
  if (!Array.isArray(value)) throw badInput('tools', 'must be an array');
  if (value.length > MAX_SOURCES) throw badInput('tools', `must hold at most ${MAX_SOURCES} sources`);
  if (sizeOf(value) > MAX_TOTAL_CHARS) {
    throw badInput('tools', `must be at most ${MAX_TOTAL_CHARS} characters as JSON`);
  }
  const sources = value.map((source, index) => checkedSource(`tools.${index}`, source));
  sources.forEach(({ name }, index) => {
    const first = sources.findIndex((source) => source.name === name);
    if (first < index) throw badInput(`tools.${index}.name`, `is also the name of tools.${first}`);
  });
  return sources;
}

/** Where the source's requests go, and the field that says so. */
export function endpointOf(index: number, source: ToolSource): { field: string; url: string } {
  if (source.type === 'mcp') return { field: `tools.${index}.url`, url: source.url };
  if (source.baseUrl !== undefined) return { field: `tools.${index}.baseUrl`, url: source.baseUrl };
  return { field: `tools.${index}.spec.servers`, url: serverOf(source.spec) ?? '' };
}

/** Its characters as JSON; BAD_INPUT for what can not be stored. */
function sizeOf(value: unknown): number {
  const storable = (text: unknown) => {
    if (typeof text !== 'string' || (!text.includes('\0') && text.isWellFormed())) return;
    throw badInput('tools', 'must hold neither NUL nor lone surrogates');
  };
  try {
    return JSON.stringify(value, (key, entry: unknown) => {
      storable(key);
      storable(entry);
      return entry;
    }).length;
  } catch (error) {
    if (error instanceof RangeError) throw badInput('tools', 'is nested too deeply');
    throw error;
  }
}

function checkedSource(at: string, value: unknown): ToolSource {
  if (!isObject(value)) throw badInput(at, 'must be an object');
  const { type, name } = value;
  if (type !== 'mcp' && type !== 'openapi') throw badInput(`${at}.type`, 'must be "mcp" or "openapi"');
  const unknown = Object.keys(value).find((key) => !(FIELDS[type] as readonly string[]).includes(key));
  if (unknown !== undefined) throw badInput(`${at}.${unknown}`, 'is not a known field');
  if (typeof name !== 'string' || !/^[A-Za-z0-9_-]{1,32}$/.test(name)) {
    throw badInput(`${at}.name`, 'must be 1 to 32 letters, digits, "_" and "-"');
  }
  return type === 'mcp' ? checkedMcp(at, name, value) : checkedOpenApi(at, name, value);
}

function checkedMcp(at: string, name: string, value: JsonObject): McpToolSource {
  return { type: 'mcp', name, url: checkedUrl(`${at}.url`, value.url), ...checkedOptions(at, value) };
}

function checkedOpenApi(at: string, name: string, value: JsonObject): OpenApiToolSource {
  const { spec } = value;
  if (!isObject(spec)) throw badInput(`${at}.spec`, 'must be an OpenAPI document as an object');
  if (JSON.stringify(spec).length > MAX_SPEC_CHARS) {
    throw badInput(`${at}.spec`, `must be at most ${MAX_SPEC_CHARS} characters as JSON`);
  }
  const baseUrl = value.baseUrl === undefined ? undefined : checkedUrl(`${at}.baseUrl`, value.baseUrl);
  if (baseUrl === undefined) checkedUrl(`${at}.spec.servers`, serverOf(spec), 'its first one');
  const checkedBase = baseUrl ?? serverOf(spec) ?? '';
  if (new URL(checkedBase).search !== '') {
    throw badInput(`${at}.${baseUrl === undefined ? 'spec.servers' : 'baseUrl'}`, 'must have no query');
  }
  const options = checkedOptions(at, value);
  const offered = checkedOperations(at, spec, options.allow);
  options.allow?.forEach((id, index) => {
    if (!offered.includes(id))
      throw badInput(`${at}.allow.${index}`, 'is not the operationId of an operation');
  });
  return { type: 'openapi', name, spec, ...(baseUrl !== undefined && { baseUrl }), ...options };
}

function checkedOperations(at: string, spec: JsonObject, allow?: readonly string[]): string[] {
  try {
    const names = operationsOf(spec, allow).map(({ name }) => name);
    if (names.length === 0) throw new DocumentError('paths', 'has no operation with an operationId');
    return names;
  } catch (error) {
    if (error instanceof DocumentError) throw badInput(`${at}.spec.${error.at}`, error.message);
    throw error;
  }
}

function checkedOptions(
  at: string,
  { headers, allow }: JsonObject,
): Pick<ToolSource & { headers?: Record<string, string> }, 'headers' | 'allow'> {
  return {
    ...(headers !== undefined && { headers: checkedHeaders(`${at}.headers`, headers) }),
    ...(allow !== undefined && { allow: checkedAllow(`${at}.allow`, allow) }),
  };
}

function checkedUrl(field: string, value: unknown, what = ''): string {
  const problem = urlProblem(value);
  if (problem) throw badInput(field, what ? `${what} ${problem}` : problem);
  return value as string;
}

function urlProblem(value: unknown): string | null {
  if (typeof value !== 'string' || value.length > MAX_URL_CHARS || !URL.canParse(value)) {
    return 'must be a URL';
  }
  const { protocol, username, password, hash } = new URL(value);
  if (protocol !== 'https:' && protocol !== 'http:') return 'must be an http or https URL';
  if (username !== '' || password !== '') return 'must not hold credentials; use headers';
  return hash === '' ? null : 'must have no fragment';
}

function checkedHeaders(field: string, value: unknown): Record<string, string> {
  if (!isObject(value)) throw badInput(field, 'must be an object of texts');
  const entries = Object.entries(value);
  if (entries.length > MAX_HEADERS) throw badInput(field, `must hold at most ${MAX_HEADERS}`);
  if (JSON.stringify(value).length > MAX_HEADERS_CHARS)
    throw badInput(field, `must be at most ${MAX_HEADERS_CHARS} characters as JSON`);
  const names = new Set(entries.map(([name]) => name.toLowerCase()));
  if (names.size < entries.length) throw badInput(field, 'must name each header once');
  for (const [name, text] of entries) {
    if (!mayConfigure(name))
      throw badInput(`${field}.${name.slice(0, 100)}`, 'is not a header that may be set');
    if (typeof text !== 'string' || !isHeaderValue(text) || text.trim() !== text) {
      throw badInput(`${field}.${name}`, "must be a header's value: at most 4096 characters of Latin-1");
    }
  }
  return Object.fromEntries(entries) as Record<string, string>;
}

function checkedAllow(field: string, value: unknown): string[] {
  if (!Array.isArray(value) || value.length === 0 || value.length > MAX_TOOLS) {
    throw badInput(field, `must be an array of 1 to ${MAX_TOOLS} names`);
  }
  value.forEach((name, index) => {
    if (typeof name !== 'string' || name.length === 0 || name.length > MAX_TOOL_NAME_CHARS) {
      throw badInput(`${field}.${index}`, `must be 1 to ${MAX_TOOL_NAME_CHARS} characters`);
    }
  });
  return value as string[];
}
