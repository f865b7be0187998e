import {
  Injectable,
  Logger,
  type BeforeApplicationShutdown,
  type OnApplicationBootstrap,
} from '@nestjs/common';
import { GenerationRecordsRepository, type ReleasedImage } from '../assistants';
import { BlobStore, type BlobHash } from '../blobs';
import { Periodic } from '../common';

const EVERY_MS = 10_000;
const BATCH = 100;

/** Deletes images that no record shows any more: those of erased and outdated records, and those of failed attempts. */
@Injectable()
export class ImageRelease implements OnApplicationBootstrap, BeforeApplicationShutdown {
  private readonly logger = new Logger(ImageRelease.name);
  private work: Periodic | undefined;

  constructor(
    private readonly records: GenerationRecordsRepository,
    private readonly blobs: BlobStore,
  ) {}

  onApplicationBootstrap(): void {
    const failed = ({ message }: Error): void =>
      this.logger.warn(`images not released, will be tried again: ${message}`);
    this.work = new Periodic(EVERY_MS, () => this.release(), failed);
  }

  async beforeApplicationShutdown(): Promise<void> {
    await this.work?.stop();
  }

  async release(): Promise<void> {
    for (;;) {
      const released = await this.records.releasedImages(BATCH);
      for (const image of released) await this.one(image);
      if (released.length < BATCH) return;
    }
  }

  /** That it is forgotten and that it is gone is one transaction. */
  private one(image: ReleasedImage): Promise<void> {
    const { tenantId, sha256 } = image;
    return this.blobs.deleteUnless(tenantId, sha256 as BlobHash, async (tx) => {
      await this.records.forgetRelease(tx, image);
      return this.records.isImageShown(tx, tenantId, sha256);
    });
  }
}
