import { badInput } from '../common';
import type { ListQuery } from './requests';

const MAX_PAGE_SIZE = 200;

export interface ListDefaults<C extends string> {
  readonly pageSize: number;
  /** Column names of the wire, camelCase, to what the repository calls them. */
  readonly columns: Readonly<Record<string, C>>;
  readonly orderBy: C;
  readonly descending: boolean;
}

/** Offset, limit and order of a list, from its query and its defaults. BAD_INPUT for a column that is not named in the contract. */
export function pageOf<C extends string>(query: ListQuery, defaults: ListDefaults<C>) {
  const limit = Math.min(query.pageSize ?? defaults.pageSize, MAX_PAGE_SIZE);
  const page = { offset: ((query.pageNum ?? 1) - 1) * limit, limit };
  const descending = query.isAsc === undefined ? defaults.descending : query.isAsc === 'desc';
  if (query.orderByColumn === undefined) return { ...page, orderBy: defaults.orderBy, descending };
  const camel = query.orderByColumn.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
  const orderBy = Object.hasOwn(defaults.columns, camel) ? defaults.columns[camel] : undefined;
  if (!orderBy) throw badInput('orderByColumn', `must be one of ${Object.keys(defaults.columns).join(', ')}`);
  return { ...page, orderBy, descending };
}
