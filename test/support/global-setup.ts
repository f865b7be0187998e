import setUp from './postgres';

let tearDown: (() => Promise<void>) | undefined;

export default async function globalSetup(): Promise<void> {
  tearDown = await setUp();
  (globalThis as { parleyTearDown?: typeof tearDown }).parleyTearDown = tearDown;
}
