/**
 * Stream events (ORCHD-STREAM-1): started -> token* with metrics* after the first token -> end | error.
 * `id:` is the sequence number within the task's log, without gaps; exactly one terminal event (end, error).
 * Field names are the wire's: this is the one place in the domain that speaks snake_case.
 */
import type { ErrorCode } from "./errors.ts";
import type { Determinism } from "./task.ts";

export interface StartedEvent {
  readonly task_id: string;
  readonly session_id: string | null;
  readonly queue_position: number;
  readonly predicted_start_ms: number;
  readonly engine: string;
  readonly engine_version: string;
  readonly pool_id: string;
  readonly replica_id: string;
  readonly model_ref: string;
  readonly seed: number;
  readonly kv_warmth: boolean;
  readonly tokens_in: number;
  /** strict: it runs alone on its replica, without any cached context. */
  readonly determinism: Determinism;
  readonly attempt: number;
}

export interface MetricsEvent {
  readonly queue_depth: number;
  readonly on_time_probability: number | null;
  readonly kv_warmth: boolean;
  readonly tokens_out: number;
  readonly tokens_per_second: number;
  readonly tokens_budget_remaining: number | null;
  readonly time_budget_remaining_ms: number | null;
  readonly cost_budget_remaining: number | null;
}

export interface EmbeddingResult {
  readonly embeddings: readonly (readonly number[])[];
}
export interface RerankResult {
  readonly results: readonly { readonly index: number; readonly score: number }[];
}

export interface EndEvent {
  readonly tokens_in: number;
  readonly tokens_out: number;
  readonly decode_ms: number;
  readonly decode_time_ms: number;
  readonly first_token_ms: number | null;
  readonly queue_ms: number;
  readonly finish_reason: "stop" | "length";
  readonly artifact_id: string | null;
  readonly continuations: number;
  readonly exact: "yes" | "unverified" | "no";
  readonly result?: EmbeddingResult | RerankResult;
}

export interface ErrorEvent {
  readonly code: ErrorCode;
  readonly message: string;
  readonly engine: string;
  readonly retriable: boolean;
  readonly retry_after_ms: number | null;
  readonly artifact_id: string | null;
}

export type StreamEvent =
  | { readonly type: "started"; readonly data: StartedEvent }
  | { readonly type: "token"; readonly t: string; readonly i: number }
  | { readonly type: "metrics"; readonly data: MetricsEvent }
  | { readonly type: "end"; readonly data: EndEvent }
  | { readonly type: "error"; readonly data: ErrorEvent };
