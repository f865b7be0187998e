import {
  Injectable,
  Logger,
  type BeforeApplicationShutdown,
  type OnApplicationBootstrap,
} from '@nestjs/common';
import { GenerationRecordsRepository, type OrphanedGeneration } from '../assistants';
import { Periodic } from '../common';
import { NODE_LEASE_MS, NodeRegistry } from '../database';
import { ModelServicesRepository } from '../model-services';
import { GenerationEndings } from './generation-endings';
import { TextGenerations } from './text-generations';

const SWEEP_MS = 3_000;
const ORPHANS_A_SWEEP = 100;

/** Ends, as interrupted, the texts whose process is dead. */
@Injectable()
export class GenerationKeeper implements OnApplicationBootstrap, BeforeApplicationShutdown {
  private readonly logger = new Logger(GenerationKeeper.name);
  private sweeping: Periodic | undefined;

  constructor(
    private readonly nodes: NodeRegistry,
    private readonly records: GenerationRecordsRepository,
    private readonly texts: TextGenerations,
    private readonly services: ModelServicesRepository,
    private readonly endings: GenerationEndings,
  ) {}

  onApplicationBootstrap(): void {
    this.sweeping = new Periodic(
      SWEEP_MS,
      () => this.sweep(),
      ({ message }) => this.logger.warn(`sweep of generations failed, will be tried again: ${message}`),
    );
  }

  async beforeApplicationShutdown(): Promise<void> {
    await this.sweeping?.stop();
  }

  async sweep(): Promise<void> {
    if (!this.nodes.mayJudge) return;
    const own = { incarnation: this.nodes.incarnation, running: this.texts.running() };
    for (const orphan of await this.records.orphaned(own, NODE_LEASE_MS, ORPHANS_A_SWEEP)) {
      if (this.texts.isRunning(orphan.recordId)) continue;
      await this.interrupt(orphan).catch(({ message }: Error) =>
        this.logger.warn(`generation ${orphan.recordId} not ended, will be tried again: ${message}`),
      );
    }
  }

  /** Also for an image whose every attempt died. */
  async interrupt({ tenantId, recordId }: OrphanedGeneration): Promise<void> {
    const record = await this.records.find(tenantId, recordId);
    if (record?.status !== 'running') return;
    const service = await this.services.resolve(tenantId, record.modelServiceId);
    await this.endings.store(record, service, {
      status: 'interrupted',
      usage: null,
      attempts: 1,
      firstPieceMs: null,
      latencyMs: Date.now() - record.createdAt.getTime(),
    });
    this.logger.warn(`generation ${recordId} was interrupted: the process that worked on it is gone`);
  }
}
