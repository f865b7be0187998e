import { ValidationPipe, type ArgumentMetadata, type ValidationError } from '@nestjs/common';
import type { ValidatorOptions } from 'class-validator';
import { AppError, badInput, type FieldError } from '../errors';

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
  if (name === 'whitelistValidation') return 'is not a known field';
  if (name === 'arrayUnique') return 'must not hold the same twice';
  if (name === 'nestedValidation') return 'must be an object';
  const each = `each value in ${property} `;
  const message = constraints[name]!;
  return message.startsWith(each)
    ? `each value ${message.slice(each.length)}`
    : message.replace(`${property} `, '');
}

/** Arrays and the like have no fields, so that each would be "required": what is wrong is the body itself. */
class Validation extends ValidationPipe {
  override async transform(value: unknown, metadata: ArgumentMetadata): Promise<unknown> {
    const isObject = typeof value === 'object' && !Array.isArray(value);
    if (metadata.type === 'body' && value !== undefined && !isObject && this.toValidate(metadata))
      throw badInput('body', 'must be a JSON object');
    return super.transform(value, metadata);
  }

  /** All that is wrong of each field, to choose from; not where a list is too long: each of its elements would be told. */
  protected override async validate(object: object, options?: ValidatorOptions): Promise<ValidationError[]> {
    const first = await super.validate(object, { ...options, stopAtFirstError: true });
    const tooLong = first.some(({ value, constraints }) => Array.isArray(value) && constraints?.arrayMaxSize);
    return first.length === 0 || tooLong ? first : super.validate(object, options);
  }
}

/** 400 with every field that is wrong. Public wires ignore what they don't know; the admin wire refuses it. */
export function validation(unknownFields: 'ignored' | 'refused'): ValidationPipe {
  return new Validation({
    transform: true,
    whitelist: true,
    forbidNonWhitelisted: unknownFields === 'refused',
    // The value tells what is missing, and goes no further than `messageOf`.
    validationError: { target: false, value: true },
    exceptionFactory: (errors) => {
      const fields = flatten(errors);
      return new AppError('BAD_INPUT', {
        errors: fields,
        message: fields.map(({ field, message }) => `${field}: ${message}`).join('; '),
      });
    },
  });
}
