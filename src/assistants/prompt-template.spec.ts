import fc from 'fast-check';
import { AppError } from '../common';
import { checkTemplate, fillTemplate, valuesOf, type PromptVariable } from './prompt-template';

const variable = (more: Partial<PromptVariable> & { name: string }): PromptVariable => ({
  label: more.name,
  type: 'text',
  required: false,
  default: null,
  choices: [],
  maxLength: null,
  ...more,
});
const fields = (work: () => unknown): string[] => {
  try {
    work();
  } catch (error) {
    return (error as AppError).errors.map(({ field, message }) => `${field} ${message}`);
  }
  return [];
};

describe('a template', () => {
  it('is filled once: a value that looks like a place stays as it is', () => {
    const values = { a: '{{b}}', b: '$& $1 {{a}}', n: 7 };
    expect(fillTemplate('{{a}}|{{ b }}|{{n}}|{{{a}}}|{{missing}}|{a}', values)).toBe(
      '{{b}}|$& $1 {{a}}|7|{{{b}}}||{a}',
    );
  });

  it('leaves a place empty whose variable is named like what every object has', () => {
    const names = ['constructor', 'toString', '__proto__', 'hasOwnProperty'];
    const template = names.map((name) => `{{${name}}}`).join('|');
    const variables = names.map((name) => variable({ name }));
    expect(fillTemplate(template, valuesOf(variables, {}))).toBe('|||');
    const given = JSON.parse('{"constructor":"a","toString":"b","__proto__":"c","hasOwnProperty":"d"}');
    expect(fillTemplate(template, valuesOf(variables, given as Record<string, unknown>))).toBe('a|b|c|d');
  });

  it('holds every value as it was given, in its order', () => {
    fc.assert(
      fc.property(fc.array(fc.string({ unit: 'grapheme' }), { minLength: 1, maxLength: 5 }), (texts) => {
        const template = texts.map((_, n) => `{{v${n}}}`).join('-');
        const values = Object.fromEntries(texts.map((text, n) => [`v${n}`, text]));
        expect(fillTemplate(template, values)).toBe(texts.join('-'));
      }),
    );
  });

  it('does not grow past 200,000 characters', () => {
    expect(fields(() => fillTemplate('{{a}}'.repeat(1_000), { a: 'x'.repeat(32_000) }))).toEqual([
      'params make a prompt of more than 200000 characters',
    ]);
  });

  it('speaks of declared variables only', () => {
    const check = (template: string, ...names: string[]) =>
      fields(() =>
        checkTemplate(
          template,
          names.map((name) => variable({ name })),
        ),
      );
    expect(check('{{a}} {{ b }} {not} {{ {"json":1} }}', 'a', 'b')).toEqual([]);
    expect(check('{{a}} {{b}}', 'a')).toEqual(['promptTemplate {{b}} is no declared variable']);
    expect(check('{{}}')).toEqual(['promptTemplate {{}} is no declared variable']);
    expect(check('{{constructor}}')).toEqual(['promptTemplate {{constructor}} is no declared variable']);
  });
});

describe('values', () => {
  it('are read by the type of their variable; an empty text counts as absent', () => {
    const variables = [
      variable({ name: 'text', maxLength: 3 }),
      variable({ name: 'number', type: 'number' }),
      variable({ name: 'select', type: 'select', choices: ['a', '1'] }),
      variable({ name: 'given', default: 'byDefault' }),
      variable({ name: 'absent' }),
    ];
    const params = { text: '玫瑰\ud800', number: ' -1.5 ', select: 1, given: '', absent: null, other: 'x' };
    expect(valuesOf(variables, params)).toEqual({
      text: '玫瑰\ufffd',
      number: -1.5,
      select: '1',
      given: 'byDefault',
    });
  });

  it('of a prototype are none', () => {
    expect(fields(() => valuesOf([variable({ name: 'toString', required: true })], {}))).toEqual([
      'params.toString is required',
    ]);
  });

  it.each(['1e5', '0x10', 'Infinity', '', '1,5', '--1', '1'.repeat(16), NaN, true, {}, []])(
    'of a number: not %p',
    (value) => {
      const number = variable({ name: 'n', type: 'number', required: true });
      expect(fields(() => valuesOf([number], { n: value }))).toHaveLength(1);
    },
  );
});
