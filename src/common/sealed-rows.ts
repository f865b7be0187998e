import type { TenantId } from './ids';

/** A row that holds sealed values, as far as who re-seals them or tells of them has to know it. */
export interface SealedRow {
  readonly id: string;
  readonly tenantId: TenantId | null;
  /** What an operator knows it by. */
  readonly name: string;
  /** What is bound into its values. */
  readonly context: string;
  readonly sealed: readonly string[];
}

/** What an owner of sealed values gives, so that they can be sealed anew. */
export interface SealedRows {
  /** At most `limit` rows of these tenants and the platform's own, after an id, by id. */
  sealedRows(tenants: readonly TenantId[], after: string, limit: number): Promise<SealedRow[]>;
  /** `sealed` takes the place of the row's values, unless one of them has changed: then false. */
  reseal(row: SealedRow, sealed: readonly string[]): Promise<boolean>;
}
