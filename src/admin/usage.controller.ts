import { Controller, Get, Headers, Query, Res, UsePipes } from '@nestjs/common';
import {
  ApiHeader,
  ApiOperation,
  ApiProduces,
  ApiPropertyOptional,
  ApiSecurity,
  ApiTags,
} from '@nestjs/swagger';
import { Transform } from 'class-transformer';
import { ArrayMaxSize, ArrayUnique, IsIn, IsOptional, IsString, MaxLength } from 'class-validator';
import type { FastifyReply } from 'fastify';
import { AppError, badInput, type TenantId } from '../common';
import { EmptyIsAbsent, IsEntityId, NoNul, Scopes, validation } from '../common/http';
import { USAGE_GROUPS, usageColumns, UsageReport, WIRES, type UsageGroup, type Wire } from '../usage';
import { csv } from './csv';
import { Op, Operator } from './operator';
import { IsTime } from './requests';

const HOUR_MS = 3_600_000;
const MAX_DAYS = 366;
const MAX_NAME_CHARS = 400;

class UsageQuery {
  @ApiPropertyOptional({ format: 'date-time', description: 'on the hour; by default the month so far' })
  @EmptyIsAbsent()
  @IsOptional()
  @IsTime()
  from?: Date;

  @ApiPropertyOptional({ format: 'date-time', description: 'on the hour, exclusive; by default now' })
  @EmptyIsAbsent()
  @IsOptional()
  @IsTime()
  to?: Date;

  @ApiPropertyOptional({ type: String, description: `any of ${USAGE_GROUPS.join(', ')}, by commas` })
  @Transform(({ value }: { value: unknown }) =>
    typeof value === 'string'
      ? value
          .split(',')
          .map((name) => name.trim())
          .filter(Boolean)
      : value,
  )
  @IsOptional()
  @IsIn(USAGE_GROUPS, { each: true })
  @ArrayUnique()
  @ArrayMaxSize(USAGE_GROUPS.length)
  groupBy: UsageGroup[] = [];

  @ApiPropertyOptional({ description: "a tenant; the platform's operator alone may name another's" })
  @EmptyIsAbsent()
  @IsOptional()
  @IsEntityId()
  tenant?: string;

  @ApiPropertyOptional()
  @EmptyIsAbsent()
  @IsOptional()
  @IsEntityId()
  key?: string;

  @ApiPropertyOptional({ description: "a service's id, or the name of a model" })
  @EmptyIsAbsent()
  @IsOptional()
  @IsString()
  @MaxLength(MAX_NAME_CHARS)
  @NoNul()
  model?: string;

  @ApiPropertyOptional()
  @EmptyIsAbsent()
  @IsOptional()
  @IsEntityId()
  assistant?: string;

  @ApiPropertyOptional()
  @EmptyIsAbsent()
  @IsOptional()
  @IsString()
  @MaxLength(MAX_NAME_CHARS)
  @NoNul()
  user?: string;

  @ApiPropertyOptional({ enum: WIRES })
  @EmptyIsAbsent()
  @IsOptional()
  @IsIn(WIRES)
  wire?: Wire;

  @ApiPropertyOptional({ enum: ['json', 'csv'] })
  @EmptyIsAbsent()
  @IsOptional()
  @IsIn(['json', 'csv'])
  format?: 'json' | 'csv';
}

/** A tenant's own figures; with the root key and no `tenant-id` those of all. */
@ApiTags('admin')
@ApiSecurity('x-api-key')
@ApiHeader({ name: 'tenant-id', required: false })
@UsePipes(validation('refused'))
@Controller('api/admin/usage')
export class UsageController {
  constructor(private readonly report: UsageReport) {}

  @Get()
  @Scopes('usage', 'admin')
  @ApiOperation({ summary: 'What was used, summed up by what you ask for' })
  @ApiProduces('application/json', 'text/csv')
  async usage(
    @Op() operator: Operator,
    @Query() query: UsageQuery,
    @Headers('accept') accept: string | undefined,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const { groupBy, key, model, assistant, user, wire } = query;
    const { from, to } = rangeOf(query);
    const asked = (query.tenant as TenantId | undefined) ?? null;
    if (operator.platform && operator.tenantId && asked && asked !== operator.tenantId)
      throw badInput('tenant', 'is another than that of the header tenant-id: send one of them');
    const about = asked ? operator.about(asked) : operator;
    if (!operator.platform && !operator.tenantId) throw new AppError('NOT_FOUND');
    const filters = { tenantId: about.tenantId, key, model, assistant, user, wire };
    const rows = await this.report.rows(about.scope, { from, to, groupBy, ...defined(filters) });
    if (query.format !== 'csv' && (query.format === 'json' || !/\btext\/csv\b/i.test(accept ?? '')))
      return { from, to, data: rows };
    void reply.headers({
      'content-type': 'text/csv; charset=utf-8; header=present',
      'content-disposition': 'attachment; filename="usage.csv"',
    });
    return csv(usageColumns(groupBy), rows);
  }
}

function rangeOf(query: UsageQuery): { from: Date; to: Date } {
  const now = new Date();
  const to = query.to ?? new Date((Math.floor(now.getTime() / HOUR_MS) + 1) * HOUR_MS);
  const from = query.from ?? new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth(), 1));
  for (const [field, date] of [
    ['from', from],
    ['to', to],
  ] as const)
    if (date.getTime() % HOUR_MS !== 0)
      throw badInput(field, 'must be on the hour: usage is kept by the hour');
  if (from >= to)
    throw query.from
      ? badInput('from', 'must be before to')
      : badInput('from', 'is by default the start of this month, which is not before to: send from, too');
  if (to.getTime() - from.getTime() > MAX_DAYS * 24 * HOUR_MS)
    throw badInput('to', `must be at most ${MAX_DAYS} days after from`);
  return { from, to };
}

function defined<T extends object>(object: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined)) as {
    [K in keyof T]: Exclude<T[K], undefined>;
  };
}
