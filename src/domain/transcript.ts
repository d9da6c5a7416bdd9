/**
 * What a finished task leaves: one document with everything that is needed to tell of it, to show its stream again and
 * to run it again. Built here when it ends, read again by transcript-reading.ts; services/transcripts.ts keeps it.
 *
 * Always holds: the text is the canonical form (RFC 8785) of an artifact of kind trace, so that its SHA-256 is its id;
 * it has at most the bytes that it may; with the policy redacted neither what was asked nor what was answered is in it.
 * It never names its own id.
 */
import canonicalize from "canonicalize";
import type { EngineBuild, Exactness, SentPiece } from "./continuation.ts";
import type { EndEvent, ErrorEvent, MetricsEvent, StartedEvent } from "./events.ts";
import type { Prediction } from "./predictor.ts";
import type { Sampling, TaskInput, TaskSpec, TerminalState } from "./task.ts";

export const traceVersion = 1;

export const transcriptPolicies = ["full", "redacted", "off"] as const;
export type TranscriptPolicy = (typeof transcriptPolicies)[number];

/** Parts that may be left out of a document that would be too large. */
export const transcriptParts = ["request", "output", "result", "events"] as const;
export type TranscriptPart = (typeof transcriptParts)[number];

/** One attempt on the engine that it ran on. */
export interface AttemptFacts {
  readonly number: number;
  readonly replicaId: string;
  readonly slot: number;
  readonly startedMs: number;
  readonly build: EngineBuild;
  /** Tokens of context of the slot. */
  readonly ctxPerSlot: number;
  readonly modelSizeBytes: number | null;
  readonly modelParams: number | null;
}

export type LoggedEvent =
  | { readonly seq: number; readonly type: "started"; readonly data: StartedEvent }
  | { readonly seq: number; readonly type: "metrics"; readonly data: MetricsEvent };

export type Ending =
  | { readonly type: "end"; readonly data: EndEvent }
  | { readonly type: "error"; readonly data: ErrorEvent };

export interface TranscriptFacts {
  readonly spec: TaskSpec;
  readonly state: TerminalState;
  readonly promise: Prediction;
  /** Milliseconds since the epoch. */
  readonly createdMs: number;
  readonly startedMs: number | null;
  readonly firstTokenMs: number | null;
  readonly finishedMs: number;
  readonly tokensIn: number | null;
  readonly tokensOut: number;
  readonly continuations: number;
  readonly exact: Exactness;
  /** Those of this process, in order. */
  readonly attempts: readonly AttemptFacts[];
  /** Null: the configuration names it no longer. */
  readonly pool: {
    readonly slots: number;
    readonly replicas: number;
    readonly args: readonly string[];
  } | null;
  /** One for each token event, in order. */
  readonly pieces: readonly SentPiece[];
  /** The other events before the last one. */
  readonly events: readonly LoggedEvent[];
  readonly ending: Ending;
}

export interface TranscriptRules {
  readonly policy: "full" | "redacted";
  /** Of the whole document in UTF-8. */
  readonly bytesMax: number;
  /** In lower-case hexadecimal, of the text in UTF-8. */
  readonly sha256: (text: string) => string;
  /** Length of the text in UTF-8. */
  readonly bytesOf: (text: string) => number;
  /** SHA-256 of the model's file; null: not known, or there is no file. */
  readonly modelDigest: (build: EngineBuild) => string | null;
}

/** @returns the canonical text; null: whatever is left out, it would be too large. */
export function transcriptText(facts: TranscriptFacts, rules: TranscriptRules): string | null {
  const omitted = new Set<TranscriptPart>();
  let known: Record<TranscriptPart, number> | null = null;
  const sizes = (): Record<TranscriptPart, number> => {
    known ??= partSizes(facts);
    return known;
  };
  const total = (): number =>
    transcriptParts.reduce((sum, part) => sum + (omitted.has(part) ? 0 : sizes()[part]), 0);
  const redacted = rules.policy === "redacted";
  const { metadata, sampling } = facts.spec;
  const write = hasIndexName(metadata) || hasIndexName(sampling.jsonSchema) ? canonicalOfAny : canonicalJson;
  // Not made at all where it is clear beforehand: a result may be a hundred megabytes.
  if (!redacted && !isSmall(facts)) while (total() > rules.bytesMax) omitted.add(largest(sizes(), omitted));
  for (;;) {
    const text = write(documentOf(facts, rules, omitted));
    if (rules.bytesOf(text) <= rules.bytesMax) return text;
    if (omitted.size === transcriptParts.length) return null;
    omitted.add(largest(sizes(), omitted));
  }
}

/** Making it costs nothing worth a look at its sizes, whatever the bound: most are. */
const isSmall = ({ spec: { input }, pieces, ending, events }: TranscriptFacts): boolean =>
  input.kind === "prompt" &&
  input.prompt.length < smallChars &&
  pieces.length + events.length < smallPieces &&
  (ending.type === "error" || ending.data.result === undefined);
const smallChars = 64 * 1024;
const smallPieces = 4096;

const numberChars = 12;
const eventChars = 256;

/** Characters that the parts take, roughly and rather too few. */
function partSizes({ spec, pieces, events, ending }: TranscriptFacts): Record<TranscriptPart, number> {
  const { sampling, metadata } = spec;
  let request = inputTexts(spec.input).reduce(
    (sum, text) => sum + text.length,
    sampling.grammar?.length ?? 0,
  );
  for (const [name, value] of Object.entries(metadata)) request += name.length + value.length;
  const output = pieces.reduce((sum, { text, ids }) => sum + text.length + 4 * ids.length, 0);
  const result = ending.type === "end" ? numbersIn(ending.data) * numberChars : 0;
  return { request, output, result, events: events.length * eventChars };
}

function numbersIn({ result }: EndEvent): number {
  if (result === undefined) return 0;
  if ("results" in result) return 2 * result.results.length;
  return result.embeddings.reduce((sum, vector) => sum + vector.length, 0);
}

function largest(
  sizes: Readonly<Record<TranscriptPart, number>>,
  omitted: ReadonlySet<TranscriptPart>,
): TranscriptPart {
  const left = transcriptParts.filter((part) => !omitted.has(part));
  return left.reduce((best, part) => (sizes[part] > sizes[best] ? part : best));
}

const inputTexts = (input: TaskInput): readonly string[] => {
  if (input.kind === "prompt") return [input.prompt];
  if (input.kind === "messages") return input.messages.map(({ content }) => content);
  return input.kind === "rerank" ? [input.query, ...input.inputs] : input.inputs;
};

// ---- the document: the keys of every object stand in their canonical order ----

function documentOf(
  facts: TranscriptFacts,
  rules: TranscriptRules,
  omitted: ReadonlySet<TranscriptPart>,
): unknown {
  const { spec, state, ending, promise } = facts;
  const redacted = rules.policy === "redacted";
  const content = {
    attempts: facts.attempts.map((attempt) => attemptOf(attempt, spec, rules)),
    continuations: facts.continuations,
    ending: endingOf(ending, redacted || omitted.has("result")),
    events: omitted.has("events")
      ? []
      : facts.events.map(({ data, seq, type }) => ({ data: sorted(data), seq, type })),
    exact: facts.exact,
    omitted: [...omitted].sort(),
    output: outputOf(facts, rules, redacted || omitted.has("output")),
    policy: rules.policy,
    pool:
      facts.pool === null
        ? null
        : {
            args: shownArgs(facts.pool.args),
            model_ref: spec.modelRef,
            pool_id: spec.poolId,
            replicas: facts.pool.replicas,
            slots: facts.pool.slots,
          },
    promise: {
      basis: promise.basis,
      end_ms: promise.endMs,
      on_time_probability: promise.onTimeProbability,
      queue_position: promise.queuePosition,
      start_ms: promise.startMs,
    },
    request: requestOf(spec, rules, redacted || omitted.has("request")),
    task: {
      attempts: facts.attempts.at(-1)?.number ?? 0,
      correlation_id: spec.correlationId,
      key_id: spec.keyId,
      pool_id: spec.poolId,
      priority: spec.priority,
      session_id: spec.sessionId,
      state,
      task_id: spec.taskId,
      workload: spec.workload,
    },
    timings: {
      created_ms: Math.round(facts.createdMs),
      finished_ms: Math.round(facts.finishedMs),
      first_token_ms: rounded(facts.firstTokenMs),
      started_ms: rounded(facts.startedMs),
    },
    tokens_in: facts.tokensIn,
    tokens_out: facts.tokensOut,
    trace_version: traceVersion,
  };
  return { content, kind: "trace", metadata: {}, parent: null, tags: tagsOf(facts) };
}

const rounded = (ms: number | null): number | null => (ms === null ? null : Math.round(ms));

/** What a list of artifacts is filtered by. */
const tagsOf = ({ spec, state }: TranscriptFacts): string[] => [
  `task:${spec.taskId}`,
  `state:${state}`,
  ...(spec.sessionId === null ? [] : [`session:${spec.sessionId}`]),
];

function attemptOf(attempt: AttemptFacts, spec: TaskSpec, { modelDigest }: TranscriptRules) {
  const { build } = attempt;
  return {
    attempt: attempt.number,
    // strict reuses nothing, whatever the hint.
    cache: spec.kvHint === "reuse" && spec.determinism !== "strict" ? "reuse" : "none",
    ctx_per_slot: attempt.ctxPerSlot,
    device: build.device,
    engine: build.engine,
    engine_version: build.version,
    // Without its folders: whoever may read the task has no business with the machine.
    model: build.model?.split("/").at(-1) ?? null,
    model_digest: modelDigest(build),
    model_params: attempt.modelParams,
    model_size_bytes: attempt.modelSizeBytes,
    replica_id: attempt.replicaId,
    sampler_profile_version: spec.samplerProfileVersion,
    seed: spec.seed,
    slot: attempt.slot,
    started_ms: Math.round(attempt.startedMs),
  };
}

function endingOf({ type, data }: Ending, withoutResult: boolean): unknown {
  const { artifact_id: _, ...told } = data;
  if (!("result" in told) || told.result === undefined) return { data: sorted(told), type };
  const { result, ...rest } = told;
  if (withoutResult) return { data: sorted(rest), result_omitted: true, type };
  // Its members have canonical names already, and there may be a million of them.
  const entries = [...Object.entries(rest), ["result", result] as const];
  return { data: Object.fromEntries(entries.sort(byName)), type };
}

/** `pieces`: of each token event the UTF-16 units of its text, then the ids of its tokens as far as they are known. */
function outputOf({ pieces }: TranscriptFacts, rules: TranscriptRules, withoutText: boolean): unknown {
  let text = "";
  for (const piece of pieces) text += piece.text;
  if (withoutText) return { pieces: [], text: digestOf(text, rules) };
  return { pieces: pieces.map((piece) => [piece.text.length, ...piece.ids]), text };
}

interface Digest {
  readonly chars: number;
  readonly sha256: string;
}

const digestOf = (text: string, { sha256 }: TranscriptRules): Digest => ({
  chars: text.length,
  sha256: sha256(text),
});

/** As a body of POST /v1/tasks has it, with every default applied. */
function requestOf(spec: TaskSpec, rules: TranscriptRules, withoutTexts: boolean): unknown {
  const told = (text: string): string | Digest => (withoutTexts ? digestOf(text, rules) : text);
  const { input, budget, metadata } = spec;
  const request: Record<string, unknown> = {
    budget: budget === null ? null : { cost: budget.cost, time_ms: budget.timeMs, tokens: budget.tokens },
    ctx: spec.ctx,
    deadline_ms: spec.deadlineMs,
    determinism: spec.determinism,
    expected_tokens: spec.expectedTokens,
    kv_hint: spec.kvHint,
    max_tokens: spec.maxTokens,
    metadata: Object.fromEntries(Object.entries(metadata).map(([name, value]) => [name, told(value)])),
    model_ref: spec.modelRef,
    on_disconnect: spec.onDisconnect,
    pinned: spec.pinned,
    priority: spec.priority,
    sampler_profile_version: spec.samplerProfileVersion,
    sampling: samplingOf(spec.sampling, told),
    seed: spec.seed,
    workload: spec.workload,
  };
  if (input.kind === "prompt") request.prompt = told(input.prompt);
  else if (input.kind === "messages")
    request.messages = input.messages.map(({ content, role }) => ({ content: told(content), role }));
  else request.inputs = input.inputs.map(told);
  if (input.kind === "rerank") request.query = told(input.query);
  return sorted(request);
}

/** A grammar, a schema and stop strings are the client's words, too. */
const samplingOf = (sampling: Sampling, told: (text: string) => string | Digest) => ({
  frequency_penalty: sampling.frequencyPenalty,
  grammar: sampling.grammar === null ? null : told(sampling.grammar),
  json_schema: toldSchema(sampling.jsonSchema, told),
  min_p: sampling.minP,
  presence_penalty: sampling.presencePenalty,
  repeat_penalty: sampling.repeatPenalty,
  stop: sampling.stop.map(told),
  temperature: sampling.temperature,
  top_k: sampling.topK,
  top_p: sampling.topP,
});

function toldSchema(schema: unknown, told: (text: string) => string | Digest): unknown {
  if (schema === null) return null;
  const digest = told(canonicalJson(sorted(schema)));
  return typeof digest === "string" ? schema : digest;
}

const secretFlag = /(key|token|secret|password)(=|$)/i;

/** Flags of the engine; what follows one that sounds like a secret is not shown. */
function shownArgs(args: readonly string[]): string[] {
  return args.map((arg, at) => {
    if (!arg.startsWith("-") && secretFlag.test(args[at - 1] ?? "")) return "***";
    return arg.startsWith("-") && secretFlag.test(arg) && arg.includes("=")
      ? arg.replace(/=.*$/s, "=***")
      : arg;
  });
}

// ---- canonical form ----

const byName = ([a]: readonly [string, unknown], [b]: readonly [string, unknown]): number =>
  a < b ? -1 : a > b ? 1 : 0;

/** Keys in the order of their UTF-16 units, at every depth. */
function sorted(value: unknown): unknown {
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return value.map(sorted);
  const members = value as Readonly<Record<string, unknown>>;
  const of: Record<string, unknown> = {};
  for (const name of inOrder(Object.keys(members))) {
    const member = members[name];
    if (member === undefined) continue;
    // An assignment would set what it inherits from.
    if (name === "__proto__") Object.defineProperty(of, name, { ...own, value: sorted(member) });
    else of[name] = sorted(member);
  }
  return of;
}

const own = { enumerable: true, configurable: true, writable: true };

/**
 * Events of one type have the same names in the same order, task after task: few lists are sorted at all. By their
 * number of names; what comes from outside has others, and costs no more than a comparison and its sort.
 */
const sortedBefore: { readonly names: readonly string[]; readonly inOrder: readonly string[] }[] = [];
const namesMax = 32;

function inOrder(names: readonly string[]): readonly string[] {
  const known = sortedBefore[names.length];
  if (known?.names.every((name, at) => name === names[at])) return known.inOrder;
  const inOrder = [...names].sort();
  if (names.length <= namesMax) sortedBefore[names.length] = { names, inOrder };
  return inOrder;
}

/**
 * JSON of RFC 8785 for a value whose keys are sorted: ECMAScript writes numbers and texts as it asks. Half a surrogate
 * pair has no canonical form; it becomes U+FFFD, which is what an engine was sent.
 */
function canonicalJson(value: unknown): string {
  const text = JSON.stringify(value);
  // May also be a text that shows such an escape: then nothing changes.
  return /\\ud[89a-f]/.test(text) ? JSON.stringify(wellFormed(value)) : text;
}

/** For objects with names like "10", which an object of ECMAScript does not keep in their order. */
const canonicalOfAny = (value: unknown): string => canonicalize(wellFormed(value)) ?? "";

const indexName = /^(0|[1-9]\d*)$/;

function hasIndexName(value: unknown): boolean {
  if (typeof value !== "object" || value === null) return false;
  const named = !Array.isArray(value) && Object.keys(value).some((name) => indexName.test(name));
  return named || Object.values(value).some(hasIndexName);
}

function wellFormed(value: unknown): unknown {
  if (typeof value === "string") return value.toWellFormed();
  if (Array.isArray(value)) return value.map(wellFormed);
  if (typeof value !== "object" || value === null) return value;
  const members = Object.entries(value).map(
    ([name, member]) => [name.toWellFormed(), wellFormed(member)] as const,
  );
  return Object.fromEntries(members.sort(byName));
}
