import { Transform, Type } from 'class-transformer';
import {
  ArrayMaxSize,
  ArrayUnique,
  IsArray,
  IsDefined,
  IsIn,
  IsInt,
  IsObject,
  IsOptional,
  IsString,
  Length,
  Matches,
  Max,
  MaxLength,
  Min,
  ValidateNested,
} from 'class-validator';
import type { AppError } from '../errors';
import { NoNul } from './constraints';
import { validation } from './validation';

class Part {
  @IsString()
  @Length(1, 5)
  name!: string;
}

class Input {
  @IsString()
  @Length(1, 5)
  @NoNul()
  name!: string;

  @IsOptional()
  @IsInt()
  @Min(1)
  @Max(9)
  count?: number;

  @IsOptional()
  @IsArray()
  @ArrayMaxSize(3)
  @IsString({ each: true })
  @MaxLength(3, { each: true })
  @ArrayUnique()
  tags?: string[];

  @IsOptional()
  @IsArray()
  @Matches(/^\d+$/, { each: true, message: '$property must hold ids' })
  ids?: string[];

  @IsOptional()
  @IsIn(['a', 'b'])
  kind?: string;

  @IsOptional()
  @IsArray()
  @ArrayMaxSize(2)
  @ValidateNested({ each: true })
  @Type(() => Part)
  parts?: Part[];

  @IsOptional()
  @IsDefined()
  @IsObject()
  @ValidateNested()
  @Type(() => Part)
  part?: Part;
}

class Optionals {
  @IsOptional()
  @IsString()
  name?: string;
}

class Free {
  @IsObject()
  anything!: object;

  @IsOptional()
  @IsArray()
  @IsString({ each: true })
  @ArrayUnique()
  @ArrayMaxSize(2)
  list?: string[];

  @IsOptional()
  @Transform(({ value }: { value: unknown }) => (value === '' ? undefined : value))
  limit?: number = 50;
}

/** Whoever looks for anything in it fails. */
const untouchable = (): object =>
  new Proxy(
    {},
    {
      get: () => {
        throw new Error('looked at');
      },
      ownKeys: () => {
        throw new Error('looked at');
      },
    },
  );

async function said(value: unknown, metatype: new () => object = Input): Promise<string> {
  try {
    await validation('refused').transform(value, { type: 'body', metatype });
  } catch (error) {
    return (error as AppError).message;
  }
  return 'nothing';
}

describe('what is said of a wrong field', () => {
  it.each<[string, object, string]>([
    ['a missing one', {}, 'name: is required'],
    ['null', { name: null }, 'name: must be a string'],
    ['another type', { name: 7 }, 'name: must be a string'],
    ['a short one', { name: '' }, 'name: must be longer than or equal to 1 characters'],
    ['a long one', { name: 'x'.repeat(6) }, 'name: must be shorter than or equal to 5 characters'],
    ['NUL', { name: 'a\0' }, 'name: must not contain NUL'],
    ['a text for a number', { name: 'x', count: 'many' }, 'count: must be an integer number'],
    ['a number out of range', { name: 'x', count: 10 }, 'count: must not be greater than 9'],
    ['no array', { name: 'x', tags: 'a' }, 'tags: must be an array'],
    ['an array of another type', { name: 'x', tags: [7] }, 'tags: each value must be a string'],
    [
      'a long element',
      { name: 'x', tags: ['aaaa'] },
      'tags: each value must be shorter than or equal to 3 characters',
    ],
    ['the same twice', { name: 'x', tags: ['a', 'a'] }, 'tags: must not hold the same twice'],
    ['a message of its own', { name: 'x', ids: ['a'] }, 'ids: must hold ids'],
    ['no choice', { name: 'x', kind: 'c' }, 'kind: must be one of the following values: a, b'],
    ['an unknown one', { name: 'x', nmae: 'y' }, 'nmae: is not a known field'],
    ['one within', { name: 'x', parts: [{ name: 'y' }, {}] }, 'parts.1.name: is required'],
    ['a list within, where an object is meant', { name: 'x', parts: [[]] }, 'parts.0: must be an object'],
    ['no object within', { name: 'x', parts: [7] }, 'parts.0: must be an object'],
    ['no object', { name: 'x', part: 7 }, 'part: must be an object'],
    [
      'too many that are wrong, too',
      { name: 'x', parts: [{}, {}, {}] },
      'parts: must contain no more than 2 elements',
    ],
    ['two', { count: 0 }, 'name: is required; count: must not be less than 1'],
  ])('%s', async (_, value, message) => {
    expect(await said(value)).toBe(message);
  });

  it.each([[[]], [[{ name: 'x' }]], ['text'], [7], [true], ['']])('a body that is %j', async (value) => {
    expect(await said(value)).toBe('body: must be a JSON object');
    expect(await said(value, Optionals)).toBe('body: must be a JSON object');
  });

  it('of many unknown ones the first, and not more of a name than one can read', async () => {
    const many = Object.fromEntries(Array.from({ length: 50 }, (_, i) => [`f${i}${'x'.repeat(i)}`, i]));
    const names = (await said({ name: 'x', ...many })).split('; ');
    expect(names).toHaveLength(20);
    expect(names[0]).toBe('f0: is not a known field');
    expect(await said({ name: 'x', ['y'.repeat(61)]: 1 })).toBe(`${'y'.repeat(60)}…: is not a known field`);
  });

  it('an unknown one within', async () => {
    expect(await said({ name: 'x', parts: [{ name: 'y' }, { name: 'z', nmae: 'q' }] })).toBe(
      'parts.1.nmae: is not a known field',
    );
  });

  it('a body that is not there', async () => {
    expect(await said(undefined)).toBe('name: is required');
    expect(await said(undefined, Optionals)).toBe('nothing');
  });

  it('never with the value', async () => {
    const told = validation('refused').transform(
      { name: ['secret-1'], other: 'secret-2' },
      { type: 'body', metatype: Input },
    );
    const error = await told.catch((thrown: unknown) => thrown);
    expect(JSON.stringify(error) + String(error)).not.toContain('secret-');
  });
});

describe('what is looked at', () => {
  const checked = (value: unknown, unknownFields: 'ignored' | 'refused' = 'ignored') =>
    validation(unknownFields).transform(value, { type: 'body', metatype: Free });

  it('not what is in a field that nobody knows', async () => {
    const anything = {};
    const given = { anything, other: untouchable(), constructor: untouchable(), then: untouchable() };
    const free = (await checked(given)) as Free;
    expect(free).toBeInstanceOf(Free);
    expect(Object.keys(free).sort()).toEqual(['anything', 'limit', 'list']);
    await expect(checked(given, 'refused')).rejects.toThrow('other: is not a known field');
  });

  it('not what is in a field that takes any object', async () => {
    const anything = { constructor: 1, then: 2, deep: untouchable() };
    expect(((await checked({ anything })) as Free).anything).toBe(anything);
  });

  it('not the elements of a list that is too long', async () => {
    const list = [untouchable(), untouchable(), untouchable()];
    await expect(checked({ anything: {}, list })).rejects.toThrow(
      'list: must contain no more than 2 elements',
    );
  });

  it('a default stands for what is absent, and gives way to what a transform says', async () => {
    expect(((await checked({ anything: {} })) as Free).limit).toBe(50);
    expect(((await checked({ anything: {}, limit: '' })) as Free).limit).toBeUndefined();
  });
});
