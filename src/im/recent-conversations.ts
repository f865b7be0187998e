import type { Standing } from '../messages';

/** Of conversations that come page by page the most recent ones; never many more are held. */
export class RecentConversations {
  private kept: Standing[] = [];

  constructor(private readonly most: number) {}

  add(standings: readonly Standing[]): void {
    this.kept.push(...standings);
    if (this.kept.length > 2 * this.most) this.newestFirst();
  }

  newestFirst(): readonly Standing[] {
    this.kept = this.kept.sort(newerFirst).slice(0, this.most);
    return this.kept;
  }
}

/** Ids are decimals without leading zeros; where nothing was said yet there is none. */
function newerFirst({ lastId: a }: Standing, { lastId: b }: Standing): number {
  const [one, other] = [a ?? '0', b ?? '0'];
  if (one === other) return 0;
  return other.length - one.length || (one < other ? 1 : -1);
}
