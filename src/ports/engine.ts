/**
 * The engine port: one client speaks to one engine instance (a replica's incarnation). Adapters are in
 * infra/engines/ (llamacpp, openai, mock); all pass test/conformance/engine.ts.
 *
 * A generation reports by calls on a sink instead of an async iterator: a network chunk often carries many
 * tokens, and one promise per token is what a copying proxy does not pay either.
 */
import type { EngineKind } from "../domain/engine-kind.ts";
import type { EngineIdentity, PoolSpec, ReplicaFailure, WarmUpSpeed } from "../domain/pool.ts";
import type { ChatMessage, Sampling } from "../domain/task.ts";

/** A chat for an engine that renders chats itself. */
export interface ChatPrompt {
  readonly messages: readonly ChatMessage[];
  /** The answer's beginning, behind which the engine goes on; "" for a new answer. */
  readonly said: string;
}

export const isChat = (prompt: GenerateRequest["prompt"]): prompt is ChatPrompt =>
  typeof prompt === "object" && "messages" in prompt;

/** What an engine can do with prompts. */
export interface PromptHandling {
  /** `tokenize` and `countTokens` work. */
  readonly tokenizes: boolean;
  /**
   * template: `applyTemplate` renders chats to text. The others take a ChatPrompt: continues goes on behind
   * `said`, begins takes none.
   */
  readonly chat: "template" | "continues" | "begins";
  /** It can be told to reuse no cached context, as GenerateRequest.cachePrompt false asks. */
  readonly cold: boolean;
}

export interface GenerateRequest {
  /** Text, token ids of the engine's own vocabulary, or a chat where PromptHandling says so. */
  readonly prompt: string | readonly number[] | ChatPrompt;
  readonly maxTokens: number;
  readonly seed: number;
  readonly sampling: Sampling;
  /** False: the engine must not reuse cached context. */
  readonly cachePrompt: boolean;
  /** The engine's slot to run in, 0-based; the caller knows that it is free. */
  readonly slot: number;
}

/** Called synchronously while a chunk is parsed; must not throw. */
export interface GenerateSink {
  /** Prompt progress: total prompt tokens, how many came from cache, how many are done. */
  onPrompt(tokensTotal: number, tokensCached: number, tokensDone: number): void;
  /**
   * A piece of text, valid Unicode, never empty, and the token ids it is made of: [] when the engine did not say, -1
   * for one that it did not name.
   */
  onToken(text: string, ids: readonly number[]): void;
  /** A sign of life that is neither: the engine thinks aloud where nobody is shown it. */
  onHeard?(): void;
}

/** What one call made the engine do. */
export interface EngineWork {
  readonly tokensIn: number;
  readonly tokensCached: number;
  /** Tokens the engine generated: may be more than the pieces of text. */
  readonly tokensOut: number;
  readonly promptMs: number;
  readonly decodeMs: number;
}

export interface GenerateResult extends EngineWork {
  readonly finishReason: "stop" | "length";
}

/**
 * Why a call to an engine failed.
 * unreachable: the connection never came about: nothing reached the engine
 * connection: reset, or the stream ended without its final frame: the engine is gone or wrong
 * unavailable: alive but loading, or all its slots busy; or this machine is short of descriptors or buffers
 * rejected: the engine says the request is bad (message from its error body)
 * context: prompt longer than the context
 * unsupported: this engine cannot do this workload
 * protocol: an answer that makes no sense (bad status, bad JSON, oversized frame)
 * aborted: our own signal
 * timeout: a control call took too long
 */
export type EngineErrorKind =
  | "connection"
  | "unreachable"
  | "unavailable"
  | "rejected"
  | "context"
  | "unsupported"
  | "protocol"
  | "aborted"
  | "timeout";

export class EngineError extends Error {
  readonly engineErrorKind: EngineErrorKind;
  constructor(kind: EngineErrorKind, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.engineErrorKind = kind;
  }
}

export function isEngineError(error: unknown): error is EngineError {
  return error instanceof Error && typeof (error as Partial<EngineError>).engineErrorKind === "string";
}

export interface SlotSnapshot {
  readonly slot: number;
  readonly busy: boolean;
  /** Prompt tokens in the slot's KV cache, where the engine says so. */
  readonly tokensCached: number;
}

/** The end of an engine without a process, with its cause told. */
export type EngineEnd = Pick<ReplicaFailure, "cause" | "message">;

export interface EngineClient {
  readonly kind: EngineKind;
  /**
   * Only of an engine without a process of its own: resolves with the reason when it has died by itself (never
   * because of `close`). What ProcessHost tells of a child, the supervisor learns here.
   */
  readonly exited?: Promise<string | EngineEnd>;
  /** Absent: it tokenizes, and renders templates. May change until `identity` has answered. */
  readonly prompts?: PromptHandling;
  /** "ok" when it takes requests, "loading" while it does not yet; throws EngineError when unreachable. */
  health(signal: AbortSignal): Promise<"ok" | "loading">;
  identity(signal: AbortSignal): Promise<EngineIdentity>;
  /**
   * A real decode of a few tokens (or a real embedding, for such a model): readiness that means something. With
   * `speedKnown` as short a one as shows that it works: nobody reads its speed, and work may be waiting for it.
   */
  warmUp(signal: AbortSignal, speedKnown?: boolean): Promise<WarmUpSpeed>;
  /** Number of tokens of a prompt with the special tokens that it gets. Chats where the engine renders them itself. */
  countTokens(prompt: string | ChatPrompt, signal: AbortSignal): Promise<number>;
  /** Its ids. `asPrompt`: with the special tokens, as a generation reads a prompt; else the text's own. */
  tokenize(text: string, asPrompt: boolean, signal: AbortSignal): Promise<readonly number[]>;
  applyTemplate(messages: readonly ChatMessage[], signal: AbortSignal): Promise<string>;
  /** Resolves only on the engine's own final frame; else rejects with EngineError. */
  generate(request: GenerateRequest, sink: GenerateSink, signal: AbortSignal): Promise<GenerateResult>;
  embed(inputs: readonly string[], signal: AbortSignal): Promise<{ vectors: number[][]; tokensIn: number }>;
  rerank(
    query: string,
    inputs: readonly string[],
    signal: AbortSignal,
  ): Promise<{ scores: { index: number; score: number }[]; tokensIn: number }>;
  slots(signal: AbortSignal): Promise<SlotSnapshot[]>;
  /**
   * After a generation was aborted: resolves when the engine has freed the slot. Never polls `/slots` more
   * often than limits.slotPollMs; rejects with EngineError("timeout") after limits.slotConfirmMsMax. Once a call
   * has failed with `connection` or `unreachable`, only an answer of the engine counts; a gone one rejects.
   */
  awaitSlotFree(slot: number, signal: AbortSignal): Promise<void>;
  /** Forgets what the slot holds of an earlier prompt; what it computes now is not touched. */
  eraseContext(slot: number, signal: AbortSignal): Promise<void>;
  /** A line of the engine's log, as the supervisor reads it: some engines tell there that a slot is free. */
  onLogLine(line: string): void;
  /** Aborts whatever is in flight, so that a stopping engine is not held by our sockets. Idempotent. */
  close(): void;
}

/** Where a started engine listens and how to speak to it; made by the adapter, handed to the process port. */
export interface LaunchPlan {
  readonly command: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  /** Files to write (mode 0600) before the start and to remove once it is ready: keys outside argv. */
  readonly secretFiles: readonly { readonly path: string; readonly content: string }[];
  /** Socket files to unlink before the start and after the end. */
  readonly socketPaths: readonly string[];
  /** The client for the engine that this plan starts. */
  connect(): EngineClient;
}

export interface EngineAdapter {
  readonly kind: EngineKind;
  /** Null: this engine needs no process, `connectInProcess` gives the client. */
  plan(pool: PoolSpec, replicaId: string, runDir: string): LaunchPlan | null;
  connectInProcess(pool: PoolSpec, replicaId: string): EngineClient;
}
