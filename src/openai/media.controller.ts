import { Body, Controller, HttpCode, Post, Req, Res, UsePipes } from '@nestjs/common';
import { RouteConfig } from '@nestjs/platform-fastify';
import {
  ApiBody,
  ApiConsumes,
  ApiHeader,
  ApiOperation,
  ApiProduces,
  ApiSecurity,
  ApiTags,
} from '@nestjs/swagger';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { badInput, type Principal, type TenantId } from '../common';
import { Caller, readAudioForm, Scopes, validation, whilePresent } from '../common/http';
import { TenantSlots } from '../fairness';
import { audioFormatOf, Generations, ImageFetcher } from '../generations';
import { ModelServicesRepository, type ResolvedService } from '../model-services';
import { vectorIn } from './embedding-vectors';
import { imageIn } from './image-forms';
import { CreateEmbeddings, CreateImages, CreateTranscription } from './media-requests';
import { noSuchModel } from './models';

/** Each is in memory twice, as it came and as it goes out: up to 50 MiB. */
const MAX_UPLOADS_AT_ONCE = 32;

/** Embeddings, images and transcripts of protocols/openai.md, with and without `/api`. A client that leaves aborts the provider's request. */
@ApiTags('openai')
@ApiSecurity('bearer')
@ApiHeader({ name: 'tenant-id', required: false })
@ApiHeader({ name: 'user-id', required: false })
@Scopes('dialogue', 'models')
@UsePipes(validation('ignored'))
@Controller(['v1', 'api/v1'])
export class MediaController {
  private readonly checks = validation('ignored');
  private readonly uploads = new TenantSlots('recordings', MAX_UPLOADS_AT_ONCE);

  constructor(
    private readonly services: ModelServicesRepository,
    private readonly generations: Generations,
    private readonly images: ImageFetcher,
  ) {}

  @Post('embeddings')
  @HttpCode(200)
  @ApiOperation({ summary: 'Embeddings' })
  async embed(
    @Caller() caller: Principal,
    @Body() { model, user, input, ...options }: CreateEmbeddings,
    @Req() request: FastifyRequest,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    return whilePresent(reply, async (signal) => {
      const service = await this.service(caller.tenantId, model);
      const principal = principalOf(caller, user, request);
      const asked = present({ ...options, user });
      const made = await this.generations.embed(principal, { service, input, options: asked, signal });
      const format = options.encoding_format ?? 'float';
      return {
        object: 'list',
        data: made.vectors.map((vector, index) => ({
          object: 'embedding',
          index,
          embedding: vectorIn(format, vector),
        })),
        model,
        usage: { prompt_tokens: made.counts.promptTokens, total_tokens: made.counts.totalTokens },
      };
    });
  }

  @Post('images/generations')
  @HttpCode(200)
  @ApiOperation({ summary: 'Images of a prompt' })
  async drawImages(
    @Caller() caller: Principal,
    @Body() { model, user, prompt, ...options }: CreateImages,
    @Req() request: FastifyRequest,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    return whilePresent(reply, async (signal) => {
      const service = await this.service(caller.tenantId, model);
      const principal = principalOf(caller, user, request);
      const asked = present({ ...options, user });
      const made = await this.generations.drawImages(principal, { service, prompt, options: asked, signal });
      const data = [];
      // One after another: together they could be more than memory should hold.
      for (const image of made.json.data) {
        data.push(await imageIn(options.response_format, image, this.images, signal));
      }
      return { created: Math.floor(Date.now() / 1_000), ...made.json, data };
    });
  }

  @Post('audio/transcriptions')
  @HttpCode(200)
  @RouteConfig({ takesForm: true })
  @ApiOperation({ summary: 'What is said in a recording' })
  @ApiConsumes('multipart/form-data')
  @ApiBody({ type: CreateTranscription })
  @ApiProduces('application/json', 'text/plain')
  async transcribe(
    @Caller() caller: Principal,
    @Req() request: FastifyRequest,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const giveBack = this.uploads.take(caller.tenantId);
    try {
      return await whilePresent(reply, (signal) => this.transcript(caller, request, reply, signal));
    } finally {
      giveBack();
    }
  }

  private async transcript(
    caller: Principal,
    request: FastifyRequest,
    reply: FastifyReply,
    signal: AbortSignal,
  ) {
    const { file, fields } = await readAudioForm(request);
    const form = (await this.checks.transform(fields, {
      type: 'body',
      metatype: CreateTranscription,
    })) as CreateTranscription;
    const { model, user, response_format: responseFormat = 'json', timestamp_granularities, ...rest } = form;
    const format = audioFormatOf(file);
    if (!format) throw badInput('file', 'must be wav, mp3, mp4, m4a, webm, ogg or flac');
    const { language, prompt, temperature } = rest;
    const made = await this.generations.transcribe(principalOf(caller, user, request), {
      service: await this.service(caller.tenantId, model),
      audio: { bytes: file, format },
      responseFormat,
      options: present({
        language,
        prompt,
        temperature,
        'timestamp_granularities[]': timestamp_granularities,
      }),
      signal,
    });
    if (responseFormat === 'json' || responseFormat === 'verbose_json') return made.json;
    void reply.type('text/plain; charset=utf-8');
    return made.text;
  }

  /** NOT_FOUND for what this tenant may not use. */
  private async service(tenantId: TenantId, model: string): Promise<ResolvedService> {
    const service = await this.services.findUsable(tenantId, model);
    if (!service) throw noSuchModel(model);
    return service;
  }
}

/** The `user-id` header first, then the body's `user`; a user's own token is that user's whatever it says. */
function principalOf(caller: Principal, user: string | undefined, { headers }: FastifyRequest): Principal {
  const named = headers['user-id'] !== undefined || caller.endUser;
  return named || user === undefined ? caller : { ...caller, userId: user };
}

/** Only what was sent goes to the provider. */
function present<T extends object>(options: T): { [K in keyof T]-?: Exclude<T[K], undefined> } {
  const entries = Object.entries(options).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries) as { [K in keyof T]-?: Exclude<T[K], undefined> };
}
