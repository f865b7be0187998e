import { ValidationPipe, type ArgumentMetadata, type ValidationError } from '@nestjs/common';
import { validate } from 'class-validator';
import { AppError, badInput, type FieldError } from '../errors';
import { pickKnown, type Refused } from './known-fields';

/** Checks of what a value is at all, most telling first: the others say nothing to whoever sent another type. */
const OF_TYPE: readonly string[] = [
  'isDefined',
  'isArray',
  'isObject',
  'nestedValidation',
  'isString',
  'isBoolean',
  'isInt',
  'isNumber',
  'isDate',
];

function flatten(errors: readonly ValidationError[], path = ''): FieldError[] {
  return errors.flatMap((error) => {
    const field = path ? `${path}.${error.property}` : error.property;
    const message = messageOf(error);
    // What is in it is of no interest while it is wrong itself.
    return message === null ? flatten(error.children ?? [], field) : [{ field, message }];
  });
}

/** The one thing to say of a field, null: what is wrong is further in. */
function messageOf(error: ValidationError): string | null {
  const { property, constraints = {} } = error;
  const names = Object.keys(constraints);
  if (names.length === 0) return null;
  // Whoever may leave it out does not come here.
  if ('value' in error && error.value === undefined) return 'is required';
  const name = OF_TYPE.find((one) => names.includes(one)) ?? names[0]!;
  if (name === 'arrayUnique') return 'must not hold the same twice';
  if (name === 'nestedValidation') return 'must be an object';
  const each = `each value in ${property} `;
  const message = constraints[name]!;
  return message.startsWith(each)
    ? `each value ${message.slice(each.length)}`
    : message.replace(`${property} `, '');
}

/**
 * First the fields that are known, then the checks: what a client sends besides costs neither. Lists over their length
 * are refused before anything looks at their elements.
 */
class Validation extends ValidationPipe {
  constructor(private readonly unknownFields: 'ignored' | 'refused') {
    super({ transform: true });
  }

  override async transform(value: unknown, metadata: ArgumentMetadata): Promise<unknown> {
    const { metatype } = metadata;
    if (!metatype || !this.toValidate(metadata)) return super.transform(value, metadata);
    const given = value ?? {};
    // Arrays and the like have no fields, so that each would be "required": what is wrong is the value itself.
    if (typeof given !== 'object' || Array.isArray(given))
      throw badInput(metadata.data ?? metadata.type, 'must be a JSON object');
    const refused: Refused = { unknown: [], wrong: [] };
    const picked = pickKnown(metatype as new () => object, given, refused);
    const unknown = this.unknownFields === 'refused' ? refused.unknown : [];
    const wrong = refused.wrong.length > 0 ? refused.wrong : flatten(await errorsOf(picked));
    if (unknown.length + wrong.length > 0) throw badInputs([...unknown, ...wrong]);
    return picked;
  }
}

/** All that is wrong of each field, to choose from. */
async function errorsOf(object: object): Promise<ValidationError[]> {
  // The value tells what is missing, and goes no further than `messageOf`.
  const options = { forbidUnknownValues: false, validationError: { target: false, value: true } };
  const first = await validate(object, { ...options, stopAtFirstError: true });
  return first.length === 0 ? first : validate(object, options);
}

function badInputs(errors: readonly FieldError[]): AppError {
  return new AppError('BAD_INPUT', {
    errors,
    message: errors.map(({ field, message }) => `${field}: ${message}`).join('; '),
  });
}

/** 400 with every field that is wrong. Public wires ignore what they don't know; the admin wire refuses it. */
export function validation(unknownFields: 'ignored' | 'refused'): ValidationPipe {
  return new Validation(unknownFields);
}
