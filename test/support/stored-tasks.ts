/** Values of the task store's port for tests: small, valid, and different from each other where it matters. */
import type { TaskSpec } from "../../src/domain/task.ts";
import type {
  NewTranscript,
  StoredAllowance,
  StoredEnd,
  StoredSession,
  StoredTask,
  StoredTaskQuery,
  StoreErrorKind,
} from "../../src/ports/task-store.ts";
import { isStoreError } from "../../src/ports/task-store.ts";

/** The nth id, in the text form of a UUID. */
export const uuidOf = (n: number): string => `00000000-0000-4000-8000-${n.toString(16).padStart(12, "0")}`;

export const storedSpec = (taskId: string, more: Partial<TaskSpec> = {}): TaskSpec => ({
  taskId,
  keyId: "default",
  correlationId: `c-${taskId}`,
  sessionId: null,
  workload: "completion",
  input: { kind: "prompt", prompt: `tell of ${taskId} – “naïve” \u0000 🦙 \ud800` },
  poolId: "demo",
  engine: "llamacpp",
  pinned: false,
  modelRef: "file:demo.gguf",
  priority: "interactive",
  seed: 2 ** 32 - 1,
  determinism: "best_effort",
  samplerProfileVersion: "v1",
  sampling: {
    temperature: 0.8,
    topP: 0.95,
    topK: 40,
    minP: 0.05,
    repeatPenalty: 1,
    presencePenalty: 0,
    frequencyPenalty: 0,
    stop: ["\n"],
    grammar: 'root ::= "a"',
    jsonSchema: { type: "object", properties: { a: { enum: [1, null, "x"] } } },
  },
  maxTokens: 256,
  ctx: 4096,
  deadlineMs: 60_000,
  expectedTokens: null,
  budget: { tokens: 1000, timeMs: null, cost: 0.25 },
  kvHint: "reuse",
  onDisconnect: "cancel",
  metadata: { user: "ann" },
  tokensIn: 12,
  tokensInExact: true,
  renderedPrompt: "<s>tell",
  bodyDigest: "0123456789abcdef",
  ...more,
});

export const storedTask = (ordinal: number, more: Partial<TaskSpec> = {}): StoredTask => ({
  ordinal,
  spec: storedSpec(uuidOf(ordinal), more),
  createdMs: 1_760_000_000_000.125 + ordinal,
  promise: {
    queuePosition: ordinal,
    startMs: 10.5,
    startLowMs: 5,
    startHighMs: 40,
    endMs: 1000.25,
    onTimeProbability: 0.9,
    basis: "learned",
  },
  expectedTokensOut: 100.5,
  watched: ordinal % 2 === 0,
  ended: null,
});

export const storedEnd = (more: Partial<StoredEnd> = {}): StoredEnd => ({
  state: "done",
  finishedMs: 1_760_000_100_000.5,
  startedMs: 1_760_000_050_000,
  firstTokenMs: 1_760_000_060_000,
  attempts: 1,
  replicaId: "demo/0",
  engineVersion: "b11669",
  tokensIn: 12,
  tokensOut: 34,
  finishReason: "stop",
  error: null,
  artifactId: null,
  ...more,
});

/** The nth transcript; its id is not the digest of its text, which the store does not compare. */
export const newTranscript = (n: number, more: Partial<NewTranscript> = {}): NewTranscript => ({
  artifactId: n.toString(16).padStart(64, "0"),
  keyId: "default",
  createdMs: 1_760_000_100_000.5 + n,
  text: `{"content":{"n":${n},"text":"naïve 🦙"},"kind":"trace"}`,
  ...more,
});

/** What the port promises to keep of a task once it has ended. */
export const afterEnd = (task: StoredTask, ended: StoredEnd): StoredTask => ({
  ...task,
  spec: {
    ...task.spec,
    input: { kind: "prompt", prompt: "" },
    renderedPrompt: null,
    sampling: { ...task.spec.sampling, grammar: null, jsonSchema: null },
  },
  ended,
});

export const storedSession = (n: number, more: Partial<StoredSession> = {}): StoredSession => ({
  sessionId: uuidOf(1_000_000 + n),
  keyId: "default",
  createdMs: 1_760_000_000_000,
  lastSeenMs: 1_760_000_000_500.5,
  turns: n,
  budget: { tokens: 5000, timeMs: null, cost: null },
  spent: { tokens: 12, timeMs: 345.5, cost: 0.015 },
  ...more,
});

export const storedAllowance = (keyId: string, tokens = 7): StoredAllowance => ({
  keyId,
  windowStartMs: 1_760_000_000_000,
  spent: { tokens, timeMs: 1.5, cost: 0 },
});

export const everyEnded = (more: Partial<StoredTaskQuery> = {}): StoredTaskQuery => ({
  keyId: null,
  state: null,
  sessionId: null,
  before: null,
  limit: 100,
  ...more,
});

/** The kind and message of the StoreError that `work` throws; anything else fails the test. */
export function refusalOf(work: () => unknown): { readonly kind: StoreErrorKind; readonly message: string } {
  try {
    work();
  } catch (error) {
    if (isStoreError(error)) return { kind: error.storeErrorKind, message: error.message };
    throw error;
  }
  throw new Error("nothing was thrown");
}
