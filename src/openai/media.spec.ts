import { Config } from '../config';
import { Outbound } from '../outbound';
import type { PublishedAssistant } from '../assistants';
import type { TenantId } from '../common';
import { ImageFetcher } from '../generations';
import type { ModelService } from '../model-services';
import { vectorIn } from './embedding-vectors';
import { imageIn } from './image-forms';
import { isEmbeddingInput } from './media-requests';
import { catalogueOf } from './model-catalogue';

describe('vectorIn', () => {
  it('turns floats into little-endian base64 and back', () => {
    expect(vectorIn('base64', [1, -2])).toBe('AACAPwAAAMA=');
    expect(vectorIn('float', 'AACAPwAAAMA=')).toEqual([1, -2]);
    expect(vectorIn('float', [0.1])).toEqual([0.1]);
    expect(vectorIn('base64', 'AACAPw==')).toBe('AACAPw==');
  });
});

describe('isEmbeddingInput', () => {
  it('takes a text, texts, tokens, and several of those', () => {
    for (const input of ['a', ['a', 'b'], [1, 2], [[1], [2, 3]]]) expect(isEmbeddingInput(input)).toBe(true);
  });

  it('takes nothing else', () => {
    for (const input of [null, 1, {}, '', [], [''], [[]], ['a', 1], [['a']], [-1], [[1.5]], [null]])
      expect([input, isEmbeddingInput(input)]).toEqual([input, false]);
  });
});

describe('imageIn', () => {
  const fetcher = new ImageFetcher(new Outbound(Config.load({})));
  const { signal } = new AbortController();

  it('leaves what fits, and what nobody asked to have otherwise', async () => {
    const url = { url: 'https://images.example/1.png', revised_prompt: 'x' };
    expect(await imageIn('url', url, fetcher, signal)).toBe(url);
    expect(await imageIn(undefined, url, fetcher, signal)).toBe(url);
    const data = { b64_json: '/9j/4AAQ', revised_prompt: 'x' };
    expect(await imageIn('b64_json', data, fetcher, signal)).toBe(data);
    expect(await imageIn('url', data, fetcher, signal)).toEqual({
      revised_prompt: 'x',
      url: 'data:image/jpeg;base64,/9j/4AAQ',
    });
  });
});

describe('catalogueOf', () => {
  const acme = '7' as TenantId;
  const createdAt = new Date(1_700_000_000_999);
  const service = (id: string, name: string, tenantId: TenantId | null, type = 0) =>
    ({ id, name, tenantId, type, createdAt }) as ModelService;

  it('gives a name to the first of it, own before shared, and shows the rest by id', () => {
    const { records, byId } = catalogueOf(
      acme,
      [service('1', 'gpt', null), service('2', 'gpt', acme, 2), service('3', 'gpt', acme)],
      [{ id: '9', slug: 'main', name: 'Main', createdAt } as PublishedAssistant],
    );
    expect(records.map(({ id, owned_by: owner, type }) => [id, owner, type])).toEqual([
      ['gpt', '7', 'embedding'],
      ['3', '7', 'text'],
      ['1', 'parley', 'text'],
      ['agent:main', '7', 'agent'],
    ]);
    expect(byId.get('2')).toBe(records[0]);
    expect(records[0]!.created).toBe(1_700_000_000);
  });
});
