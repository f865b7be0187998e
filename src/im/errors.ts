import type { AppError } from '../common';

/** Codes of `error` frames (protocols/im.md, "Frames"; 5000 and 5003 are Parley's own). */
export const CODE = {
  badFrame: 4000,
  foreignSource: 4003,
  noGroup: 4004,
  forbidden: 4005,
  conflict: 4006,
  tooManyFrames: 4029,
  internal: 5000,
  unavailable: 5003,
} as const;

/** A failure of one frame, told to its sender alone. */
export class FrameError extends Error {
  constructor(
    readonly code: number,
    message: string,
  ) {
    super(message);
  }
}

export function frameErrorOf(error: AppError): FrameError {
  switch (error.code) {
    case 'STORAGE_UNAVAILABLE':
    case 'OVERLOADED':
    case 'SHUTTING_DOWN':
      return new FrameError(
        CODE.unavailable,
        `${error.message} Send it again, with the same msgId and timestamp.`,
      );
    case 'BAD_INPUT':
      return new FrameError(CODE.badFrame, error.message);
    case 'NOT_FOUND':
      return new FrameError(CODE.noGroup, error.message);
    case 'FORBIDDEN':
    case 'CONFLICT':
      return new FrameError(CODE.forbidden, error.message);
    default:
      return new FrameError(CODE.internal, 'Something went wrong here; it has been logged.');
  }
}
