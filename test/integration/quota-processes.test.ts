import { ask, bootApp, eventually, type TestApp } from '../support/app';
import { query } from '../support/database';
import { Upstream } from '../support/upstream';

const CAP = 100;
const REQUESTS = 300;

let apps: TestApp[];
let upstream: Upstream;
beforeAll(async () => {
  upstream = await Upstream.start();
  const first = await bootApp();
  apps = [first, await bootApp({}, first.databaseUrl)];
});
afterAll(async () => {
  await apps[1]!.close();
  await apps[0]!.close();
  await upstream.close();
});

it(`two processes with a cap of ${CAP} let exactly ${CAP} of ${REQUESTS} simultaneous requests through, on every wire`, async () => {
  const [first] = apps as [TestApp, TestApp];
  const tenant = await first.tenant({ baseUrl: upstream.url, model: 'capped' });
  const limits = { requestsPerDay: CAP, tokensPerDay: 100_000_000, userRequestsPerMonth: CAP * 2 };
  await ask(
    first.url,
    'PATCH',
    `/api/admin/tenants/${tenant.id}`,
    { limits },
    { 'x-api-key': first.rootKey },
  );
  await new Promise((resolve) => setTimeout(resolve, 1_000));
  const headers = { 'x-api-key': tenant.apiKey, accept: 'application/json' };
  const answers = await Promise.all(
    Array.from({ length: REQUESTS }, (_, n) => {
      const { url } = apps[n % 2]!;
      return n % 4 < 2
        ? ask(
            url,
            'POST',
            '/v1/chat/completions',
            { model: 'service', messages: [{ role: 'user', content: `hello ${n}` }] },
            headers,
          )
        : ask(
            url,
            'POST',
            `/api/copywriting/dialogue/sse/send-message/${tenant.versionId}`,
            { speechUserDialogueMessage: { content: `hello ${n}` } },
            headers,
          );
    }),
  );
  const count = (status: number) => answers.filter((answer) => answer.status === status).length;
  expect([count(200), count(429)]).toEqual([CAP, REQUESTS - CAP]);
  expect(upstream.seen('capped')).toHaveLength(CAP);
  const { databaseUrl } = first;
  await eventually(async () => (await query(databaseUrl, 'select 1 from usage_ledger')).length === CAP);
  expect(await query(databaseUrl, 'select 1 from usage_reservations')).toEqual([]);
  expect(
    await query(
      databaseUrl,
      `select c.scope, c.requests, c.tokens = (select sum(total_tokens) from usage_ledger) as exact
       from usage_counters c order by scope`,
    ),
  ).toEqual([
    { scope: 'tenant', requests: String(CAP), exact: true },
    { scope: 'user', requests: String(CAP), exact: true },
  ]);
}, 120_000);
