import { Column, CreateDateColumn, Entity, PrimaryColumn } from 'typeorm';

@Entity('dialogue_messages')
export class DialogueMessageEntity {
  @PrimaryColumn('bigint') id!: string;
  @Column('bigint', { name: 'tenant_id' }) tenantId!: string;
  @Column('bigint', { name: 'dialogue_id' }) dialogueId!: string;
  @Column('bigint', { name: 'parent_id', nullable: true }) parentId!: string | null;
  @Column('text') role!: 'system' | 'user' | 'assistant';
  @Column('text') content!: string;
  @Column('text', { default: '' }) reasoning!: string;
  @Column('text') status!: 'finished' | 'streaming' | 'stopped' | 'interrupted' | 'failed';
  @Column('text', { name: 'user_id' }) userId!: string;
  @Column('text', { name: 'created_by' }) createdBy!: string;
  @Column('bigint', { name: 'model_service_id', nullable: true }) modelServiceId!: string | null;
  @Column('integer', { name: 'prompt_tokens', default: 0 }) promptTokens!: number;
  @Column('integer', { name: 'completion_tokens', default: 0 }) completionTokens!: number;
  @Column('integer', { name: 'total_tokens', default: 0 }) totalTokens!: number;
  @Column('boolean', { name: 'tokens_estimated', default: false }) tokensEstimated!: boolean;
  @Column('numeric', { precision: 20, scale: 6, default: 0 }) credits!: string;
  @Column('integer', { name: 'error_code', nullable: true }) errorCode!: number | null;
  @Column('text', { name: 'error_message', nullable: true }) errorMessage!: string | null;
  @CreateDateColumn({ name: 'created_at', type: 'timestamptz' }) createdAt!: Date;
  @Column('timestamptz', { name: 'ended_at', nullable: true }) endedAt!: Date | null;
}
