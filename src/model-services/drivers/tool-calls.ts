import type { ToolCall, ToolCallDelta } from './text-driver';

/** Calls of tools that come bit by bit, put together. */
export class ToolCalls {
  private readonly calls = new Map<number, { id: string; name: string; text: string }>();

  add(deltas: readonly ToolCallDelta[]): void {
    for (const { index, id, name, arguments: text } of deltas) {
      const call = this.calls.get(index) ?? { id: '', name: '', text: '' };
      this.calls.set(index, call);
      // Some repeat id and name with every piece.
      if (id) call.id = id;
      if (name) call.name = name;
      if (text) call.text += text;
    }
  }

  /** In the order of their index. One without an id gets one: the result has to name it. */
  get all(): ToolCall[] {
    return [...this.calls.entries()]
      .sort(([a], [b]) => a - b)
      .map(([index, { id, name, text }]) => ({
        id: id || `call_${index}`,
        type: 'function',
        function: { name, arguments: text },
      }));
  }
}
