import { Injectable } from '@nestjs/common';
import { LRUCache } from 'lru-cache';
import type { ModelServiceId } from '../common';
import { estimateTokens, type ResolvedService, type TextUsage } from '../model-services';
import { creditsOf, type Estimate } from '../usage';

/** Before a service has drawn its first image here: what a square one of middling quality takes at OpenAI. */
const ASSUMED_TOKENS = 1_056;
const SERVICES = 1_000;

/** What an image may come to, for quotas: as much as the service's last one did. */
@Injectable()
export class ImageCosts {
  private readonly tokens = new LRUCache<ModelServiceId, number>({ max: SERVICES });

  estimate(service: ResolvedService, prompt: string, options: Readonly<Record<string, unknown>>): Estimate {
    const images = Math.max(1, Math.floor(Number(options.n)) || 1);
    const promptTokens = estimateTokens(prompt);
    const completionTokens = images * (this.tokens.get(service.id) ?? ASSUMED_TOKENS);
    const usage = { promptTokens, completionTokens };
    return { tokens: promptTokens + completionTokens, credits: creditsOf(usage, service) };
  }

  /** As the provider counted so many images; null: it told nothing, so nothing is charged for. */
  learn({ id }: ResolvedService, usage: TextUsage | null, images: number): void {
    if (images > 0) this.tokens.set(id, Math.ceil((usage?.completionTokens ?? 0) / images));
  }
}
