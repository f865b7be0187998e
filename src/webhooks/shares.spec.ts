import type { TenantId, WebhookId } from '../common';
import { Shares } from './shares';

const limits = {
  WEBHOOK_ATTEMPTS: 8,
  WEBHOOK_ATTEMPTS_PER_TENANT: 6,
  WEBHOOK_ATTEMPTS_PER_ORIGIN: 4,
  WEBHOOK_ATTEMPTS_PER_WEBHOOK: 2,
};
const at = (webhook: string, tenant = 't1', origin = 'http://a') => ({
  webhookId: webhook as WebhookId,
  tenantId: tenant as TenantId,
  origin,
});

it('gives half of what is free at a time, and a tenant no more than is free', () => {
  const shares = new Shares(limits);
  expect(shares.room()).toEqual({ limit: 4, perWebhook: 2, perOrigin: 4, perTenant: 6, running: [] });
  for (const webhook of ['w1', 'w1', 'w2', 'w3', 'w3']) shares.begin(at(webhook));
  expect(shares.room()).toMatchObject({ limit: 2, perTenant: 3 });
  expect(shares.room()!.running).toEqual([
    { ...at('w1'), count: 2 },
    { ...at('w2'), count: 1 },
    { ...at('w3'), count: 2 },
  ]);
});

it('gives the last one to whoever has none, and then nothing until something ends', () => {
  const shares = new Shares(limits);
  for (let n = 0; n < 7; n += 1) shares.begin(at(`w${n}`, `t${n}`));
  expect(shares.room()).toMatchObject({ limit: 1, perTenant: 1 });
  shares.begin(at('w7', 't7'));
  expect(shares.room()).toBeNull();
  shares.end(at('w7', 't7'));
  expect(shares.room()!.running.map(({ webhookId }) => webhookId)).not.toContain('w7');
});
