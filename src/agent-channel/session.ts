import type { Contact } from '../assistants';
import type { DialogueId, MessageId, ModelServiceId, Principal } from '../common';
import type { SessionKey } from '../messages';
import type { Feed, Wanted } from './feed';

/** A message that waits for its turn in a session. */
export interface Chat {
  readonly principal: Principal;
  readonly content: string;
  readonly stream: boolean;
  readonly requestId?: string;
  readonly modelServiceId: ModelServiceId | null;
  readonly failed: (error: unknown) => void;
  /** False: who said it may not speak here any more. */
  readonly stands: () => boolean;
}

/** One session as this process knows it: who is watching, and what waits to be said. */
export class Session {
  readonly feeds = new Set<Feed>();
  readonly waiting: Chat[] = [];
  running = false;
  /** Frames that are being dealt with and mean it. */
  held = 0;
  /** Null until the first turn is stored. */
  dialogueId: DialogueId | null = null;
  unwatch: (() => void) | undefined;
  /** Resolves when the message whose turn it is has been stored, or has failed. */
  storing: Promise<void> = Promise.resolve();
  private latest: Wanted | undefined;

  constructor(
    readonly contact: Contact,
    readonly owner: SessionKey,
    /** What it is found under: whose it is, and its name. */
    readonly key: string,
  ) {}

  get name(): string {
    return this.owner.name;
  }

  get idle(): boolean {
    return this.feeds.size === 0 && this.waiting.length === 0 && !this.running && this.held === 0;
  }

  show(wanted: Wanted): void {
    this.latest = wanted;
    for (const feed of this.feeds) feed.show(wanted);
  }

  /** A reply in progress as the others are shown it. */
  asShown(replyId: MessageId): Wanted {
    return this.latest?.replyId === replyId ? this.latest : { replyId, stream: true, offset: 0 };
  }
}

/** What goes with a reply to whoever watches its dialogue, on whatever node. */
export function noteOf({ requestId, stream }: Pick<Chat, 'requestId' | 'stream'>): string {
  return stream && requestId === undefined ? '' : JSON.stringify({ requestId, stream });
}

/** The other way; of a reply begun on another wire there is nothing to read. */
export function wantedOf(replyId: MessageId, note: string): Wanted {
  const told = note.startsWith('{')
    ? (JSON.parse(note) as { requestId?: string; stream: boolean })
    : { stream: true };
  return { replyId, offset: 0, ...told };
}
