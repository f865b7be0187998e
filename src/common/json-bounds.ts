/** How much a JSON text may hold, whatever it weighs: what comes after parsing costs by this and not by bytes. */
export interface JsonBounds {
  /** Members of all objects together. */
  readonly members: number;
  readonly membersOfOne: number;
  /** Elements of all arrays together. */
  readonly elements: number;
  /** Objects and arrays within each other, the outermost counted. */
  readonly levels: number;
}

/** As src/config/variables.ts has them. */
export const JSON_BOUNDS: JsonBounds = {
  members: 50_000,
  membersOfOne: 5_000,
  elements: 250_000,
  levels: 100,
};

/** For what was held against bounds before. */
export const NO_JSON_BOUNDS: JsonBounds = {
  members: Infinity,
  membersOfOne: Infinity,
  elements: Infinity,
  levels: Infinity,
};

const QUOTE = 0x22;
const COMMA = 0x2c;
const COLON = 0x3a;
const BACKSLASH = 0x5c;
const OPEN_ARRAY = 0x5b;
const CLOSE_ARRAY = 0x5d;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;
const SPACE = 0x20;
/** Longer strings are searched for their end by the engine's own means. */
const SHORT = 24;
const IN_ARRAY = -1;

/**
 * What a JSON text has too much of, as words that go on after "the body …"; null when it is within bounds. It looks at
 * the text and builds nothing, so that a text that is refused has cost a pass over its characters. What is no JSON is
 * left for the parser to refuse.
 */
export function excessIn(text: string, bounds: JsonBounds): string | null {
  return isClearlyWithin(text, bounds) ? null : excessFound(text, bounds);
}

function excessFound(text: string, bounds: JsonBounds): string | null {
  /** Of every container that is open: the members of an object, or IN_ARRAY. */
  const open: number[] = [];
  let members = 0;
  let elements = 0;
  let current = 0;
  const { length } = text;
  for (let at = 0; at < length; at += 1) {
    switch (text.charCodeAt(at)) {
      case QUOTE:
        at = endOfString(text, at + 1);
        break;
      case COLON:
        members += 1;
        if (current !== IN_ARRAY) current += 1;
        if (members > bounds.members) return `has more than ${bounds.members} members`;
        if (current > bounds.membersOfOne) return `has an object of more than ${bounds.membersOfOne} members`;
        break;
      case COMMA:
        if (current === IN_ARRAY) elements += 1;
        if (elements > bounds.elements) return `has more than ${bounds.elements} array elements`;
        break;
      case OPEN_OBJECT:
        if (open.length === bounds.levels) return `is nested deeper than ${bounds.levels} levels`;
        open.push(current);
        current = 0;
        break;
      case OPEN_ARRAY:
        if (open.length === bounds.levels) return `is nested deeper than ${bounds.levels} levels`;
        open.push(current);
        current = IN_ARRAY;
        // Commas are one fewer than elements.
        while (text.charCodeAt(at + 1) <= SPACE) at += 1;
        if (text.charCodeAt(at + 1) !== CLOSE_ARRAY) elements += 1;
        if (elements > bounds.elements) return `has more than ${bounds.elements} array elements`;
        break;
      case CLOSE_OBJECT:
      case CLOSE_ARRAY:
        if (open.length === 0) return null;
        current = open.pop()!;
    }
  }
  return null;
}

/** Where the quote is that ends a string whose first character is at `from`; past the text when there is none. */
function endOfString(text: string, from: number): number {
  const { length } = text;
  let at = from;
  for (;;) {
    const near = Math.min(at + SHORT, length);
    for (; at < near; at += 1) {
      const code = text.charCodeAt(at);
      if (code === QUOTE) return at;
      // What is escaped is stepped over with its backslash, so that no escape is under way where this loop ends.
      if (code === BACKSLASH) at += 1;
    }
    const quote = text.indexOf('"', at);
    if (quote === -1) return length;
    let slashes = 0;
    while (quote - slashes > at && text.charCodeAt(quote - slashes - 1) === BACKSLASH) slashes += 1;
    if (slashes % 2 === 0) return quote;
    at = quote + 1;
  }
}

/** A text so short that it can hold too much of nothing but levels, and with too few brackets for those. */
function isClearlyWithin(text: string, { members, membersOfOne, elements, levels }: JsonBounds): boolean {
  // `"":0,` and `0,` are the shortest there are.
  if (text.length > 5 * Math.min(members, membersOfOne) || text.length > 2 * elements) return false;
  return occurrences(text, '{', levels) + occurrences(text, '[', levels) <= levels;
}

/** How often a character occurs, counted to one more than `most`. */
function occurrences(text: string, char: string, most: number): number {
  let count = 0;
  for (let at = text.indexOf(char); at !== -1 && count <= most; at = text.indexOf(char, at + 1)) count += 1;
  return count;
}

/** The same of a form's or query's text: a list of fields, so members of one object. Null when it is within bounds. */
export function excessInFields(text: string, { members, membersOfOne }: JsonBounds): string | null {
  const most = Math.min(members, membersOfOne);
  return occurrences(text, '&', most) + 1 > most ? `has more than ${most} fields` : null;
}

/** As the environment names them. */
export function jsonBoundsOf(env: {
  readonly BODY_MAX_MEMBERS: number;
  readonly BODY_MAX_OBJECT_MEMBERS: number;
  readonly BODY_MAX_ELEMENTS: number;
  readonly BODY_MAX_DEPTH: number;
}): JsonBounds {
  return {
    members: env.BODY_MAX_MEMBERS,
    membersOfOne: env.BODY_MAX_OBJECT_MEMBERS,
    elements: env.BODY_MAX_ELEMENTS,
    levels: env.BODY_MAX_DEPTH,
  };
}
