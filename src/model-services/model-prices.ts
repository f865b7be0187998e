import type { EntityManager } from 'typeorm';
import type { ModelServiceId, TenantId } from '../common';
import type { Row } from '../database';

/** What a service costs from a time on, until the next one's. */
export interface ModelPrice {
  readonly effectiveFrom: Date;
  /** Credits a million tokens. */
  readonly inputPrice: number;
  readonly outputPrice: number;
  readonly createdAt: Date;
}

/** The price in force of the service `s`. */
export const PRICE_NOW = `select m.input_price, m.output_price from model_prices m
           where m.model_service_id = s.id and m.effective_from <= now() order by m.effective_from desc limit 1`;

/** `effectiveFrom` null: from now on. One that was set for the same time is replaced. */
export async function setPrice(
  tx: EntityManager,
  tenantId: TenantId | null,
  id: ModelServiceId,
  price: { readonly effectiveFrom: Date | null; readonly inputPrice: number; readonly outputPrice: number },
): Promise<ModelPrice> {
  const [row] = await tx.query<Row[]>(
    `insert into model_prices as p (model_service_id, effective_from, tenant_id, input_price, output_price)
     values ($1, coalesce($2::timestamptz, now()), $3, $4, $5)
     on conflict (model_service_id, effective_from) do update
       set input_price = excluded.input_price, output_price = excluded.output_price, created_at = now()
     returning *`,
    [id, price.effectiveFrom, tenantId, price.inputPrice, price.outputPrice],
  );
  return toPrice(row!);
}

/** Null when there is none of that date, or it has come. */
export async function deletePrice(
  tx: EntityManager,
  id: ModelServiceId,
  effectiveFrom: Date,
): Promise<ModelPrice | null> {
  const [rows] = await tx.query<[Row[], number]>(
    'delete from model_prices where model_service_id = $1 and effective_from = $2 and effective_from > now() returning *',
    [id, effectiveFrom],
  );
  return rows[0] ? toPrice(rows[0]) : null;
}

/** Newest first, the newest thousand. */
export async function listPrices(tx: EntityManager, id: ModelServiceId): Promise<ModelPrice[]> {
  const rows = await tx.query<Row[]>(
    'select * from model_prices where model_service_id = $1 order by effective_from desc limit 1000',
    [id],
  );
  return rows.map(toPrice);
}

interface Priced {
  readonly id: ModelServiceId;
  readonly inputPrice: number;
  readonly outputPrice: number;
}

/** The services with the prices in force: a date may have come since they were last changed. */
export async function priced<T extends Priced>(tx: EntityManager, services: readonly T[]): Promise<T[]> {
  if (services.length === 0) return [];
  const rows = await tx.query<Row[]>(
    `select s.id, price.input_price, price.output_price from unnest($1::bigint[]) as s(id)
     cross join lateral (${PRICE_NOW}) price`,
    [services.map(({ id }) => id)],
  );
  const found = new Map(rows.map((row) => [row.id as string, row]));
  return services.map((service) => {
    const row = found.get(service.id);
    return row
      ? { ...service, inputPrice: Number(row.input_price), outputPrice: Number(row.output_price) }
      : service;
  });
}

function toPrice(row: Row): ModelPrice {
  return {
    effectiveFrom: row.effective_from as Date,
    inputPrice: Number(row.input_price),
    outputPrice: Number(row.output_price),
    createdAt: row.created_at as Date,
  };
}
