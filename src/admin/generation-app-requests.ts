import { ApiProperty, ApiPropertyOptional, PartialType } from '@nestjs/swagger';
import { Type } from 'class-transformer';
import {
  ArrayMaxSize,
  IsArray,
  IsBoolean,
  IsIn,
  IsInt,
  IsOptional,
  IsString,
  Length,
  Matches,
  Max,
  Min,
  ValidateBy,
  ValidateNested,
} from 'class-validator';
import { MAX_VALUE_CHARS, VARIABLE_NAME, VARIABLE_TYPES, type VariableType } from '../assistants';
import { IsEntityId, IsJsonObject, IsStorableText, NoNul, Present } from '../common/http';
import { Named } from './requests';

const MAX_JSON_CHARS = 20_000;
const MAX_TEMPLATE_CHARS = 100_000;
const MAX_VARIABLES = 50;
const MAX_CHOICES = 200;

/** A text or a number; null: none. */
function IsDefaultValue(): PropertyDecorator {
  return ValidateBy({
    name: 'isDefaultValue',
    validator: {
      validate: (value) =>
        value === null ||
        (typeof value === 'number' && Number.isFinite(value)) ||
        (typeof value === 'string' && value.isWellFormed() && !value.includes('\0')),
      defaultMessage: () => '$property must be a text or a number',
    },
  });
}

export class VariableInput {
  @ApiProperty({ example: 'topic' })
  @IsString()
  @Matches(VARIABLE_NAME, {
    message: '$property must be letters, digits and underscores, at most 64, and begin with no digit',
  })
  name!: string;

  @ApiPropertyOptional({ maxLength: 200, description: 'default: its name' })
  @Present()
  @IsString()
  @Length(1, 200)
  @IsStorableText()
  label?: string;

  @ApiProperty({ enum: VARIABLE_TYPES })
  @IsIn(VARIABLE_TYPES)
  type!: VariableType;

  @ApiPropertyOptional({ default: false })
  @Present()
  @IsBoolean()
  required?: boolean;

  @ApiPropertyOptional({ oneOf: [{ type: 'string' }, { type: 'number' }], nullable: true })
  @Present()
  @IsDefaultValue()
  default?: string | number | null;

  @ApiPropertyOptional({ type: [String], description: 'of a select' })
  @Present()
  @IsArray()
  @ArrayMaxSize(MAX_CHOICES)
  @IsString({ each: true })
  @Length(1, 500, { each: true })
  @IsStorableText({ each: true })
  choices?: string[];

  @ApiPropertyOptional({ nullable: true, minimum: 1, maximum: MAX_VALUE_CHARS })
  @IsOptional()
  @IsInt()
  @Min(1)
  @Max(MAX_VALUE_CHARS)
  maxLength?: number | null;
}

export class CreateGenerationApp extends Named {
  @ApiProperty({ enum: [0, 1], description: '0 text, 1 image' })
  @IsIn([0, 1])
  type!: 0 | 1;

  @ApiProperty({ example: 'Write a poem about {{topic}}.', maxLength: MAX_TEMPLATE_CHARS })
  @IsString()
  @Length(1, MAX_TEMPLATE_CHARS)
  @NoNul()
  promptTemplate!: string;

  @ApiPropertyOptional({ type: [VariableInput] })
  @Present()
  @IsArray()
  @ArrayMaxSize(MAX_VARIABLES)
  @ValidateNested({ each: true })
  @Type(() => VariableInput)
  variables?: VariableInput[];

  @ApiProperty({ description: 'a service of the same type that this tenant may use' })
  @IsEntityId()
  modelServiceId!: string;

  @ApiPropertyOptional({ type: Object, description: 'over those of the model service: temperature, size, …' })
  @Present()
  @IsJsonObject(MAX_JSON_CHARS)
  parameters?: Record<string, unknown>;
}
export class UpdateGenerationApp extends PartialType(CreateGenerationApp, { skipNullProperties: false }) {}
