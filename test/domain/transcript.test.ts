/** Transcripts: their canonical form, what each policy tells, what is left out where there is too much, and back again. */
import { describe, expect, test } from "bun:test";
import canonicalize from "canonicalize";
import fc from "fast-check";
import { parseDocument } from "../../src/domain/artifact.ts";
import type { EndEvent, MetricsEvent, StartedEvent } from "../../src/domain/events.ts";
import { samplerProfiles } from "../../src/domain/sampler-profile.ts";
import { encodeEvent } from "../../src/domain/sse.ts";
import type { Sampling, TaskSpec } from "../../src/domain/task.ts";
import { type TranscriptFacts, type TranscriptRules, transcriptText } from "../../src/domain/transcript.ts";
import { eventsOf, readTranscript, requestAgain } from "../../src/domain/transcript-reading.ts";
import { storedSpec, uuidOf } from "../support/stored-tasks.ts";

const sha256 = (text: string): string => new Bun.CryptoHasher("sha256").update(text).digest("hex");
const rules = (more: Partial<TranscriptRules> = {}): TranscriptRules => ({
  policy: "full",
  bytesMax: 1e6,
  sha256,
  bytesOf: (text) => Buffer.byteLength(text),
  modelDigest: ({ model }) => `digest of ${model}`,
  ...more,
});

const started: StartedEvent = {
  task_id: uuidOf(1),
  session_id: null,
  queue_position: 0,
  predicted_start_ms: 0.5,
  engine: "mock",
  engine_version: "mock-1",
  pool_id: "demo",
  replica_id: "demo/0",
  model_ref: "mock:words",
  seed: 7,
  kv_warmth: false,
  tokens_in: 3,
  determinism: "best_effort",
  attempt: 1,
};
const metrics: MetricsEvent = {
  queue_depth: 0,
  on_time_probability: null,
  kv_warmth: true,
  tokens_out: 2,
  tokens_per_second: 12.5,
  tokens_budget_remaining: null,
  time_budget_remaining_ms: null,
  cost_budget_remaining: 0.25,
};
const end: EndEvent = {
  tokens_in: 3,
  tokens_out: 3,
  decode_ms: 30,
  decode_time_ms: 30,
  first_token_ms: 12,
  queue_ms: 2,
  finish_reason: "stop",
  artifact_id: null,
  continuations: 0,
  exact: "yes",
};
const profile = samplerProfiles.v1 as Sampling;

const facts = (more: Partial<TranscriptFacts> = {}, spec: Partial<TaskSpec> = {}): TranscriptFacts => ({
  spec: storedSpec(uuidOf(1), {
    input: { kind: "prompt", prompt: "the secret prompt" },
    sampling: { ...profile, stop: ["secret stop"], grammar: 'root ::= "secret grammar"' },
    metadata: { user: "secret ann" },
    ...spec,
  }),
  state: "done",
  promise: {
    queuePosition: 0,
    startMs: 0.5,
    startLowMs: 0,
    startHighMs: 2,
    endMs: 99.25,
    onTimeProbability: null,
    basis: "learned",
  },
  createdMs: 1000.4,
  startedMs: 1002.2,
  firstTokenMs: null,
  finishedMs: 1042,
  tokensIn: 3,
  tokensOut: 3,
  continuations: 0,
  exact: "yes",
  attempts: [
    {
      number: 1,
      replicaId: "demo/0",
      slot: 0,
      startedMs: 1002,
      build: {
        engine: "mock",
        version: "mock-1",
        model: "/srv/models/words.gguf",
        modelStamp: null,
        settings: "s",
        device: null,
      },
      ctxPerSlot: 4096,
      modelSizeBytes: null,
      modelParams: null,
    },
  ],
  pool: { slots: 2, replicas: 1, args: ["-ngl", "99", "--hf-token", "hush", "--api-key=hush"] },
  pieces: [
    { text: "said", ids: [5] },
    { text: " 🦙", ids: [6, 7] },
    { text: "\n", ids: [] },
  ],
  events: [
    { seq: 0, type: "started", data: started },
    { seq: 3, type: "metrics", data: metrics },
  ],
  ending: { type: "end", data: end },
  ...more,
});

const built = (of: TranscriptFacts, by: TranscriptRules = rules()): string => {
  const text = transcriptText(of, by);
  if (text === null) throw new Error("there is a transcript");
  return text;
};
const contentOf = (text: string): Record<string, unknown> =>
  parseDocument(text)?.content as Record<string, unknown>;
const read = (text: string) => {
  const transcript = readTranscript(contentOf(text));
  if (transcript === null) throw new Error("it can be read");
  return transcript;
};
const sentOf = (text: string): string[] =>
  (eventsOf(read(text), "the id") ?? []).map((event, seq) => encodeEvent(seq, event));

describe("the canonical form", () => {
  test("is RFC 8785, whatever the client named its things", () => {
    const schema = { properties: { b: 1, a: { z: [], y: 1e21 }, "10": 1, "9": -0, __proto__x: "\u2028" } };
    const metadata = JSON.parse('{ "2": "x", "10": "y", "ä": "\\u0000", "__proto__": "own" }');
    const inherited = { metadata: JSON.parse('{ "b": "x", "__proto__": "own" }') };
    for (const spec of [{}, { metadata }, inherited, { sampling: { ...profile, jsonSchema: schema } }]) {
      const text = built(facts({}, spec));
      expect(text).toBe(canonicalize(JSON.parse(text)) ?? "");
    }
  });

  test("of any texts", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), fc.dictionary(fc.string(), fc.json()), (prompt, bag) => {
        const jsonSchema = Object.fromEntries(
          Object.entries(bag).map(([name, text]) => [name, JSON.parse(text)]),
        );
        const sampling = { ...profile, jsonSchema };
        const text = built(facts({}, { input: { kind: "prompt", prompt }, sampling }));
        expect(text).toBe(canonicalize(JSON.parse(text)) ?? "");
        expect(read(text).request.prompt).toBe(prompt.toWellFormed());
      }),
    );
  });

  test("half a surrogate pair becomes what an engine was sent", () => {
    const text = built(
      facts({}, { input: { kind: "prompt", prompt: "a\ud800b \\ud800" }, metadata: { k: "\udc00" } }),
    );
    expect(contentOf(text).request).toMatchObject({ prompt: "a\ufffdb \\ud800", metadata: { k: "\ufffd" } });
    expect(text.isWellFormed()).toBe(true);
  });
});

describe("the stream", () => {
  test("comes back byte for byte, with the artifact in the last event", () => {
    const whole = facts();
    const expected = [
      encodeEvent(0, { type: "started", data: started }),
      encodeEvent(1, { type: "token", t: "said", i: 0 }),
      encodeEvent(2, { type: "token", t: " 🦙", i: 1 }),
      encodeEvent(3, { type: "metrics", data: metrics }),
      encodeEvent(4, { type: "token", t: "\n", i: 2 }),
      encodeEvent(5, { type: "end", data: { ...end, artifact_id: "the id" } }),
    ];
    expect(sentOf(built(whole))).toEqual(expected);
    expect(read(built(whole)).pieces?.map(({ ids }) => ids)).toEqual([[5], [6, 7], []]);
  });

  test("of a task that failed before it began, and of one that embedded", () => {
    const data = {
      code: "DEADLINE_UNMET",
      message: "too late",
      engine: "mock",
      retriable: false,
      retry_after_ms: null,
      artifact_id: null,
    } as const;
    const failed = facts({
      state: "failed",
      pieces: [],
      events: [],
      ending: { type: "error", data },
      pool: null,
    });
    expect(sentOf(built(failed))).toEqual([
      encodeEvent(0, { type: "error", data: { ...data, artifact_id: "the id" } }),
    ]);
    const result = { embeddings: [[0.1, -2e-9], [3]] };
    const one = { seq: 0, type: "started", data: started } as const;
    const embedded = facts({ pieces: [], events: [one], ending: { type: "end", data: { ...end, result } } });
    expect(sentOf(built(embedded))[1]).toBe(
      encodeEvent(1, { type: "end", data: { ...end, artifact_id: "the id", result } }),
    );
  });

  test("is not told where a part is missing", () => {
    const transcript = read(built(facts()));
    const [first] = transcript.events;
    if (first === undefined) throw new Error("there is a first event");
    expect(eventsOf({ ...transcript, pieces: null }, "x")).toBeNull();
    expect(eventsOf({ ...transcript, events: [{ ...first, seq: 9 }] }, "x")).toBeNull();
    expect(eventsOf({ ...transcript, omitted: ["events"] }, "x")).toBeNull();
  });
});

describe("redacted", () => {
  const result = { results: [{ index: 0, score: 0.123456 }] };
  const inputs: readonly Partial<TaskSpec>[] = [
    {},
    { input: { kind: "messages", messages: [{ role: "user", content: "the secret question" }] } },
    { input: { kind: "rerank", query: "secret query", inputs: ["secret 1"] }, workload: "rerank" },
    { sampling: { ...profile, jsonSchema: { title: "secret schema" } } },
  ];
  for (const [at, spec] of inputs.entries())
    test(`tells neither what was asked nor what was answered (${at})`, () => {
      const of = facts({ ending: { type: "end", data: { ...end, result } } }, spec);
      const text = built(of, rules({ policy: "redacted" }));
      for (const word of ["secret", "said", "🦙", "0.123456", "hush"]) expect(text).not.toContain(word);
      expect(contentOf(text)).toMatchObject({
        policy: "redacted",
        tokens_out: 3,
        output: { pieces: [], text: { chars: 8, sha256: sha256("said 🦙\n") } },
        ending: { result_omitted: true, data: { finish_reason: "stop" } },
      });
      const transcript = read(text);
      expect(eventsOf(transcript, "x")).toBeNull();
      expect(requestAgain(transcript, null)).toBeNull();
    });
});

describe("too much", () => {
  const long = "x".repeat(4000);
  const parts: Readonly<Record<string, TranscriptFacts>> = {
    request: facts({}, { input: { kind: "prompt", prompt: long } }),
    output: facts({ pieces: [{ text: long, ids: [] }] }),
    result: facts({
      ending: { type: "end", data: { ...end, result: { embeddings: [Array(2000).fill(0.5)] } } },
    }),
    events: facts({
      events: Array.from({ length: 40 }, (_, seq) => ({ seq, type: "metrics" as const, data: metrics })),
    }),
  };
  for (const [part, of] of Object.entries(parts))
    test(`the largest part goes: ${part}`, () => {
      const text = built(of, rules({ bytesMax: 3900 }));
      expect(Buffer.byteLength(text)).toBeLessThanOrEqual(3900);
      expect(contentOf(text).omitted).toEqual([part]);
      expect(eventsOf(read(text), "x") === null).toBe(part !== "request");
    });

  test("as many parts as must, and none at all where even that is too much", () => {
    const all = facts({ pieces: [{ text: long, ids: [] }] }, { input: { kind: "prompt", prompt: long } });
    expect(contentOf(built(all, rules({ bytesMax: 3900 }))).omitted).toEqual(["output", "request"]);
    expect(transcriptText(all, rules({ bytesMax: 100 }))).toBeNull();
  });

  test("what is too large beforehand is never written out", () => {
    const vector = new Proxy([], {
      get: (_, name) => (name === "length" ? 1e6 : undefined),
    }) as readonly number[];
    const data = { ...end, result: { embeddings: [vector] } };
    expect(contentOf(built(facts({ ending: { type: "end", data } }))).omitted).toEqual(["result"]);
  });
});

test("the request may be sent again: resolved, without its session, budget and deadline", () => {
  const sampling = { ...profile, temperature: 0.5, stop: ["."] };
  const again = requestAgain(read(built(facts({}, { sampling, sessionId: uuidOf(9) }))), "demo");
  expect(again).toEqual({
    prompt: "the secret prompt",
    workload: "completion",
    model_ref: "file:demo.gguf",
    seed: 2 ** 32 - 1,
    determinism: "best_effort",
    sampler_profile_version: "v1",
    max_tokens: 256,
    kv_hint: "reuse",
    priority: "interactive",
    sampling: {
      temperature: 0.5,
      top_p: 0.95,
      top_k: 40,
      min_p: 0.05,
      repeat_penalty: 1,
      presence_penalty: 0,
      frequency_penalty: 0,
      stop: ["."],
    },
    placement: { mode: "pin", pin_pool_id: "demo" },
  });
});

test("secrets among the engine's flags are not shown, nor where the model lies", () => {
  expect(contentOf(built(facts())).attempts).toMatchObject([{ model: "words.gguf" }]);
  expect(contentOf(built(facts())).pool).toMatchObject({
    args: ["-ngl", "99", "--hf-token", "***", "--api-key=***"],
  });
});

test("it can be found by its task, its session and how it ended", () => {
  expect(parseDocument(built(facts({}, { sessionId: uuidOf(9) })))?.tags).toEqual([
    `task:${uuidOf(1)}`,
    "state:done",
    `session:${uuidOf(9)}`,
  ]);
});

test("what is no transcript reads as none", () => {
  const content = contentOf(built(facts()));
  expect(readTranscript(content)).not.toBeNull();
  const broken: readonly unknown[] = [
    "text",
    null,
    { ...content, trace_version: 2 },
    { ...content, policy: "off" },
    { ...content, ending: { type: "started", data: {} } },
    { ...content, output: { text: "abc", pieces: [[2]] } },
    { ...content, output: { text: "abc", pieces: [[-3], [6]] } },
    { ...content, events: [{ seq: -1, type: "started", data: {} }] },
    { ...content, attempts: "none" },
  ];
  for (const one of broken) expect(readTranscript(one)).toBeNull();
});
