import { Column, CreateDateColumn, Entity, PrimaryColumn, UpdateDateColumn } from 'typeorm';

@Entity('generation_apps')
export class GenerationAppEntity {
  @PrimaryColumn('bigint') id!: string;
  @Column('bigint', { name: 'tenant_id' }) tenantId!: string;
  @Column('smallint') type!: number;
  @Column('text') name!: string;
  @Column('text', { default: '' }) description!: string;
  @Column('text', { name: 'prompt_template' }) promptTemplate!: string;
  @Column('jsonb', { default: [] }) variables!: object[];
  @Column('bigint', { name: 'model_service_id' }) modelServiceId!: string;
  @Column('jsonb', { default: {} }) parameters!: object;
  @CreateDateColumn({ name: 'created_at', type: 'timestamptz' }) createdAt!: Date;
  @UpdateDateColumn({ name: 'updated_at', type: 'timestamptz' }) updatedAt!: Date;
}
