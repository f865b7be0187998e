import { randomUUID } from 'node:crypto';
import { Injectable } from '@nestjs/common';
import { LRUCache } from 'lru-cache';
import { Outbound } from '../../outbound';
import type { ResolvedService } from '../model-services.repository';
import { demoEmbedding, demoImage, demoTranscript } from './builtin-media';
import { malformed, parsedJson, ProviderRequests, reportedFailure, withAttempts } from './provider-request';
import { ProviderError, type TextUsage } from './text-driver';

export type MediaService = Pick<ResolvedService, 'kind' | 'endpoint' | 'model' | 'parameters'>;

interface MediaRequest {
  readonly service: MediaService;
  readonly signal: AbortSignal;
}

interface MediaResult {
  /** As the provider counts; null when it told nothing. */
  readonly usage: TextUsage | null;
  /** Upstream requests made, refused ones included. */
  readonly attempts: number;
}

/** One text, several, one as tokens, several as tokens. */
export type EmbeddingInput = string | readonly string[] | readonly number[] | readonly (readonly number[])[];

export interface EmbeddingsRequest extends MediaRequest {
  readonly input: EmbeddingInput;
  /** `dimensions`, `encoding_format`, `user`: only those that were asked for. */
  readonly options: Readonly<Record<string, unknown>>;
}

export interface EmbeddingsResult extends MediaResult {
  /** In the order of the inputs; numbers, or the base64 of little-endian float32, as the provider liked. */
  readonly vectors: readonly (readonly number[] | string)[];
}

export interface ImagesRequest extends MediaRequest {
  readonly prompt: string;
  /** `n`, `size`, `quality`, `style`, `background`, `output_format`, `response_format`, `user`: only those that were asked for. */
  readonly options: Readonly<Record<string, unknown>>;
}

/** One of the two, and whatever else the provider says of it. */
export type MadeImage = Readonly<Record<string, unknown>> &
  ({ readonly b64_json: string } | { readonly url: string });

export interface ImagesResult extends MediaResult {
  /** The provider's whole answer. */
  readonly json: Readonly<Record<string, unknown>> & { readonly data: readonly MadeImage[] };
}

/** What a file is by its content, never by the name or the type it came with. */
export interface AudioFormat {
  readonly extension: 'wav' | 'mp3' | 'mp4' | 'webm' | 'ogg' | 'flac';
  readonly contentType: string;
}

export const TRANSCRIPT_FORMATS = ['json', 'text', 'verbose_json', 'srt', 'vtt'] as const;
export type TranscriptFormat = (typeof TRANSCRIPT_FORMATS)[number];

export interface TranscriptionRequest extends MediaRequest {
  readonly audio: { readonly bytes: Buffer; readonly format: AudioFormat };
  readonly responseFormat: TranscriptFormat;
  /** `language`, `prompt`, `temperature`, `timestamp_granularities[]`: only those that were asked for. */
  readonly options: Readonly<Record<string, string | number | readonly string[]>>;
}

export interface TranscriptionResult extends MediaResult {
  readonly text: string;
  /** The provider's whole answer; null for `srt` and `vtt`, whose `text` is all. */
  readonly json: Readonly<Record<string, unknown>> | null;
}

const MIB = 1_048_576;
const MAX_BYTES = { embeddings: 32 * MIB, images: 64 * MIB, transcription: 4 * MIB } as const;
const MAX_REMEMBERED = 10_000;
/** What fits a ledger's column. */
const MAX_COUNT = 2_147_483_647;
const MAX_DEMO_NUMBERS = 1_000_000;
const MAX_DEMO_IMAGES = 10;

/** Embeddings, images and transcripts, of an OpenAI-compatible provider or the built-in demo. Every answer is read whole. */
@Injectable()
export class MediaDriver {
  private readonly requests: ProviderRequests;
  /** Parameters that a model refused once are not sent to it again. */
  private readonly refused = new LRUCache<string, true>({ max: MAX_REMEMBERED });

  constructor(outbound: Outbound) {
    this.requests = new ProviderRequests(outbound);
  }

  /** Rejects with {@link ProviderError}; with `signal.reason` when aborted. */
  async embeddings(request: EmbeddingsRequest): Promise<EmbeddingsResult> {
    const { input, options, service, signal } = request;
    signal.throwIfAborted();
    const inputs = inputsOf(input);
    if (service.kind === 'builtin') return demoEmbeddings(inputs, options.dimensions);
    const body = { ...service.parameters, ...options, model: service.model, input };
    const { json, attempts } = await this.json(request, {
      path: '/embeddings',
      body,
      dispensable: 'encoding_format',
      maxBytes: MAX_BYTES.embeddings,
    });
    const vectors = vectorsOf(json.data, inputs.length);
    if (!vectors) throw malformed('no embeddings', attempts);
    return { vectors, usage: usageOf(json.usage), attempts };
  }

  /** Rejects with {@link ProviderError}; with `signal.reason` when aborted. */
  async images(request: ImagesRequest): Promise<ImagesResult> {
    const { prompt, options, service, signal } = request;
    signal.throwIfAborted();
    if (service.kind === 'builtin') return demoImages(prompt, options.n);
    const { json, attempts } = await this.json(request, {
      path: '/images/generations',
      body: { ...service.parameters, ...options, model: service.model, prompt },
      dispensable: 'response_format',
      maxBytes: MAX_BYTES.images,
    });
    const data = imagesOf(json.data);
    if (!data) throw malformed('no images', attempts);
    return { json: { ...json, data }, usage: usageOf(json.usage), attempts };
  }

  /** Rejects with {@link ProviderError}; with `signal.reason` when aborted. */
  async transcription(request: TranscriptionRequest): Promise<TranscriptionResult> {
    const { audio, responseFormat, options, service, signal } = request;
    signal.throwIfAborted();
    if (service.kind === 'builtin') return demoTranscription(request);
    // The text alone is in the JSON, too, and there with its usage.
    const format = responseFormat === 'text' ? 'json' : responseFormat;
    const fields = { ...service.parameters, ...options, model: service.model, response_format: format };
    const boundary = `parley-${randomUUID()}`;
    const { body, attempts } = await this.requests.post({
      endpoint: service.endpoint,
      path: '/audio/transcriptions',
      contentType: `multipart/form-data; boundary=${boundary}`,
      body: formOf(boundary, fields, audio),
      maxBytes: MAX_BYTES.transcription,
      signal,
    });
    const json = parsedJson(body);
    const failure = reportedFailure(json, attempts, service.endpoint);
    if (failure) throw failure;
    if (format === 'srt' || format === 'vtt') {
      if (typeof json === 'object' && json !== null) throw malformed('no transcript', attempts);
      return { text: body.toString('utf8'), json: null, usage: null, attempts };
    }
    if (!isObject(json) || typeof json.text !== 'string') throw malformed('no transcript', attempts);
    return { text: json.text, json, usage: usageOf(json.usage), attempts };
  }

  /** Asks with JSON for JSON; once more without `dispensable` if the provider refuses that. */
  private async json(
    { service, signal }: MediaRequest,
    call: { path: string; body: Record<string, unknown>; dispensable: string; maxBytes: number },
  ): Promise<{ json: Record<string, unknown>; attempts: number }> {
    const { endpoint, model } = service;
    const { path, dispensable, maxBytes } = call;
    const key = `${endpoint.providerId}/${model}/${dispensable}`;
    let spent = 0;
    for (;;) {
      const { [dispensable]: asked, ...rest } = call.body;
      const withAll = asked !== undefined && !this.refused.has(key);
      try {
        const answer = await this.requests.post({
          endpoint,
          path,
          contentType: 'application/json',
          body: JSON.stringify(withAll ? call.body : rest),
          maxBytes,
          signal,
        });
        const json = parsedJson(answer.body);
        const failure = reportedFailure(json, answer.attempts, endpoint);
        if (failure) throw failure;
        if (!isObject(json)) throw malformed('no JSON', answer.attempts);
        return { json, attempts: spent + answer.attempts };
      } catch (error) {
        if (!(error instanceof ProviderError)) throw error;
        if (!withAll || !refuses(error, dispensable)) {
          throw spent === 0 ? error : withAttempts(error, spent + error.details.attempts);
        }
        this.refused.set(key, true);
        spent += error.details.attempts;
      }
    }
  }
}

export function inputsOf(input: EmbeddingInput): readonly (string | readonly number[])[] {
  if (typeof input === 'string') return [input];
  return typeof input[0] === 'number'
    ? [input as readonly number[]]
    : (input as readonly (string | readonly number[])[]);
}

function refuses({ failure, message, details: { status } }: ProviderError, parameter: string): boolean {
  return failure === 'refused' && (status === 400 || status === 422) && message.includes(parameter);
}

/** Null unless there is one for every input. */
function vectorsOf(data: unknown, count: number): EmbeddingsResult['vectors'] | null {
  if (!Array.isArray(data) || data.length !== count) return null;
  const vectors = new Array<readonly number[] | string | undefined>(count);
  for (const [place, item] of (data as unknown[]).entries()) {
    if (!isObject(item) || !isVector(item.embedding)) return null;
    const index = item.index ?? place;
    if (typeof index !== 'number' || !(index in data) || vectors[index] !== undefined) return null;
    vectors[index] = item.embedding;
  }
  return vectors as EmbeddingsResult['vectors'];
}

function isVector(value: unknown): value is readonly number[] | string {
  if (typeof value === 'string') return value !== '' && Buffer.from(value, 'base64').length % 4 === 0;
  return Array.isArray(value) && value.length > 0 && value.every((one) => typeof one === 'number');
}

function imagesOf(data: unknown): MadeImage[] | null {
  if (!Array.isArray(data) || data.length === 0) return null;
  const images: MadeImage[] = [];
  for (const item of data as unknown[]) {
    // Some send both, the unused one as null.
    if (!isObject(item)) return null;
    const { b64_json: base64, url, ...rest } = item;
    if (typeof base64 === 'string' && base64) images.push({ ...rest, b64_json: base64 });
    else if (typeof url === 'string' && url) images.push({ ...rest, url });
    else return null;
  }
  return images;
}

/** `prompt_tokens` of embeddings, `input_tokens` of the rest. Null unless told as counts: what goes into the ledger is a number or our own estimate. */
function usageOf(usage: unknown): TextUsage | null {
  if (!isObject(usage)) return null;
  const promptTokens = usage.prompt_tokens ?? usage.input_tokens;
  const completionTokens = usage.completion_tokens ?? usage.output_tokens ?? 0;
  if (!isCount(promptTokens) || !isCount(completionTokens)) return null;
  const total = usage.total_tokens;
  const sum = Math.min(promptTokens + completionTokens, MAX_COUNT);
  return { promptTokens, completionTokens, totalTokens: isCount(total) ? total : sum };
}

function isCount(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) <= MAX_COUNT;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** `multipart/form-data` with our own file name: the client's says nothing that we would pass on. */
function formOf(
  boundary: string,
  fields: Readonly<Record<string, unknown>>,
  { bytes, format }: TranscriptionRequest['audio'],
): Buffer {
  const part = (name: string, value: string): string =>
    `--${boundary}\r\ncontent-disposition: form-data; name="${name}"\r\n\r\n${value}\r\n`;
  const texts = Object.entries(fields).flatMap(([name, value]) =>
    [value]
      .flat()
      .filter((one) => typeof one === 'string' || typeof one === 'number' || typeof one === 'boolean')
      .map((one) => part(name.replace(/["\r\n]/g, '_'), String(one))),
  );
  const file =
    `--${boundary}\r\ncontent-disposition: form-data; name="file"; filename="audio.${format.extension}"\r\n` +
    `content-type: ${format.contentType}\r\n\r\n`;
  return Buffer.concat([Buffer.from(texts.join('') + file), bytes, Buffer.from(`\r\n--${boundary}--\r\n`)]);
}

function demoEmbeddings(
  inputs: readonly (string | readonly number[])[],
  dimensions: unknown,
): EmbeddingsResult {
  const length = typeof dimensions === 'number' ? dimensions : undefined;
  if ((length ?? 1) * inputs.length > MAX_DEMO_NUMBERS) {
    throw new ProviderError('refused', `The built-in demo model makes at most ${MAX_DEMO_NUMBERS} numbers.`, {
      attempts: 1,
    });
  }
  const vectors = inputs.map((input) =>
    demoEmbedding(typeof input === 'string' ? input : input.join(' '), length),
  );
  return { vectors, usage: null, attempts: 1 };
}

/** As many as are asked for, up to what OpenAI's own models draw at once. */
function demoImages(prompt: string, n: unknown): ImagesResult {
  const count = typeof n === 'number' ? Math.min(Math.max(Math.trunc(n) || 1, 1), MAX_DEMO_IMAGES) : 1;
  const data = Array.from({ length: count }, (_, number) => ({
    b64_json: demoImage(prompt, number).toString('base64'),
  }));
  return { json: { created: Math.floor(Date.now() / 1_000), data }, usage: null, attempts: 1 };
}

function demoTranscription({ audio, responseFormat, options }: TranscriptionRequest): TranscriptionResult {
  const said = demoTranscript(audio.format.extension, audio.bytes.length);
  const outcome = { usage: null, attempts: 1 };
  if (responseFormat === 'srt')
    return { ...outcome, text: `1\n00:00:00,000 --> 00:00:01,000\n${said}\n`, json: null };
  if (responseFormat === 'vtt')
    return { ...outcome, text: `WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n${said}\n`, json: null };
  if (responseFormat !== 'verbose_json') return { ...outcome, text: said, json: { text: said } };
  const language = options.language ?? 'english';
  const json = { task: 'transcribe', language, duration: 1, text: said, segments: [] };
  return { ...outcome, text: said, json };
}
