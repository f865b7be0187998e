/** A named (so: prepared once a connection) statement of a hot path and how its rows read. */
export interface Statement<T> {
  readonly name: string;
  readonly text: string;
  readonly values: readonly unknown[];
  // Rows come from pg untyped; each statement's `map` is the one place that says what they hold.
  readonly map: (rows: Row[]) => T;
}

export type Row = Record<string, unknown>;

type Results<S extends readonly Statement<unknown>[]> = {
  -readonly [K in keyof S]: S[K] extends Statement<infer T> ? T : never;
};
export type { Results as StatementResults };
