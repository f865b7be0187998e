import { applyDecorators } from '@nestjs/common';
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
import { isAddressOrRange, SCOPES, type Scope } from '../common';
import {
  EmptyIsAbsent,
  IsEntityId,
  IsHttpUrl,
  IsJsonObject,
  IsOrigin,
  IsPageLimit,
  NoNul,
  Present,
} from '../common/http';
import { LIMIT_NAMES } from '../tenancy';
import { QUOTA_NAMES } from '../usage';

const MAX_JSON_CHARS = 20_000;
const MAX_PROMPT_CHARS = 200_000;
const MAX_LIMIT = 1_000_000_000_000_000;

const LIMITS: ReadonlySet<string> = new Set([...QUOTA_NAMES, ...LIMIT_NAMES]);
const WHOLE = /^(?:user)?(?:requests|tokens)per/i;
/** What is longer is not shown, nor compared. */
const MAX_SHOWN_NAME = 60;

/** Numbers from 0 by the names there are: one that is misspelt would limit nothing, and cost money. */
function HoldsLimits(): PropertyDecorator {
  return ValidateBy({
    name: 'holdsLimits',
    validator: {
      validate: (limits: unknown) => wrongLimit(limits) === null,
      defaultMessage: (checked) => wrongLimit(checked?.value) ?? '',
    },
  });
}

function wrongLimit(limits: unknown): string | null {
  for (const [name, limit] of Object.entries(limits ?? {}) as [string, unknown][]) {
    if (!LIMITS.has(name)) {
      const shown = name.length > MAX_SHOWN_NAME ? `${name.slice(0, MAX_SHOWN_NAME).toWellFormed()}…` : name;
      const near = nearestLimit(name);
      return `there is no limit "${shown}"${near === null ? '' : `; did you mean "${near}"?`}`;
    }
    const whole = WHOLE.test(name);
    if (
      typeof limit !== 'number' ||
      !(limit >= 0 && limit <= MAX_LIMIT) ||
      (whole && !Number.isInteger(limit))
    )
      return `"${name}" must be ${whole ? 'an integer' : 'a number'} from 0 to ${MAX_LIMIT}`;
  }
  return null;
}

/** The name that was probably meant: at most a third of what was written has to change. */
function nearestLimit(written: string): string | null {
  if (written.length > MAX_SHOWN_NAME) return null;
  let nearest: string | null = null;
  let fewest = Math.floor(written.length / 3) + 1;
  for (const name of LIMITS) {
    const edits = editsBetween(written.toLowerCase(), name.toLowerCase());
    if (edits < fewest) [nearest, fewest] = [name, edits];
  }
  return nearest;
}

/** Levenshtein's distance. */
function editsBetween(one: string, other: string): number {
  let row = Array.from({ length: other.length + 1 }, (_, index) => index);
  for (const [index, char] of [...one].entries()) {
    const next = [index + 1];
    for (let at = 0; at < other.length; at += 1)
      next.push(Math.min(next[at]! + 1, row[at + 1]! + 1, row[at]! + (other[at] === char ? 0 : 1)));
    row = next;
  }
  return row.at(-1)!;
}

const ISO_TIME =
  /^(\d{4}-\d{2}-\d{2})(?:T(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d{1,9})?)?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d))?$/;

/**
 * A date, which is its midnight UTC, or a time with its zone, as ISO 8601 writes them; null for anything else. Date.parse
 * would take much more, days that no month has among it, and read some of it in the server's zone.
 */
export function parseTime(text: string): Date | null {
  const [, date] = ISO_TIME.exec(text) ?? [];
  if (date === undefined) return null;
  const midnight = new Date(`${date}T00:00:00Z`);
  const exists = !Number.isNaN(midnight.getTime()) && midnight.toISOString().startsWith(date);
  return exists ? new Date(text) : null;
}

/** What `parseTime` takes, as a Date. */
export function IsTime(): PropertyDecorator {
  return applyDecorators(
    Transform(({ value }: { value: unknown }): unknown =>
      typeof value === 'string' ? (parseTime(value) ?? value) : value,
    ),
    IsDate({ message: '$property must be an ISO 8601 time with a zone, e.g. 2027-01-31T00:00:00Z' }),
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
          values.every((value) => typeof value === 'string' && isAddressOrRange(value)),
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
  @IsOrigin({ each: true })
  allowedOrigins?: string[];

  @ApiPropertyOptional({ enum: ['open', 'managed'], default: 'open' })
  @Present()
  @IsIn(['open', 'managed'])
  groupPolicy?: 'open' | 'managed';

  @ApiPropertyOptional({
    type: Object,
    description: 'Quotas, and overrides of the installation’s limits, by name.',
  })
  @Present()
  @IsObject()
  @IsJsonObject(MAX_JSON_CHARS)
  @HoldsLimits()
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
  @IsTime()
  expiresAt?: Date | null;

  @ApiPropertyOptional({ type: [String], description: 'IP addresses or CIDR ranges; empty: any.' })
  @Present()
  @IsArray()
  @ArrayMaxSize(100)
  @IsAddressOrRange()
  allowedAddresses?: string[];

  @ApiPropertyOptional({ type: Object, description: 'Quotas of this key, by name.' })
  @Present()
  @IsObject()
  @IsJsonObject(MAX_JSON_CHARS)
  @HoldsLimits()
  limits?: Record<string, number>;
}
export class RotateApiKey {
  @ApiPropertyOptional({
    default: 0,
    minimum: 0,
    maximum: 604_800,
    type: Number,
    description: 'How long the old secret, and what was begun with it, goes on.',
  })
  @Present()
  @IsInt()
  @Min(0)
  @Max(604_800)
  overlapSeconds: number = 0;
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
const MAX_HEADERS_CHARS = 16_384;

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
    maxLength: 2_000,
  })
  @ValidateIf((input: CreateProvider) => input.kind === 'openai-compatible' || input.baseUrl !== undefined)
  @IsHttpUrl({ credentials: false })
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
    description:
      'Sent with every request; values are kept like credentials; at most 16,384 characters as JSON.',
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
          JSON.stringify(value).length <= MAX_HEADERS_CHARS &&
          Object.entries(value).every(
            ([name, text]) =>
              /^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}$/.test(name) &&
              typeof text === 'string' &&
              /^[\x20-\x7e]{0,4000}$/.test(text),
          ),
        defaultMessage: () =>
          `$property must be an object of header names and ASCII values, at most ${MAX_HEADERS_CHARS} characters as JSON`,
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
  @IsTime()
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

/** What people see of a thing. */
export class Named {
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
}

export class CreateAssistant extends Named {
  @ApiProperty({
    example: 'main',
    description: 'lower-case letters, digits and hyphens; unique in the tenant',
  })
  @IsString()
  @Matches(/^[a-z0-9][a-z0-9-]{0,62}$/, {
    message: '$property must be lower-case letters, digits and hyphens, at most 63',
  })
  slug!: string;

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
