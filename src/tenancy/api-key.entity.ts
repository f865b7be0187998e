import { Column, CreateDateColumn, Entity, PrimaryColumn, UpdateDateColumn } from 'typeorm';

@Entity('api_keys')
export class ApiKeyEntity {
  @PrimaryColumn('bigint') id!: string;
  @Column('bigint', { name: 'tenant_id' }) tenantId!: string;
  @Column('text') name!: string;
  @Column('text', { name: 'secret_hash', select: false }) secretHash!: string;
  /** 1 for the first secret; each rotation makes the next. */
  @Column('integer', { default: 1 }) generation!: number;
  /** Of the secret before, which works until then. */
  @Column('text', { name: 'previous_hash', nullable: true, select: false }) previousHash!: string | null;
  @Column('timestamptz', { name: 'previous_until', nullable: true }) previousUntil!: Date | null;
  /** User tokens that were asked for earlier are refused. */
  @Column('timestamptz', { name: 'tokens_from', nullable: true }) tokensFrom!: Date | null;
  @Column('text', { array: true }) scopes!: string[];
  @Column('timestamptz', { name: 'expires_at', nullable: true }) expiresAt!: Date | null;
  @Column('text', { name: 'allowed_addresses', array: true, default: () => "'{}'" })
  allowedAddresses!: string[];
  @Column('jsonb', { default: {} }) limits!: Record<string, number>;
  @Column('timestamptz', { name: 'revoked_at', nullable: true }) revokedAt!: Date | null;
  @Column('timestamptz', { name: 'last_used_at', nullable: true }) lastUsedAt!: Date | null;
  @CreateDateColumn({ name: 'created_at', type: 'timestamptz' }) createdAt!: Date;
  @UpdateDateColumn({ name: 'updated_at', type: 'timestamptz' }) updatedAt!: Date;
}
