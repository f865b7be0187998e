import { timeOfId } from '../common';
import type { LogEntry } from '../messages';
import { textFrame, type Live } from '../realtime';

/** An entry of a log on its way to sockets: each dialect's bytes are made once, however many read them. */
export class LiveMessage implements Live {
  private plainBytes: Buffer | undefined;
  private richBytes: Buffer | undefined;

  constructor(
    readonly entry: LogEntry,
    /** The connection that sent it and needs no copy; empty for none. */
    readonly origin: string = '',
  ) {}

  /** The frame as it was sent, and `id` and `seq`. */
  get plain(): Buffer {
    return (this.plainBytes ??= textFrame(`${this.head()}}`));
  }

  /** And what `parley.im.v1` needs to acknowledge it. */
  get rich(): Buffer {
    return (this.richBytes ??= textFrame(richText(this.entry)));
  }

  private head(): string {
    const { frame, id, seq, recalled } = this.entry;
    return `${frame.slice(0, -1)},"id":"${id}","seq":${seq}${recalled ? ',"recalled":true' : ''}`;
  }

  /** As it travels on the bus. */
  encode(): string {
    const { conversationId, seq, id, recalled, sender, client, frame } = this.entry;
    return `m${conversationId} ${seq} ${id} ${recalled ? 1 : 0} ${this.origin}\n${JSON.stringify([sender, client])}\n${frame}`;
  }

  static decode(text: string): LiveMessage {
    const first = text.indexOf('\n');
    const second = text.indexOf('\n', first + 1);
    const [conversationId, seq, id, recalled, origin] = text.slice(1, first).split(' ') as [
      LogEntry['conversationId'],
      string,
      LogEntry['id'],
      string,
      string,
    ];
    const [sender, client] = JSON.parse(text.slice(first + 1, second)) as [string, string];
    const frame = text.slice(second + 1);
    return new LiveMessage(
      { conversationId, seq: Number(seq), id, recalled: recalled === '1', sender, client, frame },
      origin,
    );
  }
}

/** JSON text of an entry in the richer dialect. */
export function richText({ frame, id, seq, conversationId, recalled }: LogEntry): string {
  return `${frame.slice(0, -1)},"id":"${id}","seq":${seq},"conversationId":"${conversationId}","timestamp":${timeOfId(id)}${recalled ? ',"recalled":true' : ''}}`;
}
