/**
 * Transcripts read again (domain/transcript.ts writes them): the events of the stream as they were sent, and the
 * request as it may be sent once more. Called by services/ended-streams.ts and by the command `replay`.
 *
 * Always holds: nothing read is trusted; what is not a transcript of a known version reads as null.
 */
import type { EndEvent, ErrorEvent, MetricsEvent, StartedEvent, StreamEvent } from "./events.ts";
import { traceVersion } from "./transcript.ts";

type Fields = Readonly<Record<string, unknown>>;

export interface ReadTranscript {
  readonly policy: "full" | "redacted";
  readonly omitted: readonly string[];
  readonly task: Fields;
  readonly request: Fields;
  /** Of the last attempt; null: none of which is known. */
  readonly engine: Fields | null;
  /** The text of each token event; null: redacted or left out. */
  readonly pieces: readonly ReadPiece[] | null;
  readonly events: readonly {
    readonly seq: number;
    readonly type: "started" | "metrics";
    readonly data: Fields;
  }[];
  readonly ending: { readonly type: "end" | "error"; readonly data: Fields; readonly resultOmitted: boolean };
}

export interface ReadPiece {
  readonly text: string;
  readonly ids: readonly number[];
}

const isFields = (value: unknown): value is Fields =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

/** `content`: of the artifact. */
export function readTranscript(content: unknown): ReadTranscript | null {
  if (!isFields(content) || content.trace_version !== traceVersion) return null;
  const { policy, omitted, task, request, attempts, output, events, ending } = content;
  if (policy !== "full" && policy !== "redacted") return null;
  if (!Array.isArray(omitted) || !Array.isArray(attempts) || !Array.isArray(events)) return null;
  if (!isFields(task) || !isFields(request) || !isFields(output) || !isFields(ending)) return null;
  const engine: unknown = attempts.at(-1) ?? null;
  if (!(engine === null || isFields(engine)) || !isFields(ending.data)) return null;
  if (ending.type !== "end" && ending.type !== "error") return null;
  const pieces = piecesOf(output);
  if (pieces === undefined) return null;
  const logged: ReadTranscript["events"][number][] = [];
  for (const event of events as unknown[]) {
    if (!isFields(event) || !isCount(event.seq) || !isFields(event.data)) return null;
    if (event.type !== "started" && event.type !== "metrics") return null;
    logged.push({ seq: event.seq, type: event.type, data: event.data });
  }
  const { type, data, result_omitted: resultOmitted } = ending;
  return {
    policy,
    omitted: omitted.map(String),
    task,
    request,
    engine,
    pieces,
    events: logged,
    ending: { type, data, resultOmitted: resultOmitted === true },
  };
}

/** Undefined: not what it should be. */
function piecesOf({ text, pieces }: Fields): ReadPiece[] | null | undefined {
  if (isFields(text)) return null;
  if (typeof text !== "string" || !Array.isArray(pieces)) return undefined;
  const read: ReadPiece[] = [];
  let at = 0;
  for (const piece of pieces as unknown[]) {
    if (!Array.isArray(piece) || !isCount(piece[0])) return undefined;
    const [units, ...ids] = piece as number[];
    read.push({ text: text.slice(at, at + (units ?? 0)), ids });
    at += units ?? 0;
  }
  return at === text.length ? read : undefined;
}

/** A property for each field, in the order in which events have them: its bytes go by it. */
type Order<T> = Readonly<Record<keyof Required<T>, true>>;
const startedOrder: Order<StartedEvent> = {
  task_id: true,
  session_id: true,
  queue_position: true,
  predicted_start_ms: true,
  engine: true,
  engine_version: true,
  pool_id: true,
  replica_id: true,
  model_ref: true,
  seed: true,
  kv_warmth: true,
  tokens_in: true,
  determinism: true,
  attempt: true,
};
const metricsOrder: Order<MetricsEvent> = {
  queue_depth: true,
  on_time_probability: true,
  kv_warmth: true,
  tokens_out: true,
  tokens_per_second: true,
  tokens_budget_remaining: true,
  time_budget_remaining_ms: true,
  cost_budget_remaining: true,
};
const endOrder: Order<EndEvent> = {
  tokens_in: true,
  tokens_out: true,
  decode_ms: true,
  decode_time_ms: true,
  first_token_ms: true,
  queue_ms: true,
  finish_reason: true,
  artifact_id: true,
  continuations: true,
  exact: true,
  result: true,
};
const errorOrder: Order<ErrorEvent> = {
  code: true,
  message: true,
  engine: true,
  retriable: true,
  retry_after_ms: true,
  artifact_id: true,
};

/** What this version does not know comes last. */
function ordered<T>(data: Fields, order: Order<T>): T {
  const known = Object.keys(order).filter((name) => name in data);
  const others = Object.keys(data).filter((name) => !(name in order));
  return Object.fromEntries([...known, ...others].map((name) => [name, data[name]])) as T;
}

/**
 * Every event of the stream in its order, the last one with the id of the artifact that this is read from; null: not
 * all of them are in it.
 */
export function eventsOf(transcript: ReadTranscript, artifactId: string): StreamEvent[] | null {
  const { pieces, events, ending, omitted } = transcript;
  if (pieces === null || ending.resultOmitted || omitted.includes("events")) return null;
  const all: StreamEvent[] = [];
  let token = 0;
  const tokensBefore = (seq: number): void => {
    for (; all.length < seq && token < pieces.length; token++)
      all.push({ type: "token", t: pieces[token]?.text ?? "", i: token });
  };
  for (const { seq, type, data } of events) {
    tokensBefore(seq);
    if (all.length !== seq) return null;
    if (type === "started") all.push({ type, data: ordered<StartedEvent>(data, startedOrder) });
    else all.push({ type, data: ordered<MetricsEvent>(data, metricsOrder) });
  }
  tokensBefore(Number.POSITIVE_INFINITY);
  const told = { ...ending.data, artifact_id: artifactId };
  if (ending.type === "end") all.push({ type: "end", data: ordered<EndEvent>(told, endOrder) });
  else all.push({ type: "error", data: ordered<ErrorEvent>(told, errorOrder) });
  return all;
}

/**
 * A body of POST /v1/tasks that asks for the same once more: without what belongs to that one task or only bounded it
 * (its session, budget, deadline and context), in the pool where it ran if `poolId` names one. Null: its texts are not in the transcript.
 */
export function requestAgain(
  { policy, omitted, request }: ReadTranscript,
  poolId: string | null,
): Record<string, unknown> | null {
  if (policy !== "full" || omitted.includes("request")) return null;
  const again: Record<string, unknown> = {};
  const generates = request.workload === "completion";
  for (const name of generates ? [...askedAgain, ...generationAgain] : askedAgain) {
    const value = request[name];
    if (value !== undefined && value !== null) again[name] = value;
  }
  const { sampling } = request;
  if (generates && isFields(sampling))
    again.sampling = Object.fromEntries(Object.entries(sampling).filter(([, value]) => value !== null));
  if (poolId !== null) again.placement = { mode: "pin", pin_pool_id: poolId };
  return again;
}

const askedAgain = ["prompt", "messages", "inputs", "query", "workload", "model_ref", "priority"] as const;
/** What only says how to generate. */
const generationAgain = ["seed", "determinism", "sampler_profile_version", "max_tokens", "kv_hint"] as const;
