import { Injectable } from '@nestjs/common';
import { Outbound } from '../outbound';
import { BuiltinDriver } from './drivers/builtin.driver';
import { OpenAiCompatibleDriver } from './drivers/openai-compatible.driver';
import type { TextDriver } from './drivers/text-driver';
import type { ResolvedService } from './model-services.repository';

/** The driver of each provider kind. Breaker, fallback and key rotation go between this and the engine. */
@Injectable()
export class TextDrivers {
  private readonly drivers: Readonly<Record<ResolvedService['kind'], TextDriver>>;

  constructor(outbound: Outbound) {
    this.drivers = {
      'openai-compatible': new OpenAiCompatibleDriver(outbound),
      builtin: new BuiltinDriver(),
    };
  }

  of(kind: ResolvedService['kind']): TextDriver {
    return this.drivers[kind];
  }
}
