import { Module } from '@nestjs/common';
import { HealthController } from './health.controller';
import { Metrics } from './metrics';

/** Observability: health, metrics, logs. Tells, never changes anything. */
@Module({ controllers: [HealthController], providers: [Metrics] })
export class ObservabilityModule {}
