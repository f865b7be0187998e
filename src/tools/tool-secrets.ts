/** Seals and opens the headers of tool sources; the application gives it the installation's box. */
export abstract class ToolSecrets {
  abstract seal(text: string, id: string): string;
  /** Throws UnreadableSecretError. */
  abstract open(sealed: string, id: string): string;
  abstract readable(sealed: string, id: string): boolean;
}
