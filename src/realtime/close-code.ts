import type { AppError } from '../common';
import { CLOSE } from './socket-writer';

/** What a socket is closed with when its access ends: 4401 where another credential helps, else 4403. */
export function closeCodeOf({ code }: AppError): number {
  return code === 'UNAUTHENTICATED' ? CLOSE.unauthorized : CLOSE.suspended;
}
