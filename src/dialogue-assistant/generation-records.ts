import type { GenerationApp, GenerationRecord, ListedGeneration } from '../assistants';
import type { BlobHash, BlobLinks } from '../blobs';
import { platformTime, type GenerationRecordId } from '../common';
import type { BatchFormat, StreamEnd } from '../realtime';

/** The shapes of "Generation apps" in protocols/assistant-platform.md, field for field. */

/** Its form, never its prompt. */
export function templateRecord(app: GenerationApp) {
  const { id, name, description, type, modelServiceId, variables } = app;
  return { id, name, description, type, modelServiceId, variables };
}

/** `origin` is where the client reached us; its images' addresses are good for a day from now. */
export function generationRecord(record: ListedGeneration, origin: string, links: BlobLinks) {
  return {
    id: record.id,
    templateId: record.appId,
    type: record.type,
    result: record.result,
    images: record.images.map(({ sha256, width, height, mimeType }) => ({
      url: `${origin}/api/copywriting/image/${record.tenantId}/${sha256}?${links.sign(record.tenantId, sha256 as BlobHash)}`,
      width,
      height,
      mimeType,
    })),
    promptTokens: record.promptTokens,
    completionTokens: record.completionTokens,
    totalTokens: record.totalTokens,
    youtaizhis: record.credits,
    createTime: platformTime(record.createdAt),
    status: record.status,
    ...(record.error && { error: { code: record.error.code, msg: record.error.message } }),
  };
}

export function generationRow(record: ListedGeneration, origin: string, links: BlobLinks) {
  return { ...generationRecord(record, origin, links), params: record.params };
}

/** A text's pieces and end. */
export function generationFormat(recordId: GenerationRecordId): BatchFormat {
  return ({ pieces, end }) => {
    const texts = pieces.map((result) => eventOf({ result, isEnd: false, recordId }));
    if (end) texts.push(endEvent(recordId, end));
    return texts.join('');
  };
}

/** A text that was written before: one piece, and the end. */
export function wholeGeneration(record: GenerationRecord): string {
  const { id: recordId, result, status, error, ...counts } = record;
  const piece = result === '' ? '' : eventOf({ result, isEnd: false, recordId });
  const ended = status === 'running' ? 'interrupted' : status;
  return piece + endEvent(recordId, { status: ended, ...counts, ...(error && { error }) });
}

function endEvent(recordId: GenerationRecordId, end: StreamEnd): string {
  return eventOf({
    result: '',
    isEnd: true,
    recordId,
    status: end.status,
    promptTokens: end.promptTokens,
    completionTokens: end.completionTokens,
    totalTokens: end.totalTokens,
    youtaizhis: end.credits,
    ...(end.error && { error: { code: end.error.code, msg: end.error.message } }),
  });
}

const eventOf = (data: object): string => `data: ${JSON.stringify(data)}\n\n`;
