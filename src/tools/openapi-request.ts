import { isHeaderValue } from './headers';
import { isObject, type JsonObject } from './json';
import type { Input, Operation } from './openapi-document';
import { ToolFailure } from './tool-failure';

export interface OperationRequest {
  readonly url: string;
  readonly method: string;
  /** From the arguments alone, and the body's content type. */
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string | undefined;
}

/** A step of a path that servers resolve away: an argument could climb out of its place with it. */
const DOT_STEP = /(^|\/)(\.|%2e){1,2}(?=\/|$)/i;

/** The request that an operation is called with. ToolFailure naming the argument that does not fit. */
export function requestOf(baseUrl: string, operation: Operation, args: JsonObject): OperationRequest {
  const { inputs, required, bodyType } = operation;
  const known = [...inputs.map(({ key }) => key), ...(bodyType === undefined ? [] : ['body'])];
  const unknown = Object.keys(args).find((key) => !known.includes(key));
  if (unknown !== undefined) {
    throw new ToolFailure(
      `it has no argument "${unknown.slice(0, 100)}"; it takes: ${known.join(', ') || 'none'}`,
    );
  }
  const missing = required.find((key) => args[key] === undefined);
  if (missing !== undefined) throw new ToolFailure(`the argument "${missing}" is missing`);

  const given = inputs.filter(({ key }) => args[key] !== undefined);
  const at = (place: Input['in']) => given.filter((input) => input.in === place);
  const query = at('query').flatMap((input) => queryOf(input, args[input.key]));
  const hasBody = bodyType !== undefined && args.body !== undefined;
  return {
    url: `${baseUrl.replace(/\/+$/, '')}${pathOf(operation.path, at('path'), args)}${query.length > 0 ? `?${query.join('&')}` : ''}`,
    method: operation.method,
    headers: {
      ...Object.fromEntries(
        at('header').map((input) => [input.name.toLowerCase(), headerOf(input, args[input.key])]),
      ),
      ...(hasBody && { 'content-type': bodyType }),
    },
    body: hasBody ? JSON.stringify(args.body) : undefined,
  };
}

function pathOf(template: string, inputs: readonly Input[], args: JsonObject): string {
  const path = template.replace(/\{([^{}]*)\}/g, (whole, name: string) => {
    const input = inputs.find((one) => one.name === name);
    if (!input) return whole;
    const text = encoded(listed(input, args[input.key]));
    if (text === '') throw new ToolFailure(`the argument "${input.key}" must not be empty`);
    return text;
  });
  if (DOT_STEP.test(path)) throw new ToolFailure('a part of a path must not be "." or ".."');
  return path;
}

function queryOf(input: Input, value: unknown): string[] {
  const pair = (name: string, text: string) => `${encoded(name)}=${encoded(text)}`;
  if (!input.json && input.style === 'deepObject' && isObject(value)) {
    return Object.entries(value).map(([key, entry]) => pair(`${input.name}[${key}]`, textOf(entry)));
  }
  if (!input.json && input.explode && Array.isArray(value)) {
    return value.map((entry) => pair(input.name, textOf(entry)));
  }
  return [pair(input.name, listed(input, value))];
}

function headerOf(input: Input, value: unknown): string {
  const text = listed(input, value);
  if (!isHeaderValue(text)) throw new ToolFailure(`the argument "${input.key}" can not be sent as a header`);
  return text;
}

const SEPARATORS: Readonly<Record<string, string>> = { spaceDelimited: ' ', pipeDelimited: '|' };

/** An object as JSON: how it would be spread over a query is for a document to say, not for a model to use. */
function listed(input: Input, value: unknown): string {
  if (input.json) return JSON.stringify(value);
  return Array.isArray(value) ? value.map(textOf).join(SEPARATORS[input.style] ?? ',') : textOf(value);
}

const textOf = (value: unknown): string => (typeof value === 'string' ? value : JSON.stringify(value));

const encoded = (text: string): string =>
  encodeURIComponent(text.toWellFormed()).replace(
    /[!'()*]/g,
    (mark) => `%${mark.charCodeAt(0).toString(16)}`,
  );
