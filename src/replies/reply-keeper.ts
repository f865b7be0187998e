import {
  Injectable,
  Logger,
  type BeforeApplicationShutdown,
  type OnApplicationBootstrap,
} from '@nestjs/common';
import { Periodic } from '../common';
import { Database, NODE_LEASE_MS, NodeRegistry, tenantScope, type Scope } from '../database';
import {
  DialoguesRepository,
  endReply,
  stopRequested,
  storeCheckpoints,
  type OrphanedReply,
} from '../messages';
import { estimateTokens } from '../model-services';
import { recordUsage, settleUsage, type Wire } from '../usage';
import { LiveReplies } from './live-replies';

/** Promised is "at least every 2 s". */
const CHECKPOINT_MS = 1_000;
const SWEEP_MS = 3_000;
const PRUNE_MS = 600_000;
const CHECKPOINTS_A_STATEMENT = 500;
const ORPHANS_A_SWEEP = 100;

/** Keeps replies from being lost or left open: checkpoints what is being written, closes what a dead process left. */
@Injectable()
export class ReplyKeeper implements OnApplicationBootstrap, BeforeApplicationShutdown {
  private readonly logger = new Logger(ReplyKeeper.name);
  private readonly works: Periodic[] = [];

  constructor(
    private readonly database: Database,
    private readonly nodes: NodeRegistry,
    private readonly dialogues: DialoguesRepository,
    private readonly live: LiveReplies,
  ) {}

  onApplicationBootstrap(): void {
    this.every(CHECKPOINT_MS, 'checkpoint', () => this.checkpoint());
    this.every(SWEEP_MS, 'sweep', () => this.sweep());
    this.every(PRUNE_MS, 'prune', () => this.prune());
  }

  async beforeApplicationShutdown(): Promise<void> {
    await Promise.all(this.works.map((work) => work.stop()));
  }

  /** Stores what every reply has gained, and hears which were to be stopped by another node. */
  async checkpoint(): Promise<void> {
    if (this.live.size === 0) return;
    const due = [...this.live].map((reply) => reply.checkpoint()).filter((checkpoint) => checkpoint !== null);
    for (let from = 0; from === 0 || from < due.length; from += CHECKPOINTS_A_STATEMENT) {
      const part = due.slice(from, from + CHECKPOINTS_A_STATEMENT);
      const checkpoints = part.map(({ checkpoint }) => checkpoint);
      const scope: Scope = {
        tenants: [...new Set(checkpoints.map(({ tenantId }) => tenantId))],
        platform: true,
      };
      const [, stops] = await this.database.run(scope, [
        storeCheckpoints(checkpoints),
        stopRequested(this.nodes.incarnation),
      ]);
      for (const { saved } of part) saved();
      for (const id of stops) this.live.get(id)?.abort('stopped');
    }
  }

  /** Ends, as interrupted, the replies whose process is dead. */
  async sweep(): Promise<void> {
    const abandoned = this.live.takeAbandoned();
    try {
      while (abandoned.length > 0) {
        await this.interrupt(abandoned[abandoned.length - 1]!);
        abandoned.pop();
      }
    } finally {
      for (const reply of abandoned) this.live.abandon(reply);
    }
    if (!this.nodes.mayJudge) return;
    for (const reply of await this.dialogues.orphanedReplies(NODE_LEASE_MS, ORPHANS_A_SWEEP)) {
      await this.interrupt(reply);
    }
  }

  private async interrupt({ tenantId, replyId }: OrphanedReply): Promise<void> {
    if (this.live.get(replyId)) return;
    const stored = await this.dialogues.findReply(tenantId, replyId);
    if (!stored || stored.reply.status !== 'streaming') return;
    const { dialogue, reply, message } = stored;
    const { content, reasoning } = await this.dialogues.checkpointed(tenantId, replyId);
    const progress = await this.dialogues.progress(tenantId, replyId);
    const promptTokens = estimateTokens(message.content);
    const completionTokens = estimateTokens(content) + estimateTokens(reasoning);
    const counts = {
      promptTokens,
      completionTokens,
      totalTokens: promptTokens + completionTokens,
      credits: 0,
    };
    const [ended] = await this.database.run(tenantScope(tenantId), [
      endReply({
        tenantId,
        replyId,
        dialogueId: dialogue.id,
        status: 'interrupted',
        content,
        reasoning,
        ...counts,
        estimated: true,
        error: null,
        updatedBy: reply.createdBy,
        byOwner: false,
      }),
      recordUsage({
        tenantId,
        messageId: replyId,
        keyId: progress?.keyId ?? null,
        userId: reply.userId,
        assistantId: dialogue.assistantId,
        modelServiceId: reply.modelServiceId ?? dialogue.modelServiceId,
        attempts: 1,
        ...counts,
        estimated: true,
        outcome: 'interrupted',
        firstPieceMs: null,
        latencyMs: Date.now() - reply.createdAt.getTime(),
        wire: (progress?.wire ?? 'dialogue') as Wire,
      }),
      settleUsage(tenantId, replyId, counts),
    ]);
    if (ended) this.logger.warn(`reply ${replyId} was interrupted: the process that wrote it is gone`);
  }

  private async prune(): Promise<void> {
    while ((await this.dialogues.pruneKeys()) === 1_000);
  }

  private every(ms: number, name: string, work: () => Promise<void>): void {
    const failed = ({ message }: Error): void =>
      this.logger.warn(`${name} failed, will be tried again: ${message}`);
    this.works.push(new Periodic(ms, work, failed));
  }
}
