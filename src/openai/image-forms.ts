import type { ImageFetcher } from '../generations';
import type { MadeImage } from '../model-services';

/** By how the base64 of their first bytes begins. */
const TYPES = [
  ['iVBORw', 'image/png'],
  ['/9j/', 'image/jpeg'],
  ['UklGR', 'image/webp'],
  ['R0lGOD', 'image/gif'],
] as const;

/**
 * An image as the client asked for it, whichever way the provider sent it. PROVIDER_FAILED when it is somewhere that we
 * do not fetch from.
 */
export async function imageIn(
  format: 'url' | 'b64_json' | undefined,
  image: MadeImage,
  fetcher: ImageFetcher,
  signal: AbortSignal,
): Promise<MadeImage> {
  if (format === 'url' && 'b64_json' in image) {
    const { b64_json: base64, ...rest } = image as { b64_json: string };
    return { ...rest, url: `data:${typeOf(base64)};base64,${base64}` };
  }
  if (format === 'b64_json' && 'url' in image) {
    const { url, ...rest } = image as { url: string };
    return { ...rest, b64_json: (await fetcher.fetch(url, signal)).toString('base64') };
  }
  return image;
}

function typeOf(base64: string): string {
  return TYPES.find(([start]) => base64.startsWith(start))?.[1] ?? 'application/octet-stream';
}
