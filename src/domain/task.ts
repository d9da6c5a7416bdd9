/**
 * A task: one request for work, as the domain speaks of it. The HTTP edge makes a `TaskSpec` out of the wire
 * body with every default applied; after that it never changes. Its state moves only by `transition`.
 *
 * | state     | meaning                                            | may become                  |
 * |-----------|----------------------------------------------------|-----------------------------|
 * | queued    | accepted, waits for a slot                         | running, failed, canceled   |
 * | running   | an attempt holds a lease                           | suspended, done, failed, canceled |
 * | suspended | its attempt was cut, it goes back to its class head | queued, failed, canceled   |
 * | done, failed, canceled | terminal, exactly one per task, ever  | nothing                     |
 */
import { assert } from "./assert.ts";
import type { EngineKind } from "./engine-kind.ts";

export const priorities = ["interactive", "batch"] as const;
export type Priority = (typeof priorities)[number];
export const workloads = ["completion", "embedding", "rerank"] as const;
export type Workload = (typeof workloads)[number];

export const taskStates = ["queued", "running", "suspended", "done", "failed", "canceled"] as const;
export type TaskState = (typeof taskStates)[number];
export type TerminalState = "done" | "failed" | "canceled";

const next: Readonly<Record<TaskState, readonly TaskState[]>> = {
  queued: ["running", "failed", "canceled"],
  running: ["suspended", "done", "failed", "canceled"],
  suspended: ["queued", "failed", "canceled"],
  done: [],
  failed: [],
  canceled: [],
};

export function transition(from: TaskState, to: TaskState): TaskState {
  assert(next[from].includes(to), `task state ${from} -> ${to}`);
  return to;
}

export const isTerminal = (state: TaskState): state is TerminalState => next[state].length === 0;

export interface ChatMessage {
  readonly role: "system" | "user" | "assistant";
  readonly content: string;
}

export type TaskInput =
  | { readonly kind: "prompt"; readonly prompt: string }
  | { readonly kind: "messages"; readonly messages: readonly ChatMessage[] }
  | { readonly kind: "embedding"; readonly inputs: readonly string[] }
  | { readonly kind: "rerank"; readonly query: string; readonly inputs: readonly string[] };

/** Sampling parameters with the pool's profile applied: what the engine is asked for, nothing implied. */
export interface Sampling {
  readonly temperature: number;
  readonly topP: number;
  readonly topK: number;
  readonly minP: number;
  readonly repeatPenalty: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  readonly stop: readonly string[];
  readonly grammar: string | null;
  readonly jsonSchema: unknown | null;
}

export const determinisms = ["strict", "best_effort"] as const;
export type Determinism = (typeof determinisms)[number];

/** A bound on what may be spent; null: none. Tokens are prompt and output together, cost is in the pool's price unit. */
export interface Budget {
  readonly tokens: number | null;
  readonly timeMs: number | null;
  readonly cost: number | null;
}

export interface TaskSpec {
  readonly taskId: string;
  /** The key that made the task owns it. */
  readonly keyId: string;
  readonly correlationId: string;
  readonly sessionId: string | null;
  readonly workload: Workload;
  readonly input: TaskInput;
  readonly poolId: string;
  /** Of that pool, when the task was admitted: it can be told when the pool is gone. */
  readonly engine: EngineKind;
  /** The client named the pool: no other may run it. */
  readonly pinned: boolean;
  readonly modelRef: string;
  readonly priority: Priority;
  /** 0 to 2^32-1; drawn when the client gave none, so that a run can always be repeated. */
  readonly seed: number;
  /** strict: runs alone on its replica and reuses no cached context, so that the same request gives the same bytes. */
  readonly determinism: Determinism;
  readonly samplerProfileVersion: string;
  readonly sampling: Sampling;
  readonly maxTokens: number;
  /** Tokens of context the task may use: prompt and output together. */
  readonly ctx: number;
  /** Milliseconds from acceptance to the end, or null. */
  readonly deadlineMs: number | null;
  readonly expectedTokens: number | null;
  /** Lowers the session's budget (or is its first one); null: as it is. */
  readonly budget: Budget | null;
  readonly kvHint: "reuse" | "cold";
  readonly onDisconnect: "cancel" | "continue";
  readonly metadata: Readonly<Record<string, string>>;
  /** Prompt length in tokens: exact where the engine counted it, else an upper bound from its bytes. */
  readonly tokensIn: number;
  readonly tokensInExact: boolean;
  /** The chat template's output, where admission already asked the engine for it. */
  readonly renderedPrompt: string | null;
  /** sha256 over the canonical body: the same task_id with another body is a conflict. */
  readonly bodyDigest: string;
}
