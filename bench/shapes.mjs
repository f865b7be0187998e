// What the upstream answers is told by the model's name, so that whoever asks it knows the whole text beforehand:
//   burst-<n>           n pieces as fast as the socket takes them
//   paced-<n>x<s>       n pieces a second for s seconds, one write each
//   open-<n>            n pieces at once, then the stream stays open until it is released

const WORDS = [
  'The ',
  'quick',
  ' brown',
  ' fox',
  ',\n',
  '必胜',
  '中国',
  ' "quoted"',
  ' naïve',
  ' 🙂',
  ' \\',
  ' and',
  ' so',
  ' on',
  '. ',
];

export function parseShape(model) {
  const [, kind, a, b] = /^(burst|paced|open)-(\d+)(?:x(\d+))?$/.exec(model) ?? [];
  if (!kind) throw new Error(`no such shape: ${model}`);
  const pieces = kind === 'paced' ? Number(a) * Number(b) : Number(a);
  return { kind, pieces, everyMs: kind === 'paced' ? 1000 / Number(a) : 0 };
}

export const pieceAt = (index) => WORDS[index % WORDS.length];

const texts = new Map();
/** The whole answer of a shape. */
export function textOf(model) {
  if (!texts.has(model)) {
    let text = '';
    for (let i = 0; i < parseShape(model).pieces; i += 1) text += pieceAt(i);
    texts.set(model, text);
  }
  return texts.get(model);
}
