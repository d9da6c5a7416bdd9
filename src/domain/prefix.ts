/**
 * How much of its beginning one text shares with another, without keeping either: hashes of growing prefixes at
 * block borders. The scheduler compares what waits with what a slot held last, so that a task meets the KV cache
 * of its own beginning (a system prompt, the turns before). A wrong match costs a cache miss, never a result.
 */
import { limits } from "./limits.ts";
import type { TaskSpec } from "./task.ts";

/** Texts that agree in limits.prefixBlocksMax blocks agree enough. */
const blockChars = 64;

/** FNV-1a over UTF-16 units, the running value taken at every block border. */
export function prefixOf(text: string): readonly number[] {
  const blocks: number[] = [];
  const end = Math.min(Math.floor(text.length / blockChars), limits.prefixBlocksMax) * blockChars;
  let hash = 0x811c9dc5;
  for (let at = 0; at < end; at++) {
    hash = Math.imul(hash ^ text.charCodeAt(at), 0x01000193);
    if ((at + 1) % blockChars === 0) blocks.push(hash);
  }
  return blocks;
}

/** Blocks that two prefixes have in common from the start. */
export function sharedBlocks(a: readonly number[], b: readonly number[]): number {
  let shared = 0;
  while (shared < a.length && a[shared] === b[shared]) shared++;
  return shared;
}

/** What decides which KV cache serves the task; nothing where it asked for none. */
export function beginningOf({ input, kvHint, renderedPrompt }: TaskSpec): string {
  if (kvHint === "cold") return "";
  if (renderedPrompt !== null) return renderedPrompt;
  if (input.kind === "prompt") return input.prompt;
  return input.kind === "messages" ? input.messages.map((m) => `${m.role}\n${m.content}\n`).join("") : "";
}

/**
 * Whether the engine found something of the task's context in its cache, by the number of prompt tokens that it reused.
 * One is none: every prompt has the begin token in common with whatever the slot held before.
 */
export const isWarm = (tokensCached: number): boolean => tokensCached > 1;
