import { Column, CreateDateColumn, Entity, PrimaryColumn, UpdateDateColumn } from 'typeorm';

@Entity('model_services')
export class ModelServiceEntity {
  @PrimaryColumn('bigint') id!: string;
  @Column('bigint', { name: 'tenant_id', nullable: true }) tenantId!: string | null;
  @Column('bigint', { name: 'provider_id' }) providerId!: string;
  @Column('text') name!: string;
  @Column('text') model!: string;
  @Column('smallint', { default: 0 }) type!: number;
  @Column('integer', { name: 'order_num', default: 0 }) orderNum!: number;
  @Column('integer', { name: 'context_window', default: 32768 }) contextWindow!: number;
  @Column('jsonb', { default: {} }) parameters!: object;
  @Column('numeric', { name: 'input_price', precision: 20, scale: 8, default: 0 }) inputPrice!: string;
  @Column('numeric', { name: 'output_price', precision: 20, scale: 8, default: 0 }) outputPrice!: string;
  @Column('bigint', { name: 'fallback_ids', array: true, default: () => "'{}'" }) fallbackIds!: string[];
  @Column('boolean', { default: true }) enabled!: boolean;
  @CreateDateColumn({ name: 'created_at', type: 'timestamptz' }) createdAt!: Date;
  @UpdateDateColumn({ name: 'updated_at', type: 'timestamptz' }) updatedAt!: Date;
}
