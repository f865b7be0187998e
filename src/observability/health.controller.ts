import { Controller, Get, Header, Res } from '@nestjs/common';
import { ApiOperation, ApiTags } from '@nestjs/swagger';
import type { FastifyReply } from 'fastify';
import { Public } from '../common/http';
import { Database, NodeRegistry } from '../database';
import { Metrics } from './metrics';
import { Readiness } from './readiness';

@ApiTags('operations')
@Controller()
export class HealthController {
  constructor(
    private readonly database: Database,
    private readonly metrics: Metrics,
    private readonly node: NodeRegistry,
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
    summary:
      'The process can serve: its database answers and takes writes, and it is not stopping; 503 with the reason when not',
  })
  async ready(@Res() reply: FastifyReply): Promise<void> {
    const trouble = (await this.database.trouble()) ?? this.node.trouble;
    const reason = this.readiness.stopping ? 'stopping' : trouble;
    const database = trouble === null;
    if (reason === null) await reply.status(200).send({ status: 'ok', database });
    else await reply.status(503).send({ status: 'unavailable', database, reason });
  }

  /** No scope is named: the root key alone. */
  @Get('metrics')
  @Header('content-type', 'text/plain; version=0.0.4; charset=utf-8')
  @ApiOperation({ summary: 'Prometheus metrics' })
  expose(): Promise<string> {
    return this.metrics.registry.metrics();
  }
}
