import type { ApiKeyId, AssistantId, DialogueId, MessageId, TenantId } from '../common';
import type { Checkpoint, FinalStatus } from '../messages';
import type { PromptMessage, ResolvedService } from '../model-services';
import type { ReplyText } from '../realtime';
import type { Wire } from '../usage';
import type { AssistantTools } from './tool-runner';

/** Why a reply's provider request was aborted: it becomes the reply's status. */
export class ReplyAborted extends Error {
  constructor(readonly status: Extract<FinalStatus, 'stopped' | 'interrupted'>) {
    super(`reply ${status}`);
  }
}

export interface LiveReplySettings {
  readonly tenantId: TenantId;
  readonly replyId: MessageId;
  readonly dialogueId: DialogueId;
  readonly keyId: ApiKeyId | null;
  readonly keyName: string;
  readonly userId: string;
  readonly assistantId: AssistantId | null;
  readonly service: ResolvedService;
  readonly parameters: Readonly<Record<string, unknown>>;
  readonly prompt: readonly PromptMessage[];
  readonly tools: AssistantTools | null;
  readonly wire: Wire;
  /** Its usage was reserved, and is to be settled with its end. */
  readonly reserved: boolean;
}

/** A reply that this process is writing now. */
export class LiveReply {
  readonly startedAt = Date.now();
  readonly abortController = new AbortController();
  /** Resolves when the reply has ended, durably. */
  readonly ended: Promise<void>;
  readonly resolveEnded: () => void;
  reasoning = '';
  firstPieceAt: number | undefined;
  private checkpointedText = 0;
  private checkpointedReasoning = 0;
  private parts = 0;

  constructor(
    readonly settings: LiveReplySettings,
    /** As the stream log holds it: what is appended there is written. */
    readonly written: ReplyText,
  ) {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.ended = promise;
    this.resolveEnded = resolve;
  }

  get id(): MessageId {
    return this.settings.replyId;
  }

  abort(status: ReplyAborted['status']): void {
    this.abortController.abort(new ReplyAborted(status));
  }

  /** What has been written since the last checkpoint; `saved` is called once that is committed. */
  checkpoint(): { checkpoint: Checkpoint; saved: () => void } | null {
    const { length } = this.written;
    const reasoningLength = this.reasoning.length;
    if (length === this.checkpointedText && reasoningLength === this.checkpointedReasoning) return null;
    return {
      checkpoint: {
        tenantId: this.settings.tenantId,
        replyId: this.id,
        part: this.parts,
        content: this.written.textFrom(this.checkpointedText),
        reasoning: this.reasoning.slice(this.checkpointedReasoning),
      },
      saved: () => {
        this.checkpointedText = length;
        this.checkpointedReasoning = reasoningLength;
        this.parts += 1;
      },
    };
  }
}
