import { Module } from '@nestjs/common';
import { HealthController } from './health.controller';
import { Metrics } from './metrics';
import { Readiness } from './readiness';

/** Observability: health, metrics, logs. Tells, never changes anything. */
@Module({ controllers: [HealthController], providers: [Metrics, Readiness], exports: [Metrics] })
export class ObservabilityModule {}
