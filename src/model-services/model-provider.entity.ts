import { Column, CreateDateColumn, Entity, PrimaryColumn, UpdateDateColumn } from 'typeorm';

@Entity('model_providers')
export class ModelProviderEntity {
  @PrimaryColumn('bigint') id!: string;
  @Column('bigint', { name: 'tenant_id', nullable: true }) tenantId!: string | null;
  @Column('text') name!: string;
  @Column('text') kind!: 'openai-compatible' | 'builtin';
  @Column('text', { nullable: true }) preset!: string | null;
  @Column('text', { name: 'base_url', nullable: true }) baseUrl!: string | null;
  /** Sealed JSON. */
  @Column('text', { nullable: true }) credentials!: string | null;
  /** Sealed JSON: a header may hold a credential too. */
  @Column('text', { nullable: true }) headers!: string | null;
  @Column('jsonb', { default: {} }) quirks!: object;
  @Column('integer', { name: 'connect_timeout_ms', default: 5000 }) connectTimeoutMs!: number;
  @Column('integer', { name: 'first_piece_timeout_ms', default: 60000 }) firstPieceTimeoutMs!: number;
  @Column('integer', { name: 'idle_timeout_ms', default: 30000 }) idleTimeoutMs!: number;
  @Column('integer', { name: 'total_timeout_ms', default: 600000 }) totalTimeoutMs!: number;
  @Column('integer', { name: 'max_concurrency', nullable: true }) maxConcurrency!: number | null;
  @CreateDateColumn({ name: 'created_at', type: 'timestamptz' }) createdAt!: Date;
  @UpdateDateColumn({ name: 'updated_at', type: 'timestamptz' }) updatedAt!: Date;
}
