import { Controller, Get, Query, UsePipes } from '@nestjs/common';
import { ApiHeader, ApiOperation, ApiSecurity, ApiTags } from '@nestjs/swagger';
import { Scopes, validation } from '../common/http';
import { Database } from '../database';
import { AuditLogRepository } from '../tenancy';
import { Op, Operator } from './operator';
import { PageQuery } from './requests';

@ApiTags('admin')
@ApiSecurity('x-api-key')
@ApiHeader({ name: 'tenant-id', required: false })
@Scopes('admin')
@UsePipes(validation('refused'))
@Controller('api/admin/audit-log')
export class AuditLogController {
  constructor(
    private readonly database: Database,
    private readonly auditLog: AuditLogRepository,
  ) {}

  @Get()
  @ApiOperation({ summary: 'Who changed what, newest first' })
  list(@Op() operator: Operator, @Query() query: PageQuery) {
    return this.database.transaction(operator.scope, (tx) =>
      this.auditLog.list(tx, operator.tenantId, query),
    );
  }
}
