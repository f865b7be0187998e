import { Controller, Get, Header, Res } from '@nestjs/common';
import { ApiOperation, ApiTags } from '@nestjs/swagger';
import type { FastifyReply } from 'fastify';
import { Public } from '../common/http';
import { Database } from '../database';
import { Metrics } from './metrics';
import { Readiness } from './readiness';

@ApiTags('operations')
@Controller()
export class HealthController {
  constructor(
    private readonly database: Database,
    private readonly metrics: Metrics,
    private readonly readiness: Readiness,
  ) {}

  @Public()
  @Get('health')
  @ApiOperation({ summary: 'The process lives' })
  live() {
    return { status: 'ok' };
  }

  @Public()
  @Get('health/ready')
  @ApiOperation({
    summary: 'The process can serve: its database answers and it is not stopping; 503 when not',
  })
  async ready(@Res() reply: FastifyReply): Promise<void> {
    const database = await this.database.healthy();
    const ready = database && !this.readiness.stopping;
    await reply.status(ready ? 200 : 503).send({ status: ready ? 'ok' : 'unavailable', database });
  }

  /** No scope is named: the root key alone. */
  @Get('metrics')
  @Header('content-type', 'text/plain; version=0.0.4; charset=utf-8')
  @ApiOperation({ summary: 'Prometheus metrics' })
  expose(): Promise<string> {
    return this.metrics.registry.metrics();
  }
}
