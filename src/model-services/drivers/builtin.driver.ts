import { setTimeout as delay } from 'node:timers/promises';
import { Injectable } from '@nestjs/common';
import {
  TextDriver,
  type ContentPart,
  type TextRequest,
  type TextResult,
  type TextSink,
} from './text-driver';

const PIECE_EVERY_MS = 15;
const GREETING = "This is Parley's built-in demo model (no provider is configured). You said: ";

/** A model without a network: says plainly that it is a demo and repeats what it was told, word by word. */
@Injectable()
export class BuiltinDriver extends TextDriver {
  async stream({ messages, signal, flow }: TextRequest, sink: TextSink): Promise<TextResult> {
    const said = messages.findLast(({ role }) => role === 'user')?.content ?? '';
    const answer = GREETING + (typeof said === 'string' ? said : textOf(said));
    for (const piece of wordsOf(answer)) {
      await delay(PIECE_EVERY_MS, undefined, { signal }).catch(() => {
        throw signal.reason;
      });
      await flow?.room();
      signal.throwIfAborted();
      sink.pieces([piece]);
    }
    return { usage: null, finishReason: 'stop', attempts: 1 };
  }
}

/** A word and the space after it, or up to eight characters of a script without spaces; together exactly the text. */
function wordsOf(text: string): string[] {
  // Bounded white space: an open \s* tries a long run of it anew at every place, which is quadratic.
  return text.match(/\s{0,8}[\x21-\x7e]{1,40}\s?|[^\x21-\x7e]{1,8}/gsu) ?? [];
}

function textOf(parts: readonly ContentPart[]): string {
  return parts.map(({ type, text }) => (typeof text === 'string' ? text : `[${type}]`)).join(' ');
}
