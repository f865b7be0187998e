import type { ServerResponse } from 'node:http';
import { Controller, Get, Param, Query, Res } from '@nestjs/common';
import { ApiOperation, ApiProduces, ApiTags } from '@nestjs/swagger';
import type { FastifyReply } from 'fastify';
import { BlobLinks, BlobStore, isBlobHash, type Blob, type BlobHash } from '../blobs';
import { AppError, asId, type TenantId } from '../common';
import { Public } from '../common/http';
import { TenantsRepository } from '../tenancy';

/** Each may take three times a blob's 20 MiB while PostgreSQL's answer is decoded. */
const MAX_READS_AT_ONCE = 8;
/** So that a page full of images gets them all: a browser does not ask again. */
const MAX_WAITING = 256;
const NOT_OURS = 'This address is not valid, or not any more: read the record again.';

/** Images that were generated, for whoever has their signed address: an `<img>` sends no key. */
@ApiTags('assistant platform')
@Public()
@Controller(['api/copywriting/image', 'copywriting/image'])
export class ImageController {
  private readonly reads: SharedReads;

  constructor(
    private readonly links: BlobLinks,
    private readonly tenants: TenantsRepository,
    blobs: BlobStore,
  ) {
    this.reads = new SharedReads(blobs);
  }

  @Get(':tenant/:sha256')
  @ApiOperation({ summary: 'A generated image, by the address that its record gives' })
  @ApiProduces('image/png', 'image/jpeg', 'image/webp', 'image/gif')
  async image(
    @Param('tenant') tenant: string,
    @Param('sha256') sha256: string,
    @Query('expires') expires: unknown,
    @Query('signature') signature: unknown,
    @Res() reply: FastifyReply,
  ): Promise<void> {
    const tenantId = asId<TenantId>(tenant);
    const seconds =
      tenantId && isBlobHash(sha256) ? this.links.check(tenantId, sha256, expires, signature) : null;
    if (!tenantId || !isBlobHash(sha256) || seconds === null)
      throw new AppError('UNAUTHENTICATED', { message: NOT_OURS });
    if ((await this.tenants.settings(tenantId))?.active === false) throw new AppError('TENANT_SUSPENDED');
    const blob = await this.reads.blob(tenantId, sha256, reply.raw);
    if (!blob) throw new AppError('NOT_FOUND');
    void reply
      .headers({
        'content-type': blob.mimeType,
        'cache-control': `private, max-age=${seconds}, immutable`,
        // It came from a model: whatever a browser could make of it, it is an image and runs nothing.
        'x-content-type-options': 'nosniff',
        'content-security-policy': "default-src 'none'",
      })
      .send(blob.bytes);
  }
}

interface SharedBlob {
  readonly blob: Promise<Blob | null>;
  /** Answers that it is for. */
  users: number;
}

/** What many ask for at once is read once, and is in memory once for as long as any of them is being sent it. */
class SharedReads {
  private readonly shared = new Map<string, SharedBlob>();
  private readonly waiting: (() => void)[] = [];
  private reading = 0;

  constructor(private readonly blobs: BlobStore) {}

  /** Null when there is none. OVERLOADED when too many wait; STORAGE_UNAVAILABLE. */
  async blob(tenantId: TenantId, hash: BlobHash, answer: ServerResponse): Promise<Blob | null> {
    // Who has left already never closes again.
    if (answer.destroyed) return null;
    const key = `${tenantId}/${hash}`;
    const found = this.shared.get(key) ?? { blob: this.read(tenantId, hash), users: 0 };
    this.shared.set(key, found);
    found.users += 1;
    answer.once('close', () => {
      found.users -= 1;
      if (found.users === 0) this.shared.delete(key);
    });
    return found.blob;
  }

  private async read(tenantId: TenantId, hash: BlobHash): Promise<Blob | null> {
    if (this.reading < MAX_READS_AT_ONCE) this.reading += 1;
    else if (this.waiting.length >= MAX_WAITING) throw new AppError('OVERLOADED', { retryAfterSeconds: 1 });
    else await new Promise<void>((takeOver) => this.waiting.push(takeOver));
    try {
      return await this.blobs.get(tenantId, hash);
    } finally {
      const next = this.waiting.shift();
      if (next) next();
      else this.reading -= 1;
    }
  }
}
