/** One page of a cursor list: `nextCursor` is the id to go on after, null at the end. */
export interface CursorPage<T> {
  readonly data: T[];
  readonly nextCursor: string | null;
}

export interface CursorQuery {
  readonly limit: number;
  readonly cursor?: string;
}

/** From one row more than asked for: that there is one says that there is more. */
export function cursorPage<T extends { readonly id: string }>(rows: T[], limit: number): CursorPage<T> {
  const data = rows.slice(0, limit);
  return { data, nextCursor: rows.length > limit ? data[data.length - 1]!.id : null };
}
