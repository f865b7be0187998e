import { HttpCode, Post, Req, Res } from '@nestjs/common';
import { RouteConfig } from '@nestjs/platform-fastify';
import { ApiBody, ApiConsumes, ApiOperation } from '@nestjs/swagger';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { badInput, type ModelServiceId, type Principal, type TenantId } from '../common';
import { Caller, readAudioForm, validation, whilePresent } from '../common/http';
import { AudioFetcher, audioFormatOf, Generations, wavSeconds } from '../generations';
import { ModelServicesRepository, SERVICE_TYPE, type ResolvedService } from '../model-services';
import { tenantOf } from '../replies';
import { success } from './envelope';
import { AudioOptions, SpokenAudio } from './requests';
import { PlatformController } from './request-parts';

const MAX_BYTES = 26_214_400;
const MAX_SECONDS = 14_400;
/** 25 MiB as base64, broken into lines, and the fields around it. */
const MAX_JSON_BYTES = 37_748_736;
const DATA_URL = /^data:[\w.+/;=-]{0,100};base64,/i;
/** Looks for one character: an expression that matches all of them runs out of stack within millions. */
const NOT_BASE64 = /[^A-Za-z0-9+/_-]/;

/** A recording and the field that it came in. */
interface Recording {
  readonly field: 'file' | 'url' | 'base64';
  readonly bytes: Buffer;
  readonly modelServiceId: ModelServiceId | undefined;
}

/** Speech to text of protocols/assistant-platform.md. A client that leaves aborts the provider's request. */
@PlatformController('/message')
export class SpeechController {
  private readonly checks = validation('ignored');

  constructor(
    private readonly services: ModelServicesRepository,
    private readonly generations: Generations,
    private readonly fetcher: AudioFetcher,
  ) {}

  @Post('audio-to-text')
  @HttpCode(200)
  @RouteConfig({ takesForm: true, maxBodyBytes: MAX_JSON_BYTES })
  @ApiOperation({
    summary: 'What is said in a recording: a form with `file`, or JSON with `url` or `base64`',
  })
  @ApiConsumes('multipart/form-data', 'application/json')
  @ApiBody({ type: SpokenAudio })
  async transcribe(
    @Caller() principal: Principal,
    @Req() request: FastifyRequest,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const tenantId = tenantOf(principal);
    return whilePresent(reply, async (signal) => {
      const { field, bytes, modelServiceId } = await this.recording(request, signal);
      const audio = audioOf(field, bytes);
      const service = await this.service(tenantId, modelServiceId);
      const asked = { service, audio, responseFormat: 'json', options: {}, signal } as const;
      const { text } = await this.generations.transcribe(principal, asked);
      return success(text);
    });
  }

  private async recording(request: FastifyRequest, signal: AbortSignal): Promise<Recording> {
    if (request.isMultipart()) {
      const { file, fields } = await readAudioForm(request);
      return { field: 'file', bytes: file, ...(await this.optionsOf(fields)) };
    }
    const body = isObject(request.body) ? request.body : {};
    const options = await this.optionsOf(body);
    const metadata = { type: 'body', metatype: SpokenAudio } as const;
    const { url, base64 } = (await this.checks.transform(body, metadata)) as SpokenAudio;
    if ((url === undefined) === (base64 === undefined))
      throw badInput('file', 'is required in a form; in JSON exactly one of url and base64');
    return base64 === undefined
      ? { field: 'url', bytes: await this.fetcher.fetch(url!, signal), ...options }
      : { field: 'base64', bytes: decoded(base64), ...options };
  }

  private async optionsOf(fields: object): Promise<Pick<Recording, 'modelServiceId'>> {
    const metadata = { type: 'body', metatype: AudioOptions } as const;
    const { modelServiceId } = (await this.checks.transform(fields, metadata)) as AudioOptions;
    return { modelServiceId: modelServiceId as ModelServiceId | undefined };
  }

  private async service(tenantId: TenantId, id: ModelServiceId | undefined): Promise<ResolvedService> {
    const { rows } = id
      ? { rows: [{ id }] }
      : await this.services.listUsable(tenantId, {
          type: SERVICE_TYPE.speech,
          orderBy: 'order_num',
          descending: false,
          offset: 0,
          limit: 1,
        });
    const service = rows[0] && (await this.services.resolve(tenantId, rows[0].id));
    if (service?.type === SERVICE_TYPE.speech) return service;
    throw badInput(
      'modelServiceId',
      id
        ? 'is not a speech-to-text model service this tenant may use'
        : 'is needed: this tenant has no speech-to-text model service',
    );
  }
}

function decoded(base64: string): Buffer {
  const text = base64.replace(DATA_URL, '').replace(/\s+/g, '');
  const padding = text.endsWith('==') ? 2 : text.endsWith('=') ? 1 : 0;
  const digits = text.slice(0, text.length - padding);
  if (digits === '' || NOT_BASE64.test(digits)) throw badInput('base64', 'must be base64');
  return Buffer.from(text, 'base64');
}

/** By its content. BAD_INPUT naming the field. */
function audioOf(field: Recording['field'], bytes: Buffer) {
  if (bytes.length > MAX_BYTES) throw badInput(field, 'must be at most 25 MiB');
  const format = audioFormatOf(bytes);
  if (!format) throw badInput(field, 'must be wav, mp3, mp4, m4a, webm, ogg or flac');
  if (format.extension === 'wav' && (wavSeconds(bytes) ?? 0) > MAX_SECONDS)
    throw badInput(field, 'must be at most 4 hours long');
  return { bytes, format };
}

const isObject = (body: unknown): body is object =>
  typeof body === 'object' && body !== null && !Array.isArray(body);
