import type { WebhookId } from '../common';

/** Seals and opens webhooks' secrets; the application gives it the installation's box. */
export abstract class SecretOpener {
  abstract seal(secret: string, id: WebhookId): string;
  /** Throws UnreadableSecretError. */
  abstract open(sealed: string, id: WebhookId): string;
  abstract readable(sealed: string, id: WebhookId): boolean;
}
