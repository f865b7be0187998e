import { Column, Entity, PrimaryColumn, Unique } from 'typeorm';

@Entity('generation_records')
@Unique('generation_records_tenant_id_idempotency_key_key', ['tenantId', 'idempotencyKey'])
export class GenerationRecordEntity {
  @PrimaryColumn('bigint') id!: string;
  @Column('bigint', { name: 'tenant_id' }) tenantId!: string;
  @Column('bigint', { name: 'app_id' }) appId!: string;
  @Column('smallint') type!: number;
  @Column('text', { name: 'user_id' }) userId!: string;
  @Column('bigint', { name: 'key_id', nullable: true }) keyId!: string | null;
  @Column('text', { name: 'created_by' }) createdBy!: string;
  @Column('bigint', { name: 'model_service_id' }) modelServiceId!: string;
  @Column('jsonb') params!: object;
  @Column('text') prompt!: string;
  @Column('jsonb') parameters!: object;
  @Column('text', { default: 'running' }) status!: string;
  @Column('text', { default: '' }) result!: string;
  @Column('jsonb', { default: [] }) images!: object[];
  @Column('integer', { name: 'prompt_tokens', default: 0 }) promptTokens!: number;
  @Column('integer', { name: 'completion_tokens', default: 0 }) completionTokens!: number;
  @Column('integer', { name: 'total_tokens', default: 0 }) totalTokens!: number;
  @Column('numeric', { precision: 20, scale: 6, default: 0 }) credits!: string;
  @Column('integer', { name: 'error_code', nullable: true }) errorCode!: number | null;
  @Column('text', { name: 'error_message', nullable: true }) errorMessage!: string | null;
  @Column('text', { name: 'idempotency_key', nullable: true }) idempotencyKey!: string | null;
  @Column('text', { name: 'request_hash', nullable: true }) requestHash!: string | null;
  @Column('timestamptz', { name: 'created_at', default: () => 'now()' }) createdAt!: Date;
  @Column('timestamptz', { name: 'ended_at', nullable: true }) endedAt!: Date | null;
}
