import { ValidationPipe, type ValidationError } from '@nestjs/common';
import { AppError, type FieldError } from '../errors';

function flatten(errors: readonly ValidationError[], path = ''): FieldError[] {
  return errors.flatMap((error) => {
    const field = path ? `${path}.${error.property}` : error.property;
    const own = Object.values(error.constraints ?? {}).map((message) => ({
      field,
      message: / should not exist$/.test(message)
        ? 'is not a known field'
        : message.replace(`${error.property} `, ''),
    }));
    return [...own, ...flatten(error.children ?? [], field)];
  });
}

/** 400 with every field that is wrong. Public wires ignore what they don't know; the admin wire refuses it. */
export function validation(unknownFields: 'ignored' | 'refused'): ValidationPipe {
  return new ValidationPipe({
    transform: true,
    whitelist: true,
    forbidNonWhitelisted: unknownFields === 'refused',
    stopAtFirstError: true,
    validationError: { target: false, value: false },
    exceptionFactory: (errors) => {
      const fields = flatten(errors);
      return new AppError('BAD_INPUT', {
        errors: fields,
        message: fields.map(({ field, message }) => `${field}: ${message}`).join('; '),
      });
    },
  });
}
