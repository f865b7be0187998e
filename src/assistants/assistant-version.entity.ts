import { Column, CreateDateColumn, Entity, PrimaryColumn, Unique } from 'typeorm';

@Entity('assistant_versions')
@Unique('assistant_versions_assistant_id_number_key', ['assistantId', 'number'])
export class AssistantVersionEntity {
  @PrimaryColumn('bigint') id!: string;
  @Column('bigint', { name: 'tenant_id' }) tenantId!: string;
  @Column('bigint', { name: 'assistant_id' }) assistantId!: string;
  @Column('integer') number!: number;
  @Column('text', { default: '' }) prompt!: string;
  @Column('bigint', { name: 'model_service_id' }) modelServiceId!: string;
  @Column('jsonb', { default: {} }) parameters!: object;
  @Column('text', { default: '' }) greeting!: string;
  @Column('text', { name: 'suggested_questions', array: true, default: () => "'{}'" })
  suggestedQuestions!: string[];
  @Column('jsonb', { name: 'context_policy', default: {} }) contextPolicy!: object;
  @Column('jsonb', { default: [] }) tools!: object[];
  @Column('timestamptz', { name: 'published_at', nullable: true }) publishedAt!: Date | null;
  @CreateDateColumn({ name: 'created_at', type: 'timestamptz' }) createdAt!: Date;
}
