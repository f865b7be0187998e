/** `YYYY-MM-DD HH:mm:ss`, UTC: the assistant-platform wire's form of a time. */
export function platformTime(date: Date): string {
  return date.toISOString().slice(0, 19).replace('T', ' ');
}
