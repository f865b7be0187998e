import { Column, CreateDateColumn, Entity, PrimaryColumn } from 'typeorm';

@Entity('dialogues')
export class DialogueEntity {
  @PrimaryColumn('bigint') id!: string;
  @Column('bigint', { name: 'tenant_id' }) tenantId!: string;
  @Column('text', { name: 'user_id' }) userId!: string;
  @Column('bigint', { name: 'assistant_id', nullable: true }) assistantId!: string | null;
  @Column('bigint', { name: 'version_id', nullable: true }) versionId!: string | null;
  @Column('bigint', { name: 'model_service_id' }) modelServiceId!: string;
  @Column('text') name!: string;
  @Column('boolean', { default: false }) closed!: boolean;
  @Column('bigint', { name: 'total_tokens', default: 0 }) totalTokens!: string;
  @Column('numeric', { precision: 20, scale: 6, default: 0 }) credits!: string;
  @Column('text', { name: 'created_by' }) createdBy!: string;
  @Column('text', { name: 'updated_by' }) updatedBy!: string;
  @CreateDateColumn({ name: 'created_at', type: 'timestamptz' }) createdAt!: Date;
  @Column('timestamptz', { name: 'updated_at', default: () => 'now()' }) updatedAt!: Date;
}
