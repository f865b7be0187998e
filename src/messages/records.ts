import type {
  ApiKeyId,
  AssistantId,
  AssistantVersionId,
  DialogueId,
  MessageId,
  ModelServiceId,
  TenantId,
} from '../common';

export type ReplyStatus = 'finished' | 'streaming' | 'stopped' | 'interrupted' | 'failed';
export type FinalStatus = Exclude<ReplyStatus, 'streaming'>;

/** A tree of messages under a root of role `system`; a branch of it is one conversation with an assistant. */
export interface Dialogue {
  readonly id: DialogueId;
  readonly tenantId: TenantId;
  readonly userId: string;
  readonly assistantId: AssistantId | null;
  readonly versionId: AssistantVersionId | null;
  readonly modelServiceId: ModelServiceId;
  readonly name: string;
  readonly closed: boolean;
  readonly totalTokens: number;
  readonly credits: number;
  readonly createdBy: string;
  readonly updatedBy: string;
  readonly createdAt: Date;
  readonly updatedAt: Date;
}

export interface DialogueMessage {
  readonly id: MessageId;
  readonly dialogueId: DialogueId;
  readonly parentId: MessageId | null;
  readonly role: 'system' | 'user' | 'assistant';
  readonly content: string;
  readonly reasoning: string;
  readonly status: ReplyStatus;
  readonly userId: string;
  readonly createdBy: string;
  readonly modelServiceId: ModelServiceId | null;
  readonly promptTokens: number;
  readonly completionTokens: number;
  readonly totalTokens: number;
  readonly credits: number;
  readonly error: { readonly code: number; readonly message: string } | null;
  readonly createdAt: Date;
}

/** One turn to be stored: the user's message and the empty reply to it. */
export interface TurnDraft {
  readonly tenantId: TenantId;
  /** Ids of what may come into being. */
  readonly newDialogueId: DialogueId;
  readonly rootId: MessageId;
  readonly messageId: MessageId;
  readonly replyId: MessageId;
  /** Null: a new dialogue. */
  readonly dialogueId: DialogueId | null;
  /** Null: the dialogue's newest message. */
  readonly parentId: MessageId | null;
  readonly content: string;
  readonly name: string;
  readonly userId: string;
  readonly createdBy: string;
  readonly keyId: ApiKeyId | null;
  readonly assistantId: AssistantId | null;
  readonly versionId: AssistantVersionId | null;
  readonly modelServiceId: ModelServiceId;
  readonly incarnation: bigint;
  readonly idempotency: { readonly key: string; readonly requestHash: string } | null;
  /** The one user whose dialogue it may be; null: anybody's in the tenant. */
  readonly onlyUser: string | null;
  /** Where the dialogue is a conversation's with an assistant: whether the turn is to be told there, too. */
  readonly tellConversation: boolean;
  /** Of a new dialogue: the name it is to have among the user's sessions with the assistant; null: none. */
  readonly session: string | null;
  /** Of a new dialogue: what was said before, elsewhere. */
  readonly history: readonly (BranchMessage & { readonly id: MessageId })[];
  /** Whose turn it is, for the ledger: should this process die, another one writes its row. */
  readonly wire: string;
  /** Upper bound of the history read for the prompt, UTF-16 units. */
  readonly maxHistoryChars: number;
}

export interface BranchMessage {
  readonly role: 'system' | 'user' | 'assistant';
  readonly content: string;
}

export type TurnOutcome =
  | {
      readonly outcome: 'stored';
      readonly dialogue: Dialogue;
      readonly message: DialogueMessage;
      /** Root first, the user's new message last. */
      readonly branch: readonly BranchMessage[];
      /** A conversation is to be told of it. */
      readonly told: boolean;
    }
  /** The Idempotency-Key was used before: this is the reply it led to. */
  | { readonly outcome: 'repeated'; readonly replyId: MessageId; readonly requestHash: string }
  /** A dialogue has that session's name already. */
  | { readonly outcome: 'session-taken' }
  | { readonly outcome: 'no-dialogue' }
  | { readonly outcome: 'no-parent' }
  | { readonly outcome: 'parent-in-progress' };

export interface ReplyEnding {
  readonly tenantId: TenantId;
  readonly replyId: MessageId;
  readonly dialogueId: DialogueId;
  readonly status: FinalStatus;
  readonly content: string;
  readonly reasoning: string;
  readonly promptTokens: number;
  readonly completionTokens: number;
  readonly totalTokens: number;
  readonly estimated: boolean;
  readonly credits: number;
  readonly error: { readonly code: number; readonly message: string } | null;
  readonly updatedBy: string;
  /** True for the node that wrote the reply: its word stands over a sweeper's. */
  readonly byOwner: boolean;
}

export interface Checkpoint {
  readonly tenantId: TenantId;
  readonly replyId: MessageId;
  /** 0, 1, 2 … within the reply. */
  readonly part: number;
  readonly content: string;
  readonly reasoning: string;
}

/** What is known of a reply that is being written, beside the reply. */
export interface ReplyProgress {
  readonly wire: string;
  readonly keyId: ApiKeyId | null;
}

/** A reply whose writer is gone. */
export interface OrphanedReply {
  readonly tenantId: TenantId;
  readonly replyId: MessageId;
}
