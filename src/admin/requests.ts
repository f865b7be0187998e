import { ApiProperty, ApiPropertyOptional, PartialType } from '@nestjs/swagger';
import { Transform, Type } from 'class-transformer';
import {
  ArrayMaxSize,
  IsArray,
  IsBoolean,
  IsDate,
  IsIn,
  IsInt,
  IsNumber,
  IsObject,
  IsOptional,
  IsString,
  IsUrl,
  Length,
  Matches,
  Max,
  MaxLength,
  Min,
  registerDecorator,
  ValidateBy,
  ValidateIf,
  ValidateNested,
} from 'class-validator';
import { isIP } from 'node:net';
import { SCOPES, type Scope } from '../common';
import { QUOTA_NAMES } from '../usage';
import { EmptyIsAbsent, IsEntityId, IsJsonObject, IsPageLimit, NoNul } from '../common/http';

const MAX_JSON_CHARS = 20_000;
const MAX_PROMPT_CHARS = 200_000;
const MAX_QUOTA = 1_000_000_000_000_000;

const Present = () => ValidateIf((_, value) => value !== undefined);

/** Quotas among the limits are numbers from 0: one that is not would limit nothing. */
function HoldsQuotas(): PropertyDecorator {
  return ValidateBy({
    name: 'holdsQuotas',
    validator: {
      validate: (value: unknown) =>
        Object.entries(value ?? {}).every(
          ([name, limit]) =>
            !QUOTA_NAMES.has(name) || (typeof limit === 'number' && limit >= 0 && limit <= MAX_QUOTA),
        ),
      defaultMessage: () => `$property must hold quotas as numbers from 0 to ${MAX_QUOTA}`,
    },
  });
}

/** An ISO 8601 time becomes a Date; anything else is left for the checks to refuse. */
export function ToDate(): PropertyDecorator {
  return Transform(({ value }: { value: unknown }): unknown =>
    typeof value === 'string' && !Number.isNaN(Date.parse(value)) ? new Date(value) : value,
  );
}

/** An IP address or a CIDR range. */
function IsAddressOrRange(): PropertyDecorator {
  return (target, propertyName) =>
    registerDecorator({
      name: 'isAddressOrRange',
      target: target.constructor,
      propertyName: propertyName as string,
      validator: {
        validate: (values: unknown) =>
          Array.isArray(values) &&
          values.every((value) => {
            if (typeof value !== 'string') return false;
            const [base = '', prefix, ...rest] = value.split('/');
            const family = isIP(base);
            if (family === 0 || rest.length > 0) return false;
            return (
              prefix === undefined ||
              (/^\d{1,3}$/.test(prefix) && Number(prefix) <= (family === 4 ? 32 : 128))
            );
          }),
        defaultMessage: () => '$property must hold IP addresses or CIDR ranges',
      },
    });
}

export class PageQuery {
  @IsPageLimit(200, 50)
  limit: number = 50;

  @ApiPropertyOptional({ description: 'the `nextCursor` of the page before' })
  @EmptyIsAbsent()
  @IsOptional()
  @IsEntityId()
  cursor?: string;
}

export class CreateTenant {
  @ApiProperty({ maxLength: 200 })
  @IsString()
  @Length(1, 200)
  @NoNul()
  name!: string;

  @ApiPropertyOptional({ enum: ['active', 'suspended'], default: 'active' })
  @Present()
  @IsIn(['active', 'suspended'])
  status?: 'active' | 'suspended';

  @ApiPropertyOptional({ type: [String], description: 'Browser origins; empty: any.' })
  @Present()
  @IsArray()
  @ArrayMaxSize(100)
  @Matches(/^https?:\/\/[\x21-\x7e]{1,300}$/, {
    each: true,
    message: '$property must hold origins such as https://app.example',
  })
  allowedOrigins?: string[];

  @ApiPropertyOptional({ enum: ['open', 'managed'], default: 'open' })
  @Present()
  @IsIn(['open', 'managed'])
  groupPolicy?: 'open' | 'managed';

  @ApiPropertyOptional({ type: Object, description: 'Overrides of the installation’s limits, by name.' })
  @Present()
  @IsObject()
  @IsJsonObject(MAX_JSON_CHARS)
  @HoldsQuotas()
  limits?: Record<string, number>;

  @ApiPropertyOptional({ nullable: true, minimum: 1, maximum: 36500 })
  @IsOptional()
  @IsInt()
  @Min(1)
  @Max(36_500)
  retentionDays?: number | null;
}
export class UpdateTenant extends PartialType(CreateTenant, { skipNullProperties: false }) {}

export class CreateApiKey {
  @ApiProperty({ maxLength: 200 })
  @IsString()
  @Length(1, 200)
  @NoNul()
  name!: string;

  @ApiProperty({ enum: SCOPES, isArray: true })
  @IsArray()
  @ArrayMaxSize(SCOPES.length)
  @IsIn(SCOPES, { each: true })
  scopes!: Scope[];

  @ApiPropertyOptional({ nullable: true, format: 'date-time' })
  @IsOptional()
  @ToDate()
  @IsDate({ message: '$property must be an ISO 8601 time' })
  expiresAt?: Date | null;

  @ApiPropertyOptional({ type: [String], description: 'IP addresses or CIDR ranges; empty: any.' })
  @Present()
  @IsArray()
  @ArrayMaxSize(100)
  @IsAddressOrRange()
  allowedAddresses?: string[];

  @ApiPropertyOptional({ type: Object })
  @Present()
  @IsObject()
  @IsJsonObject(MAX_JSON_CHARS)
  @HoldsQuotas()
  limits?: Record<string, number>;
}
export class UpdateApiKey extends PartialType(CreateApiKey, { skipNullProperties: false }) {}

export class ProviderCredentialInput {
  @ApiProperty()
  @IsString()
  @Length(1, 2_000)
  @NoNul()
  apiKey!: string;

  @ApiPropertyOptional({ default: 1, minimum: 0, type: Number })
  @Present()
  @IsNumber()
  @Min(0)
  @Max(1_000)
  weight: number = 1;
}

const MAX_TIMEOUT_MS = 3_600_000;

export class CreateProvider {
  @ApiProperty({ maxLength: 200 })
  @IsString()
  @Length(1, 200)
  @NoNul()
  name!: string;

  @ApiProperty({ enum: ['openai-compatible', 'builtin'] })
  @IsIn(['openai-compatible', 'builtin'])
  kind!: 'openai-compatible' | 'builtin';

  @ApiPropertyOptional({ nullable: true })
  @IsOptional()
  @IsString()
  @MaxLength(100)
  @NoNul()
  preset?: string | null;

  @ApiPropertyOptional({
    example: 'https://api.example.com/v1',
    description: 'needed unless kind is builtin',
  })
  @ValidateIf((input: CreateProvider) => input.kind === 'openai-compatible' || input.baseUrl !== undefined)
  @IsString()
  @MaxLength(2_000)
  @IsUrl({ protocols: ['http', 'https'], require_protocol: true, require_tld: false, disallow_auth: true })
  baseUrl?: string;

  @ApiPropertyOptional({ type: [ProviderCredentialInput] })
  @Present()
  @IsArray()
  @ArrayMaxSize(20)
  @ValidateNested({ each: true })
  @Type(() => ProviderCredentialInput)
  credentials?: ProviderCredentialInput[];

  @ApiPropertyOptional({
    type: Object,
    description: 'Sent with every request; values are kept like credentials.',
  })
  @Present()
  @IsHeaders()
  headers?: Record<string, string>;

  @ApiPropertyOptional({ type: Object })
  @Present()
  @IsJsonObject(MAX_JSON_CHARS)
  quirks?: Record<string, unknown>;

  @ApiPropertyOptional({ default: 5000 })
  @Present()
  @IsInt()
  @Min(1)
  @Max(MAX_TIMEOUT_MS)
  connectTimeoutMs?: number;

  @ApiPropertyOptional({ default: 60000 })
  @Present()
  @IsInt()
  @Min(1)
  @Max(MAX_TIMEOUT_MS)
  firstPieceTimeoutMs?: number;

  @ApiPropertyOptional({ default: 30000 })
  @Present()
  @IsInt()
  @Min(1)
  @Max(MAX_TIMEOUT_MS)
  idleTimeoutMs?: number;

  @ApiPropertyOptional({ default: 600000 })
  @Present()
  @IsInt()
  @Min(1)
  @Max(MAX_TIMEOUT_MS)
  totalTimeoutMs?: number;

  @ApiPropertyOptional({ nullable: true })
  @IsOptional()
  @IsInt()
  @Min(1)
  @Max(100_000)
  maxConcurrency?: number | null;
}
export class UpdateProvider extends PartialType(CreateProvider, { skipNullProperties: false }) {}

/** Header names are tokens, values visible ASCII: RFC 9110 §5. */
function IsHeaders(): PropertyDecorator {
  return (target, propertyName) =>
    registerDecorator({
      name: 'isHeaders',
      target: target.constructor,
      propertyName: propertyName as string,
      validator: {
        validate: (value: unknown) =>
          typeof value === 'object' &&
          value !== null &&
          !Array.isArray(value) &&
          Object.keys(value).length <= 50 &&
          Object.entries(value).every(
            ([name, text]) =>
              /^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}$/.test(name) &&
              typeof text === 'string' &&
              /^[\x20-\x7e]{0,4000}$/.test(text),
          ),
        defaultMessage: () => '$property must be an object of header names and ASCII values',
      },
    });
}

export class CreateModelService {
  @ApiProperty({ maxLength: 200 })
  @IsString()
  @Length(1, 200)
  @NoNul()
  name!: string;

  @ApiProperty()
  @IsEntityId()
  providerId!: string;

  @ApiProperty({ description: "the provider's own name of the model" })
  @IsString()
  @Length(1, 200)
  @NoNul()
  model!: string;

  @ApiPropertyOptional({
    enum: [0, 1, 2, 3],
    default: 0,
    description: '0 text, 1 image, 2 embedding, 3 speech to text',
  })
  @Present()
  @IsIn([0, 1, 2, 3])
  type?: number;

  @ApiPropertyOptional({ default: 0 })
  @Present()
  @IsInt()
  @Min(-1_000_000)
  @Max(1_000_000)
  orderNum?: number;

  @ApiPropertyOptional({ default: 32768, description: 'tokens' })
  @Present()
  @IsInt()
  @Min(16)
  @Max(100_000_000)
  contextWindow?: number;

  @ApiPropertyOptional({ type: Object, description: 'default parameters: temperature, max_tokens, …' })
  @Present()
  @IsJsonObject(MAX_JSON_CHARS)
  parameters?: Record<string, unknown>;

  @ApiPropertyOptional({ description: 'credits a million tokens' })
  @Present()
  @IsNumber()
  @Min(0)
  @Max(1_000_000_000)
  inputPrice?: number;

  @ApiPropertyOptional({ description: 'credits a million tokens' })
  @Present()
  @IsNumber()
  @Min(0)
  @Max(1_000_000_000)
  outputPrice?: number;

  @ApiPropertyOptional({ type: [String] })
  @Present()
  @IsArray()
  @ArrayMaxSize(10)
  @Matches(/^[1-9]\d{0,18}$/, { each: true, message: '$property must hold ids' })
  fallbackIds?: string[];

  @ApiPropertyOptional({ default: true })
  @Present()
  @IsBoolean()
  enabled?: boolean;
}
export class UpdateModelService extends PartialType(CreateModelService, { skipNullProperties: false }) {}

export class CreateModelPrice {
  @ApiProperty({ format: 'date-time', description: 'not yet come' })
  @ToDate()
  @IsDate({ message: '$property must be an ISO 8601 time' })
  effectiveFrom!: Date;

  @ApiProperty({ description: 'credits a million tokens' })
  @IsNumber()
  @Min(0)
  @Max(1_000_000_000)
  inputPrice!: number;

  @ApiProperty({ description: 'credits a million tokens' })
  @IsNumber()
  @Min(0)
  @Max(1_000_000_000)
  outputPrice!: number;
}

export class CreateAssistant {
  @ApiProperty({
    example: 'main',
    description: 'lower-case letters, digits and hyphens; unique in the tenant',
  })
  @IsString()
  @Matches(/^[a-z0-9][a-z0-9-]{0,62}$/, {
    message: '$property must be lower-case letters, digits and hyphens, at most 63',
  })
  slug!: string;

  @ApiProperty({ maxLength: 200 })
  @IsString()
  @Length(1, 200)
  @NoNul()
  name!: string;

  @ApiPropertyOptional({ maxLength: 2000 })
  @Present()
  @IsString()
  @MaxLength(2_000)
  @NoNul()
  description?: string;

  @ApiPropertyOptional({ maxLength: 2000 })
  @Present()
  @IsString()
  @MaxLength(2_000)
  @NoNul()
  avatar?: string;
}
export class UpdateAssistant extends PartialType(CreateAssistant, { skipNullProperties: false }) {}

export class CreateAssistantVersion {
  @ApiPropertyOptional({ description: 'the system prompt', maxLength: MAX_PROMPT_CHARS })
  @Present()
  @IsString()
  @MaxLength(MAX_PROMPT_CHARS)
  @NoNul()
  prompt?: string;

  @ApiProperty({ description: 'a text service this tenant may use' })
  @IsEntityId()
  modelServiceId!: string;

  @ApiPropertyOptional({ type: Object })
  @Present()
  @IsJsonObject(MAX_JSON_CHARS)
  parameters?: Record<string, unknown>;

  @ApiPropertyOptional({ maxLength: 4000 })
  @Present()
  @IsString()
  @MaxLength(4_000)
  @NoNul()
  greeting?: string;

  @ApiPropertyOptional({ type: [String] })
  @Present()
  @IsArray()
  @ArrayMaxSize(20)
  @IsString({ each: true })
  @MaxLength(500, { each: true })
  @NoNul({ each: true })
  suggestedQuestions?: string[];

  @ApiPropertyOptional({ type: Object })
  @Present()
  @IsJsonObject(MAX_JSON_CHARS)
  contextPolicy?: Record<string, unknown>;

  @ApiPropertyOptional({
    type: 'array',
    items: { type: 'object', additionalProperties: true },
    maxItems: 16,
    description:
      'tool sources: {"type":"mcp","name","url","headers"?,"allow"?} or {"type":"openapi","name","spec","baseUrl"?,"headers"?,"allow"?}; answers show "headers" as true, never their names or values',
  })
  @Present()
  @IsArray()
  tools?: unknown[];
}
