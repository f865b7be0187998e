import type { Multipart } from '@fastify/multipart';
import type { FastifyRequest } from 'fastify';
import { AppError, badInput } from '../errors';

export interface AudioForm {
  readonly file: Buffer;
  /** Text by field, a list where the field came more than once; `[]` at a name's end is dropped. */
  readonly fields: Readonly<Record<string, string | string[]>>;
}

const MAX_FILE_BYTES = 26_214_400;
/** The file, the fields, and what is between them. */
const MAX_FORM_BYTES = MAX_FILE_BYTES + 1_048_576;
const MAX_FIELD = '32 KiB';
const MAX_FILE = '25 MiB';

/** The form with its one file, in memory. UNSUPPORTED_MEDIA_TYPE when it is none; BAD_INPUT naming what is wrong of it. */
export async function readAudioForm(request: FastifyRequest): Promise<AudioForm> {
  if (!request.isMultipart()) {
    throw new AppError('UNSUPPORTED_MEDIA_TYPE', {
      message: 'Send a form: Content-Type multipart/form-data.',
    });
  }
  try {
    if (Number(request.headers['content-length'] ?? 0) > MAX_FORM_BYTES) throw tooLarge();
    return await readParts(request.parts());
  } catch (error) {
    // What is still on its way is read and dropped, so that the client gets to hear the answer.
    request.raw.unpipe();
    request.raw.resume();
    throw formError(error);
  }
}

async function readParts(parts: AsyncIterable<Multipart>): Promise<AudioForm> {
  const fields = new Map<string, string | string[]>();
  let file: Buffer | undefined;
  for await (const part of parts) {
    if (part.type === 'file') {
      const bytes = await part.toBuffer();
      if (part.fieldname === 'file') file = bytes;
      continue;
    }
    const name = part.fieldname.replace(/\[\]$/, '');
    if (part.valueTruncated) throw badInput(name, `must be at most ${MAX_FIELD}`);
    if (typeof part.value !== 'string') throw badInput(name, 'must be a text');
    const earlier = fields.get(name);
    fields.set(name, earlier === undefined ? part.value : [earlier, part.value].flat());
  }
  if (!file) throw badInput('file', 'is required, as a file');
  if (file.length === 0) throw badInput('file', 'must not be empty');
  return { file, fields: Object.fromEntries(fields) };
}

function tooLarge(): AppError {
  return badInput('file', `must be at most ${MAX_FILE}`);
}

function formError(error: unknown): unknown {
  if (error instanceof AppError) return error;
  const { code } = error as NodeJS.ErrnoException;
  if (code === 'FST_REQ_FILE_TOO_LARGE') return tooLarge();
  if (code === 'FST_FILES_LIMIT') return badInput('file', 'must be one file');
  if (code === 'FST_FIELDS_LIMIT' || code === 'FST_PARTS_LIMIT')
    return badInput('body', 'has too many fields');
  return new AppError('BAD_INPUT', { message: 'body: is not a valid form', cause: error });
}
