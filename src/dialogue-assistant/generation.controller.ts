import { Body, Get, HttpCode, Param, Post, Query, Req, Res, UsePipes } from '@nestjs/common';
import { ApiHeader, ApiOperation, ApiProduces } from '@nestjs/swagger';
import type { FastifyReply, FastifyRequest } from 'fastify';
import {
  GENERATION_TYPE,
  GenerationAppsRepository,
  GenerationRecordsRepository,
  type GenerationRecord,
} from '../assistants';
import { BlobLinks } from '../blobs';
import {
  AppError,
  type GenerationAppId,
  type GenerationRecordId,
  type ModelServiceId,
  type Principal,
} from '../common';
import { Caller, idempotencyKeyOf, validation, whileHeld, whilePresent } from '../common/http';
import {
  AppGenerations,
  GenerationEndings,
  streamOf,
  TextGenerations,
  type StartedGeneration,
} from '../generations';
import { SseStreams, StreamLog } from '../realtime';
import { tenantOf } from '../replies';
import { list, success } from './envelope';
import {
  generationFormat,
  generationRecord,
  generationRow,
  templateRecord,
  wholeGeneration,
} from './generation-records';
import { pageOf } from './paging';
import { lostEvent } from './reply-events';
import { known, originOf, PROVIDER_RATE_RETRY_SECONDS, PlatformController } from './request-parts';
import { Generate, RecordListQuery } from './requests';

const RECORDS = {
  pageSize: 20,
  columns: { createTime: 'createdAt', totalTokens: 'totalTokens' },
  orderBy: 'createdAt',
  descending: true,
} as const;
/** An image that takes longer is asked for again by its record. */
const IMAGE_WAIT_MS = 10_000;

/** Generation apps of protocols/assistant-platform.md, with and without `/api`. */
@UsePipes(validation('ignored'))
@PlatformController()
export class GenerationController {
  constructor(
    private readonly apps: GenerationAppsRepository,
    private readonly records: GenerationRecordsRepository,
    private readonly generations: AppGenerations,
    private readonly endings: GenerationEndings,
    private readonly texts: TextGenerations,
    private readonly log: StreamLog,
    private readonly streams: SseStreams,
    private readonly links: BlobLinks,
  ) {}

  @Get('template/user/:id')
  @ApiOperation({ summary: 'A generation app by its id' })
  async template(@Caller() { tenantId }: Principal, @Param('id') id: string) {
    const app = await this.apps.find(tenantId, known<GenerationAppId>(id));
    if (!app) throw new AppError('NOT_FOUND');
    return success(templateRecord(app));
  }

  @Post('userCopywriting/:id')
  @HttpCode(200)
  @ApiOperation({ summary: 'Generate a text or images with an app' })
  @ApiHeader({ name: 'Idempotency-Key', required: false })
  @ApiProduces('application/json', 'text/event-stream')
  async generate(
    @Caller() principal: Principal,
    @Param('id') id: string,
    @Body() { params = {}, modelServiceId }: Generate,
    @Req() request: FastifyRequest,
    @Res() reply: FastifyReply,
  ): Promise<void> {
    const idempotencyKey = idempotencyKeyOf(request);
    const started = await this.generations.start({
      principal,
      appId: known<GenerationAppId>(id),
      params,
      modelServiceId: (modelServiceId as ModelServiceId | undefined) ?? null,
      idempotencyKey,
    });
    const isText = started.type === GENERATION_TYPE.text;
    // Who sent a key means to come back for it.
    if (isText && idempotencyKey === null) this.stopWithout(reply, started);
    if (isText && wantsEvents(request)) await this.stream(principal, started, reply);
    else await this.answer(principal, started, request, reply);
  }

  @Get('userCopywriting/record-list')
  @ApiOperation({ summary: 'History of generated texts and images' })
  async listRecords(
    @Caller() principal: Principal,
    @Query() query: RecordListQuery,
    @Req() request: FastifyRequest,
  ) {
    const { userId } = principal;
    const { total, rows } = await this.records.list(tenantOf(principal), {
      ...pageOf(query, RECORDS),
      ...(query.templateId && { appId: query.templateId as GenerationAppId }),
      ...(query.isUser === 'true' && { userId }),
    });
    const origin = originOf(request);
    return list(
      total,
      rows.map((row) => generationRow(row, origin, this.links)),
    );
  }

  @Get('userCopywriting/:recordId')
  @ApiOperation({ summary: 'What was generated, by the id of its record; while it is, status is running' })
  async record(
    @Caller() { tenantId }: Principal,
    @Param('recordId') id: string,
    @Req() request: FastifyRequest,
  ) {
    const record = await this.records.find(tenantId, known<GenerationRecordId>(id));
    if (!record) throw new AppError('NOT_FOUND');
    return success(generationRow(record, originOf(request), this.links));
  }

  private stopWithout({ raw }: FastifyReply, { id }: StartedGeneration): void {
    const stop = (): void => this.texts.stop(id);
    if (raw.destroyed) stop();
    else raw.once('close', stop);
  }

  /** Waits for the end, or for as long as an image is waited for, and answers once. */
  private async answer(
    { tenantId }: Principal,
    { id, type }: StartedGeneration,
    request: FastifyRequest,
    reply: FastifyReply,
  ): Promise<void> {
    const ms = type === GENERATION_TYPE.text ? Infinity : IMAGE_WAIT_MS;
    const record = await whilePresent(reply, (signal) => this.endings.wait(tenantId, id, { ms, signal }));
    if (!record || reply.raw.destroyed) return;
    const data = generationRecord(record, originOf(request), this.links);
    const { error } = record;
    if (!error) {
      void reply.send(success(data));
      return;
    }
    if (error.code === 429) void reply.header('retry-after', PROVIDER_RATE_RETRY_SECONDS);
    void reply.status(error.code).send({ code: error.code, msg: error.message, data });
  }

  /** A text as it is written; one that another process writes, or that was written long ago, in one piece at its end. */
  private async stream(
    { tenantId }: Principal,
    { id }: StartedGeneration,
    reply: FastifyReply,
  ): Promise<void> {
    let pump = (): void => undefined;
    const cursor = await this.log.read(tenantId, streamOf(id), 0, () => pump());
    const stream = this.streams.begin(reply, generationFormat(id), () => ASK_RECORD);
    ({ pump } = stream);
    whileHeld(reply, (error) => stream.cutOff(lostEvent({ recordId: id }, error)));
    if (cursor) {
      stream.attach(cursor);
      return;
    }
    const record = await this.waited(tenantId, id, reply);
    if (record) stream.event(wholeGeneration(record));
    stream.finish();
  }

  /** The head is written already: what fails now can only end the stream. */
  private async waited(
    tenantId: Principal['tenantId'],
    id: GenerationRecordId,
    reply: FastifyReply,
  ): Promise<GenerationRecord | undefined> {
    const wait = (signal: AbortSignal) => this.endings.wait(tenantId, id, { ms: Infinity, signal });
    return whilePresent(reply, wait).catch(() => undefined);
  }
}

/** A comment, which no client takes for an event. */
const ASK_RECORD = ': ended, for it was read too slowly: the record has the text\n\n';

const wantsEvents = ({ headers }: FastifyRequest): boolean =>
  /text\/event-stream/i.test(headers.accept ?? '');
