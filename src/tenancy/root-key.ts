import { hashSecret, secretMatches } from './api-key';

/** The platform operator's key. Without one (production, PARLEY_ROOT_KEY unset) nothing matches. */
export class RootKey {
  private readonly hash: string | undefined;

  constructor(key: string | undefined) {
    this.hash = key === undefined ? undefined : hashSecret(key);
  }

  matches(key: string): boolean {
    return this.hash !== undefined && secretMatches(key, this.hash);
  }
}
