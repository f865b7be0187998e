import { Injectable, Logger } from '@nestjs/common';
import { GenerationRecordsRepository, type GenerationRecord, type StoredImage } from '../assistants';
import { BlobStore, hashOf } from '../blobs';
import { AppError, untilStored } from '../common';
import {
  MediaDriver,
  ModelServicesRepository,
  ProviderError,
  type ImagesResult,
  type MadeImage,
  type ResolvedService,
} from '../model-services';
import { failureOf, GenerationEndings } from './generation-endings';
import type { ImageJob } from './image-jobs';
import { imageFileOf } from './image-file';
import { ImageCosts } from './image-costs';
import { ImageFetcher } from './image-fetcher';

const MAX_IMAGES = 10;
const MAX_IMAGE_BYTES = 20_971_520;
/** It is paid for: a store that is away for a moment should not cost it. */
const GIVE_UP_KEEPING_MS = 60_000;

/** Images that models draw: what a record asks for, fetched, checked and kept by us before the record says that it has them. */
@Injectable()
export class ImageGenerations {
  private readonly logger = new Logger(ImageGenerations.name);

  constructor(
    private readonly records: GenerationRecordsRepository,
    private readonly services: ModelServicesRepository,
    private readonly driver: MediaDriver,
    private readonly fetcher: ImageFetcher,
    private readonly blobs: BlobStore,
    private readonly endings: GenerationEndings,
    private readonly costs: ImageCosts,
  ) {}

  /**
   * Draws what the record asks for, unless that has ended, and ends it. Throws only what leaves it `running`: the
   * signal's reason when aborted, STORAGE_UNAVAILABLE when even the record could not be read.
   */
  async draw({ tenantId, recordId }: ImageJob, signal: AbortSignal): Promise<void> {
    const record = await this.records.find(tenantId, recordId);
    if (record?.status !== 'running') return;
    const service = await this.services.resolve(tenantId, record.modelServiceId);
    const startedAt = Date.now();
    let made: ImagesResult | undefined;
    let images: StoredImage[] = [];
    let failure: unknown;
    try {
      if (!service)
        throw new AppError('PROVIDER_FAILED', { message: 'Its model service is not there any more.' });
      made = await this.ask(record, service, signal);
      this.costs.learn(service, made.usage, made.json.data.length);
      images = await this.keep(record, made.json.data.slice(0, MAX_IMAGES), signal);
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      failure = error;
      this.tell(error, record);
    }
    await this.endings.store(record, service, {
      ...(failure === undefined
        ? { status: 'finished', images }
        : { status: 'failed', error: failureOf(failure) }),
      usage: made?.usage ?? null,
      attempts: made?.attempts ?? (failure instanceof ProviderError ? failure.details.attempts : 1),
      firstPieceMs: null,
      latencyMs: Date.now() - startedAt,
    });
  }

  private ask(
    { prompt, parameters }: GenerationRecord,
    service: ResolvedService,
    signal: AbortSignal,
  ): Promise<ImagesResult> {
    // The bytes at once, where a provider can: its addresses are another request each.
    const options: Record<string, unknown> = {
      response_format: 'b64_json',
      ...service.parameters,
      ...parameters,
    };
    if (Number(options.n) > MAX_IMAGES) options.n = MAX_IMAGES;
    return this.driver.images({ service, prompt, options, signal });
  }

  /** One after another: together they could be more than memory should hold. */
  private async keep(
    { id, tenantId }: GenerationRecord,
    made: readonly MadeImage[],
    signal: AbortSignal,
  ): Promise<StoredImage[]> {
    const kept: StoredImage[] = [];
    for (const image of made) {
      const bytes = await this.bytesOf(image, signal);
      const file = bytes.length <= MAX_IMAGE_BYTES ? imageFileOf(bytes) : null;
      if (!file) {
        const message =
          'The model provider made something that is no PNG, JPEG, WebP or GIF of at most 20 MiB.';
        throw new AppError('PROVIDER_FAILED', { message });
      }
      const sha256 = await untilStored(() => this.put({ id, tenantId }, bytes, file.mimeType), {
        ms: GIVE_UP_KEEPING_MS,
        waits: () => this.logger.warn(`the image store is away; an image of generation ${id} waits`),
      });
      // Erased meanwhile: nobody will ask for it.
      if (sha256 === null) return [];
      kept.push({ sha256, ...file });
    }
    return kept;
  }

  /** That the record shows it stands first: so nothing that is kept is without a record to go with. */
  private async put(
    { id, tenantId }: Pick<GenerationRecord, 'id' | 'tenantId'>,
    bytes: Buffer,
    mimeType: string,
  ): Promise<string | null> {
    if (!(await this.records.claimImage(tenantId, id, hashOf(bytes)))) return null;
    return this.blobs.put(tenantId, { bytes, mimeType });
  }

  private bytesOf(image: MadeImage, signal: AbortSignal): Promise<Buffer> | Buffer {
    return 'b64_json' in image
      ? Buffer.from(image.b64_json as string, 'base64')
      : this.fetcher.fetch(image.url, signal);
  }

  private tell(error: unknown, { id }: GenerationRecord): void {
    if (error instanceof ProviderError || error instanceof AppError) return;
    this.logger.error({ err: error, recordId: id }, 'unexpected failure while drawing an image');
  }
}
