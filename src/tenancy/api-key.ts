import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import { isId, type ApiKeyId } from '../common';

const ALPHABET = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
const SECRET_LENGTH = 32; // 190 bits
const CHECKSUM_LENGTH = 6;

/** The two halves of a key: `pk_<id>` may be known, the secret may not. */
export interface ApiKeyParts {
  readonly id: ApiKeyId;
  readonly secret: string;
}

function base62(bytes: Buffer, length: number): string {
  let text = '';
  // Rejection sampling: 248 = 4 × 62, so every character is equally likely.
  for (const byte of bytes) if (byte < 248 && text.length < length) text += ALPHABET[byte % 62];
  return text;
}

function checksum(id: string, secret: string): string {
  return base62(createHash('sha256').update(`${id}:${secret}`).digest(), CHECKSUM_LENGTH).padEnd(
    CHECKSUM_LENGTH,
    '0',
  );
}

export function makeSecret(id: string): string {
  let random = '';
  while (random.length < SECRET_LENGTH)
    random += base62(randomBytes(SECRET_LENGTH), SECRET_LENGTH - random.length);
  return random + checksum(id, random);
}

export const appKeyOf = (id: string): string => `pk_${id}`;
/** The id in the public half, or null for what can't be one. */
export function parseAppKey(appKey: string): ApiKeyId | null {
  const id = /^pk_(\d{1,19})$/.exec(appKey)?.[1];
  return isId(id) ? (id as ApiKeyId) : null;
}
export const formatApiKey = ({ id, secret }: ApiKeyParts): string => `${appKeyOf(id)}_${secret}`;

/** The parts of a well-formed key whose checksum fits, else null: a mistyped key costs no query. */
export function parseApiKey(key: string): ApiKeyParts | null {
  const match = /^pk_(\d{1,19})_([0-9A-Za-z]{38})$/.exec(key);
  if (!match || !isId(match[1])) return null;
  const [, id, secret] = match as unknown as [string, ApiKeyId, string];
  return checksum(id, secret.slice(0, SECRET_LENGTH)) === secret.slice(SECRET_LENGTH) ? { id, secret } : null;
}

/** SHA-256: the secret has 190 random bits, so there is nothing for a slow hash to protect. */
export function hashSecret(secret: string): string {
  return createHash('sha256').update(secret).digest('hex');
}

/** Compares in constant time. */
export function secretMatches(secret: string, hash: string): boolean {
  return timingSafeEqual(Buffer.from(hashSecret(secret), 'hex'), Buffer.from(hash, 'hex'));
}
