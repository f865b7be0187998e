import { Controller, Get, Param, Query, Res } from '@nestjs/common';
import { ApiOperation, ApiProduces, ApiTags } from '@nestjs/swagger';
import type { FastifyReply } from 'fastify';
import { BlobLinks, BlobStore, isBlobHash } from '../blobs';
import { AppError, asId, type TenantId } from '../common';
import { Public } from '../common/http';

const NOT_OURS = 'This address is not valid, or not any more: read the record again.';

/** Images that were generated, for whoever has their signed address: an `<img>` sends no key. */
@ApiTags('assistant platform')
@Public()
@Controller(['api/copywriting/image', 'copywriting/image'])
export class ImageController {
  constructor(
    private readonly links: BlobLinks,
    private readonly blobs: BlobStore,
  ) {}

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
    const blob = await this.blobs.get(tenantId, sha256);
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
