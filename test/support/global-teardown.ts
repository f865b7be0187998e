export default async function globalTeardown(): Promise<void> {
  await (globalThis as { parleyTearDown?: () => Promise<void> }).parleyTearDown?.();
}
