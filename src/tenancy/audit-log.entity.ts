import { Column, CreateDateColumn, Entity, PrimaryColumn } from 'typeorm';

@Entity('audit_log')
export class AuditLogEntity {
  @PrimaryColumn('bigint') id!: string;
  @Column('bigint', { name: 'tenant_id', nullable: true }) tenantId!: string | null;
  @Column('bigint', { name: 'actor_key_id', nullable: true }) actorKeyId!: string | null;
  @Column('text') actor!: string;
  @Column('text') action!: string;
  @Column('text') resource!: string;
  @Column('bigint', { name: 'resource_id' }) resourceId!: string;
  @Column('jsonb', { nullable: true }) before!: object | null;
  @Column('jsonb', { nullable: true }) after!: object | null;
  @Column('text') address!: string;
  @CreateDateColumn({ name: 'created_at', type: 'timestamptz' }) createdAt!: Date;
}
