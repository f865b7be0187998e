import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { Transform } from 'class-transformer';
import {
  ArrayMaxSize,
  IsIn,
  IsInt,
  IsNumber,
  IsOptional,
  IsString,
  Matches,
  Max,
  MaxLength,
  Min,
  MinLength,
  ValidateBy,
  type ValidationOptions,
} from 'class-validator';
import { EmptyIsAbsent, IsStorableText, NoNul } from '../common/http';
import { TRANSCRIPT_FORMATS, type EmbeddingInput, type TranscriptFormat } from '../model-services';

const MAX_INPUTS = 2_048;
const MAX_INPUT_CHARS = 1_000_000;
const MAX_PROMPT_CHARS = 32_000;
const MAX_MODEL_CHARS = 400;
const MAX_USER_CHARS = 128;

/** A text, up to 2,048 texts, or the same as tokens; together at most 1,000,000 characters or tokens. */
function IsEmbeddingInput(options?: ValidationOptions): PropertyDecorator {
  return ValidateBy(
    {
      name: 'isEmbeddingInput',
      validator: {
        validate: isEmbeddingInput,
        defaultMessage: () =>
          `$property must be a text, tokens, or a list of 1 to ${MAX_INPUTS} of either, none empty, together at most ${MAX_INPUT_CHARS} characters, without NUL`,
      },
    },
    options,
  );
}

export function isEmbeddingInput(value: unknown): value is EmbeddingInput {
  if (isText(value)) return value.length <= MAX_INPUT_CHARS;
  if (isTokens(value)) return value.length <= MAX_INPUT_CHARS;
  if (!Array.isArray(value) || value.length === 0 || value.length > MAX_INPUTS) return false;
  if (!value.every(isText) && !value.every(isTokens)) return false;
  return value.reduce((sum, { length }) => sum + length, 0) <= MAX_INPUT_CHARS;
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value !== '' && !value.includes('\0');
}

function isTokens(value: unknown): value is number[] {
  return (
    Array.isArray(value) &&
    value.length > 0 &&
    value.every((one) => Number.isSafeInteger(one) && (one as number) >= 0)
  );
}

class MediaRequest {
  @ApiProperty({ description: "a model service's name or id" })
  @IsString()
  @MinLength(1)
  @MaxLength(MAX_MODEL_CHARS)
  @IsStorableText()
  model!: string;

  @ApiPropertyOptional({ maxLength: MAX_USER_CHARS })
  @EmptyIsAbsent()
  @IsOptional()
  @IsString()
  @MaxLength(MAX_USER_CHARS)
  @IsStorableText()
  user?: string;
}

export class CreateEmbeddings extends MediaRequest {
  @ApiProperty({ oneOf: [{ type: 'string' }, { type: 'array', items: {} }] })
  @IsEmbeddingInput()
  input!: EmbeddingInput;

  @ApiPropertyOptional({ enum: ['float', 'base64'], default: 'float' })
  @EmptyIsAbsent()
  @IsOptional()
  @IsIn(['float', 'base64'])
  encoding_format?: 'float' | 'base64';

  @ApiPropertyOptional({ minimum: 1, maximum: 8192 })
  @EmptyIsAbsent()
  @IsOptional()
  @IsInt()
  @Min(1)
  @Max(8_192)
  dimensions?: number;
}

/** A word that the provider knows: `1024x1024`, `hd`, `png`. */
function IsWord(): PropertyDecorator {
  return (target, key) => {
    ApiPropertyOptional({ type: String, maxLength: 32 })(target, key);
    EmptyIsAbsent()(target, key);
    IsOptional()(target, key);
    Matches(/^[\w.:-]{1,32}$/, { message: '$property must be a word of at most 32 characters' })(target, key);
  };
}

export class CreateImages extends MediaRequest {
  @ApiProperty({ maxLength: MAX_PROMPT_CHARS })
  @IsString()
  @MinLength(1)
  @MaxLength(MAX_PROMPT_CHARS)
  @NoNul()
  prompt!: string;

  @ApiPropertyOptional({ minimum: 1, maximum: 10, default: 1 })
  @EmptyIsAbsent()
  @IsOptional()
  @IsInt()
  @Min(1)
  @Max(10)
  n?: number;

  @IsWord()
  size?: string;

  @IsWord()
  quality?: string;

  @IsWord()
  style?: string;

  @IsWord()
  background?: string;

  @IsWord()
  output_format?: string;

  @ApiPropertyOptional({ enum: ['url', 'b64_json'] })
  @EmptyIsAbsent()
  @IsOptional()
  @IsIn(['url', 'b64_json'])
  response_format?: 'url' | 'b64_json';
}

/** The fields beside `file` of the form; all arrive as text. */
export class CreateTranscription extends MediaRequest {
  @ApiPropertyOptional({ example: 'en' })
  @EmptyIsAbsent()
  @IsOptional()
  @Matches(/^[A-Za-z-]{2,32}$/, { message: '$property must be a language: en, pt-BR' })
  language?: string;

  @ApiPropertyOptional({ maxLength: MAX_PROMPT_CHARS })
  @EmptyIsAbsent()
  @IsOptional()
  @IsString()
  @MaxLength(MAX_PROMPT_CHARS)
  @NoNul()
  prompt?: string;

  @ApiPropertyOptional({ minimum: 0, maximum: 1 })
  @EmptyIsAbsent()
  @Transform(({ value }: { value: unknown }) =>
    typeof value === 'string' && /^\d(\.\d{1,15})?$/.test(value) ? Number(value) : value,
  )
  @IsOptional()
  @IsNumber()
  @Min(0)
  @Max(1)
  temperature?: number;

  @ApiPropertyOptional({ enum: TRANSCRIPT_FORMATS, default: 'json' })
  @EmptyIsAbsent()
  @IsOptional()
  @IsIn(TRANSCRIPT_FORMATS)
  response_format?: TranscriptFormat;

  @ApiPropertyOptional({ enum: ['word', 'segment'], isArray: true })
  @EmptyIsAbsent()
  @Transform(({ value }: { value: unknown }) => (value === undefined ? value : [value].flat()))
  @IsOptional()
  @ArrayMaxSize(2)
  @IsIn(['word', 'segment'], { each: true })
  timestamp_granularities?: ('word' | 'segment')[];

  @ApiPropertyOptional({ enum: ['false'], description: 'a transcript comes in one piece' })
  @EmptyIsAbsent()
  @IsOptional()
  @IsIn(['false'], { message: '$property must be false: a transcript comes in one piece' })
  stream?: string;
}
