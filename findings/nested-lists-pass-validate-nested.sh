#!/bin/sh
# What a check for "a list of objects" takes. Shows that class-validator 0.15.1 with class-transformer 0.5.1 walks into
# lists within the list under `@ValidateNested({ each: true })`: it checks the objects it finds there, however deep, and
# finds nothing wrong with an inner list itself. `[[]]` and `[[{"name":"a"}]]` pass for a list of objects with a name,
# whoever goes through them then finds lists without one. `[{}]` and `[7]` are refused, as one would expect.
# Exits 0 if that is still so, 1 if it has changed.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
npm init -y >/dev/null
npm install --silent --no-audit --no-fund class-validator@0.15.1 class-transformer@0.5.1 reflect-metadata@0.2.2
cat > look.cjs <<'JS'
require('reflect-metadata');
const { IsArray, IsString, ValidateNested, validateSync } = require('class-validator');
const { plainToInstance, Type } = require('class-transformer');
class Item {}
IsString()(Item.prototype, 'name');
class Order {}
IsArray()(Order.prototype, 'items');
ValidateNested({ each: true })(Order.prototype, 'items');
Type(() => Item)(Order.prototype, 'items');

const EXPECTED = [
  ['[{"name":"a"}]', 'passes'],
  ['[{}]', 'refused'],
  ['[7]', 'refused'],
  ['[[]]', 'passes'],
  ['[[[]]]', 'passes'],
  ['[[{"name":"a"}]]', 'passes'],
  ['[[{}]]', 'refused'],
];
let same = true;
for (const [text, expected] of EXPECTED) {
  const order = plainToInstance(Order, { items: JSON.parse(text) });
  const seen = validateSync(order, { forbidUnknownValues: true }).length === 0 ? 'passes' : 'refused';
  console.log(`class-validator ${require('class-validator/package.json').version}: items = ${text.padEnd(18)} ${seen}`);
  same &&= seen === expected;
}
console.log(same ? 'as described' : 'CHANGED');
process.exit(same ? 0 : 1);
JS
node look.cjs
