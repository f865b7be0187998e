import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from 'node:crypto';

/** A sealed value that no known key opens: another key sealed it, or it was touched. */
export class UnreadableSecretError extends Error {
  constructor(message = 'the secret can not be read any more: enter it again') {
    super(message);
    this.name = 'UnreadableSecretError';
  }
}

interface Key {
  /** Names the key in what it sealed, and tells nothing of it. */
  readonly id: string;
  readonly bytes: Buffer;
}

/** Before keys had names. */
const UNNAMED = 'v1.';
const NAMED = /^v2\.([\w-]{8})\.([\w-]+)$/;

/**
 * AES-256-GCM under a key derived from PARLEY_SECRET_KEY: what stands in the database is useless without it. What the
 * key before sealed (PARLEY_SECRET_KEY_PREVIOUS) can be opened as well.
 */
export class SecretBox {
  private readonly current: Key;
  private readonly keys: readonly Key[];

  constructor(secretKey: string, previous?: string) {
    this.current = keyOf(secretKey);
    this.keys = previous === undefined ? [this.current] : [this.current, keyOf(previous)];
  }

  /** `context` is bound in: a value moved to another row does not open there. */
  seal(plain: string, context: string): string {
    const iv = randomBytes(12);
    const cipher = createCipheriv('aes-256-gcm', this.current.bytes, iv).setAAD(Buffer.from(context));
    const sealed = Buffer.concat([cipher.update(plain, 'utf8'), cipher.final()]);
    return `v2.${this.current.id}.${Buffer.concat([iv, cipher.getAuthTag(), sealed]).toString('base64url')}`;
  }

  /** Throws UnreadableSecretError. */
  open(sealed: string, context: string): string {
    const [, id, text] = NAMED.exec(sealed) ?? [];
    const bytes = Buffer.from(text ?? sealed.slice(UNNAMED.length), 'base64url');
    for (const key of this.keys) {
      if (id !== undefined && id !== key.id) continue;
      const plain = opened(bytes, key, context);
      if (plain !== null) return plain;
    }
    throw new UnreadableSecretError();
  }

  /** What was sealed, or null when it can not be read. */
  tryOpen(sealed: string, context: string): string | null {
    try {
      return this.open(sealed, context);
    } catch (error) {
      if (error instanceof UnreadableSecretError) return null;
      throw error;
    }
  }

  /** Whether the key of now sealed it. It may be unreadable all the same. */
  isCurrent(sealed: string): boolean {
    return NAMED.exec(sealed)?.[1] === this.current.id;
  }
}

function keyOf(secretKey: string): Key {
  const derived = (info: string, length: number): Buffer =>
    Buffer.from(hkdfSync('sha256', secretKey, '', info, length));
  return {
    id: derived('parley key id v1', 6).toString('base64url'),
    bytes: derived('parley provider credentials v1', 32),
  };
}

function opened(bytes: Buffer, key: Key, context: string): string | null {
  try {
    const decipher = createDecipheriv('aes-256-gcm', key.bytes, bytes.subarray(0, 12), { authTagLength: 16 })
      .setAAD(Buffer.from(context))
      .setAuthTag(bytes.subarray(12, 28));
    return Buffer.concat([decipher.update(bytes.subarray(28)), decipher.final()]).toString('utf8');
  } catch {
    return null; // another key's, or touched: GCM knows no difference
  }
}
