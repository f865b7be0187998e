import { AppError, type ErrorCode } from '../common';

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

/** The same on REST, where the same things are asked for. */
const ON_REST: Readonly<Record<number, ErrorCode>> = {
  [CODE.badFrame]: 'BAD_INPUT',
  [CODE.foreignSource]: 'FORBIDDEN',
  [CODE.noGroup]: 'NOT_FOUND',
  [CODE.forbidden]: 'FORBIDDEN',
  [CODE.conflict]: 'CONFLICT',
  [CODE.tooManyFrames]: 'RATE_LIMITED',
  [CODE.unavailable]: 'STORAGE_UNAVAILABLE',
};

/** A failure of one frame, told to its sender alone; of a request over REST, an error like any other. */
export class FrameError extends AppError {
  constructor(
    readonly frameCode: number,
    message: string,
  ) {
    super(ON_REST[frameCode] ?? 'INTERNAL', { message });
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
