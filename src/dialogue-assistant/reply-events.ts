import type { AppError, DialogueId, MessageId } from '../common';
import type { Dialogue, DialogueMessage } from '../messages';
import type { BatchFormat } from '../realtime';
import { envelopeStatus } from './envelope';
import { dialogueRecord } from './records';

/** `<messageId>:<n>`: the event id that `Last-Event-ID` brings back. */
function eventId(messageId: MessageId, number: number): string {
  return `${messageId}:${number}`;
}

/** The first event, number 0. */
export function firstEvent(replyId: MessageId, dialogue: Dialogue, message: DialogueMessage): string {
  return `id: ${eventId(replyId, 0)}\ndata: ${JSON.stringify(dialogueRecord(dialogue, message))}\n\n`;
}

/** The last event of a reader whose access has ended; without an id, so that it can come back for what it missed. */
export function lostEvent(of: object, lost: AppError): string {
  const data = {
    result: '',
    isEnd: true,
    ...of,
    status: 'failed',
    error: { code: envelopeStatus(lost), msg: lost.message },
  };
  return `data: ${JSON.stringify(data)}\n\n`;
}

/** Pieces and end, as "Sending a message" has them. The parts that never change are made once a stream: this runs for every piece. */
export function replyFormat(dialogueId: DialogueId, replyId: MessageId): BatchFormat {
  const head = `id: ${replyId}:`;
  const middle = '\ndata: {"result":';
  const tail = `,"isEnd":false,"userDialogueId":"${dialogueId}"}\n\n`;
  return ({ first, pieces, end }) => {
    let text = '';
    let number = first;
    for (const piece of pieces) {
      text += head + number + middle + JSON.stringify(piece) + tail;
      number += 1;
    }
    if (!end) return text;
    const data = {
      result: '',
      isEnd: true,
      userDialogueId: dialogueId,
      messageId: replyId,
      status: end.status,
      promptTokens: end.promptTokens,
      completionTokens: end.completionTokens,
      totalTokens: end.totalTokens,
      youtaizhis: end.credits,
      ...(end.error && { error: { code: end.error.code, msg: end.error.message } }),
    };
    return `${text}${head}${number}\ndata: ${JSON.stringify(data)}\n\n`;
  };
}
