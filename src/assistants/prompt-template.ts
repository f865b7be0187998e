import { AppError, badInput, wellFormed, type FieldError } from '../common';

export const VARIABLE_TYPES = ['text', 'paragraph', 'select', 'number'] as const;
export type VariableType = (typeof VARIABLE_TYPES)[number];

/** What an app asks its user for. */
export interface PromptVariable {
  readonly name: string;
  readonly label: string;
  readonly type: VariableType;
  readonly required: boolean;
  /** Null: none. */
  readonly default: string | number | null;
  /** Of a `select`; else empty. */
  readonly choices: readonly string[];
  /** UTF-16 units of a `text` or `paragraph`; null: as long as any value may be. */
  readonly maxLength: number | null;
}

export type PromptValues = Readonly<Record<string, string | number>>;

export const VARIABLE_NAME = /^[A-Za-z_][A-Za-z0-9_]{0,63}$/;
export const MAX_VALUE_CHARS = 32_000;
const MAX_PROMPT_CHARS = 200_000;
const MAX_QUOTED_CHARS = 40;
const NUMBER = /^-?\d{1,15}(\.\d{1,15})?$/;
const PLACE = /\{\{([^{}]*)\}\}/g;

/** BAD_INPUT with everything that does not fit together: names, choices, defaults, and what the template speaks of. */
export function checkTemplate(template: string, variables: readonly PromptVariable[]): void {
  const names = variables.map(({ name }) => name);
  const errors: FieldError[] = variables.flatMap((variable, index) => {
    const about = (field: string, message: string) => [{ field: `variables.${index}.${field}`, message }];
    if (names.indexOf(variable.name) < index) return about('name', "is already another variable's");
    if (variable.type === 'select' && variable.choices.length === 0)
      return about('choices', 'are needed for a select');
    if (new Set(variable.choices).size < variable.choices.length)
      return about('choices', 'must be different from each other');
    if (variable.default === null || variable.default === '') return [];
    const wrong = valueOf(variable, variable.default);
    return 'message' in wrong ? about('default', wrong.message) : [];
  });
  const unknown = [...template.matchAll(PLACE)].find(([, name = '']) => !names.includes(name.trim()));
  if (unknown) {
    const quoted = unknown[0].slice(0, MAX_QUOTED_CHARS);
    errors.push({ field: 'promptTemplate', message: `${quoted} is no declared variable` });
  }
  refuse(errors);
}

/**
 * The values that a request's `params` give the variables; what is no variable is ignored, an empty string counts as
 * absent. BAD_INPUT naming each `params.<name>` that is missing or wrong.
 */
export function valuesOf(
  variables: readonly PromptVariable[],
  params: Readonly<Record<string, unknown>>,
): PromptValues {
  const values: [string, string | number][] = [];
  const errors: FieldError[] = [];
  for (const variable of variables) {
    const given = Object.hasOwn(params, variable.name) ? params[variable.name] : undefined;
    const value = isAbsent(given) ? variable.default : given;
    if (isAbsent(value)) {
      if (variable.required) errors.push({ field: `params.${variable.name}`, message: 'is required' });
      continue;
    }
    const read = valueOf(variable, value);
    if ('message' in read) errors.push({ field: `params.${variable.name}`, message: read.message });
    else values.push([variable.name, read.value]);
  }
  refuse(errors);
  return Object.fromEntries(values);
}

/** Every place is filled once: a value that looks like a place stays as it is. BAD_INPUT when it grows past any model. */
export function fillTemplate(template: string, values: PromptValues): string {
  let length = 0;
  const filled = template.replace(PLACE, (_, place: string) => {
    const name = place.trim();
    const value = Object.hasOwn(values, name) ? String(values[name]) : '';
    length += value.length;
    // Before the text is made: a place can be there a thousand times.
    return length > MAX_PROMPT_CHARS ? '' : value;
  });
  if (length > MAX_PROMPT_CHARS || filled.length > MAX_PROMPT_CHARS)
    throw badInput('params', `make a prompt of more than ${MAX_PROMPT_CHARS} characters`);
  return filled;
}

function valueOf(
  { type, choices, maxLength }: PromptVariable,
  value: unknown,
): { readonly value: string | number } | { readonly message: string } {
  if (type === 'number') {
    if (typeof value === 'number' && Number.isFinite(value)) return { value };
    const text = typeof value === 'string' ? value.trim() : '';
    return NUMBER.test(text) ? { value: Number(text) } : { message: 'must be a number' };
  }
  if (typeof value !== 'string' && typeof value !== 'number') return { message: 'must be a text' };
  const text = wellFormed(String(value));
  if (type === 'select')
    return choices.includes(text) ? { value: text } : { message: 'must be one of the choices' };
  const most = maxLength ?? MAX_VALUE_CHARS;
  if (text.length > most) return { message: `must be at most ${most} characters long` };
  return text.includes('\0') ? { message: 'must not contain NUL' } : { value: text };
}

const isAbsent = (value: unknown): boolean => value === undefined || value === null || value === '';

function refuse(errors: readonly FieldError[]): void {
  if (errors.length === 0) return;
  throw new AppError('BAD_INPUT', {
    errors,
    message: errors.map(({ field, message }) => `${field}: ${message}`).join('; '),
  });
}
