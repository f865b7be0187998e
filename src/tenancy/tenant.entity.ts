import { Column, CreateDateColumn, Entity, PrimaryColumn, UpdateDateColumn } from 'typeorm';

@Entity('tenants')
export class TenantEntity {
  @PrimaryColumn('bigint') id!: string;
  @Column('text') name!: string;
  @Column('text', { default: 'active' }) status!: 'active' | 'suspended';
  @Column('text', { name: 'allowed_origins', array: true, default: () => "'{}'" }) allowedOrigins!: string[];
  @Column('text', { name: 'group_policy', default: 'open' }) groupPolicy!: 'open' | 'managed';
  @Column('jsonb', { default: {} }) limits!: Record<string, number>;
  @Column('integer', { name: 'retention_days', nullable: true }) retentionDays!: number | null;
  @CreateDateColumn({ name: 'created_at', type: 'timestamptz' }) createdAt!: Date;
  @UpdateDateColumn({ name: 'updated_at', type: 'timestamptz' }) updatedAt!: Date;
}
