/** What servers that speak the OpenAI API say, each in its own way, and what each is asked for. */
import { describe, expect, test } from "bun:test";
import { type Chunk, httpError, readChunk, readUsage } from "../../src/infra/engines/openai-frames.ts";
import { continuesChats, remoteRequest } from "../../src/infra/engines/openai-request.ts";
import {
  cardOf,
  kindByCards,
  modelCards,
  moreAbout,
  type ServerKind,
  versionNumbers,
} from "../../src/infra/engines/openai-server.ts";
import { failureOf, request } from "../support/engine.ts";

const none = new Map<string, string>();
const read = (json: unknown): Chunk => readChunk(JSON.stringify(json));
const failing = (json: unknown): Promise<string> => failureOf((async () => read(json))());

describe("a chunk", () => {
  const empty = { text: "", ids: [], thinks: false, finishReason: null, usage: null, isLast: false };

  test("of a completion, a chat, with ids, with accounts", () => {
    expect(read({ choices: [{ text: " to", index: 0 }] })).toMatchObject({ ...empty, text: " to" });
    expect(read({ choices: [{ delta: { content: "The" } }] })).toMatchObject({ ...empty, text: "The" });
    expect(read({ choices: [{ delta: { role: "assistant", content: null } }] })).toMatchObject(empty);
    expect(read({ choices: [{ text: "a", token_ids: [5, 6] }] }).ids).toEqual([5, 6]);
    expect(read({ choices: [{ delta: {}, finish_reason: "length" }] }).finishReason).toBe("length");
    const usage = { prompt_tokens: 9, completion_tokens: 4, prompt_tokens_details: { cached_tokens: 8 } };
    expect(read({ choices: [], usage })).toMatchObject({
      isLast: true,
      usage: { tokensIn: 9, tokensOut: 4, tokensCached: 8 },
    });
    expect(readUsage({ total_tokens: 7 })).toEqual({ tokensIn: 7, tokensCached: 0, tokensOut: 0 });
  });

  test("of a thought, under either name", () => {
    expect(read({ choices: [{ delta: { reasoning_content: "Hm" } }] })).toMatchObject({
      thinks: true,
      text: "",
    });
    expect(read({ choices: [{ delta: { reasoning: "Hm" } }] })).toMatchObject({ thinks: true, text: "" });
  });

  test("of half a character is whole Unicode", () => {
    expect(read({ choices: [{ text: "a\ud83d" }] }).text).toBe("a\ufffd");
  });

  test("of llama-server tells of the prompt and of its own clock", () => {
    const progress = { total: 9, cache: 2, processed: 5, time_ms: 3 };
    expect(read({ choices: [{ text: "" }], prompt_progress: progress }).progress).toEqual({
      total: 9,
      cached: 2,
      done: 5,
    });
    const timings = { prompt_ms: 3.5, predicted_ms: 2.25, predicted_n: 4 };
    expect(read({ choices: [{ text: "" }], timings }).timings).toEqual({ promptMs: 3.5, decodeMs: 2.25 });
  });

  test("that is an error, in each server's form, and never a reason to try the same answer again unseen", async () => {
    expect(await failing({ error: { message: "boom", type: "InternalServerError", code: 500 } })).toBe(
      "protocol",
    );
    expect(await failing({ object: "error", message: "boom", type: "x", code: 400 })).toBe("rejected");
    expect(await failing({ error: "overloaded", error_type: "overloaded" })).toBe("protocol");
    expect(await failing({ error: { message: "busy", code: 503 } })).toBe("connection");
    const full = { message: "Context size has been exceeded.", type: "server_error", code: 500 };
    expect(await failing({ error: full })).toBe("context");
    expect(await failing({ hello: 1 })).toBe("protocol");
    expect(await failureOf((async () => readChunk("data"))())).toBe("protocol");
  });
});

describe("a status", () => {
  const kindOf = (status: number, message = "", type: unknown = "x") =>
    httpError(status, none, JSON.stringify({ error: { message, type, code: status } })).engineErrorKind;

  test("means what it means to a task", () => {
    const kinds = [400, 401, 403, 422, 404, 501, 429, 502, 503, 504, 500].map((status) => kindOf(status));
    expect(kinds).toEqual([
      ...["rejected", "rejected", "rejected", "rejected", "unsupported", "unsupported"],
      ...["unavailable", "unavailable", "unavailable", "unavailable", "protocol"],
    ] as typeof kinds);
  });

  test.each([
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
    "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
    "the request exceeds the available context size, try increasing it",
    "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens",
    "input (600 tokens) is too large to process. increase the physical batch size",
  ])("is about the context: %s", (message) => {
    expect(kindOf(400, message)).toBe("context");
  });

  test("with Retry-After says when; a date or nonsense does not", () => {
    const after = (value: string) => httpError(429, new Map([["retry-after", value]]), "").retryAfterMs;
    expect(after("7")).toBe(7000);
    expect(after("Wed, 21 Oct 2026 07:28:00 GMT")).toBeNull();
    expect(after("-1")).toBeNull();
    expect(httpError(429, none, "").retryAfterMs).toBeNull();
  });

  test("from a proxy has a message all the same; a message is one line and bounded", () => {
    expect(httpError(502, none, "<html>").message).toBe("the server answered 502");
    expect(httpError(400, none, JSON.stringify({ error: "Unauthorized" })).message).toBe("Unauthorized");
    const long = httpError(
      400,
      none,
      JSON.stringify({ error: { message: `a\n\u0007b${"x".repeat(9999)}` } }),
    );
    expect(long.message).toStartWith("a b");
    expect(long.message.length).toBeLessThan(600);
  });
});

describe("who it is", () => {
  const vllm = { id: "m", owned_by: "vllm", max_model_len: 4096 };

  test("by its list of models", () => {
    expect(kindByCards(modelCards({ data: [vllm] }))).toBe("vllm");
    expect(kindByCards(modelCards({ data: [{ id: "m", owned_by: "sglang" }] }))).toBe("sglang");
    expect(kindByCards(modelCards({ data: [{ id: "m", owned_by: "llamacpp" }] }))).toBe("llama-server");
    expect(kindByCards(modelCards({ data: [{ id: "m", owned_by: "openai" }] }))).toBeNull();
    expect(kindByCards(modelCards({ data: [{ id: "m", owned_by: "constructor" }] }))).toBeNull();
    expect(modelCards({ data: [vllm, { owned_by: "x" }, 3] })).toHaveLength(1);
    expect(cardOf(modelCards({ data: [vllm] }), "m")?.ctx).toBe(4096);
    expect(cardOf(modelCards({ data: [{ id: "a", aliases: ["m"], meta: { n_ctx: 64 } }] }), "m")?.ctx).toBe(
      64,
    );
    expect(cardOf(modelCards({}), "m")).toBeNull();
  });

  test("by its own pages", () => {
    const told = (kind: ServerKind, answer: object) => moreAbout[kind]?.read({ ...answer });
    expect(told("vllm", { version: "0.11.0" })).toEqual({ version: "0.11.0", ctx: null });
    expect(told("tgi", { version: "3.3.6", max_total_tokens: 8192 })).toEqual({
      version: "3.3.6",
      ctx: 8192,
    });
    const props = { build_info: "b11669", default_generation_settings: { n_ctx: 2048 } };
    expect(told("llama-server", props)).toEqual({ version: "b11669", ctx: 2048 });
    expect(moreAbout.other).toBeNull();
    expect(versionNumbers("0.11.2rc1")).toEqual([0, 11]);
    expect(versionNumbers("dev")).toBeNull();
  });
});

describe("what it is asked", () => {
  const chat = { messages: [{ role: "user" as const, content: "hi" }], said: "" };
  const bodyOf = (
    kind: ServerKind,
    options: Parameters<typeof request>[0] = {},
    version: string | null = null,
  ) => remoteRequest({ kind, version }, "m", request(options), "salt").body;

  test("a grammar, in each server's words", async () => {
    const sampling = { grammar: 'root ::= "a"' };
    const grammar = sampling.grammar;
    expect(bodyOf("llama-server", { sampling })).toMatchObject({ grammar });
    expect(bodyOf("sglang", { sampling })).toMatchObject({ ebnf: grammar });
    for (const version of ["0.11.0", "0.20.1", "1.0.0", null])
      expect(bodyOf("vllm", { sampling }, version)).toMatchObject({ structured_outputs: { grammar } });
    expect(bodyOf("vllm", { sampling }, "0.10.2")).toMatchObject({ guided_grammar: grammar });
    for (const kind of ["tgi", "other"] as const)
      expect(await failureOf((async () => bodyOf(kind, { sampling }))())).toBe("unsupported");
  });

  test("a JSON schema, likewise", async () => {
    const sampling = { jsonSchema: { type: "object" } };
    const format = { type: "json_schema", json_schema: { name: "answer", schema: { type: "object" } } };
    expect(bodyOf("llama-server", { sampling })).toMatchObject({ json_schema: { type: "object" } });
    expect(bodyOf("sglang", { sampling })).toMatchObject({ json_schema: '{"type":"object"}' });
    expect(bodyOf("sglang", { sampling, prompt: chat })).toMatchObject({ response_format: format });
    expect(bodyOf("vllm", { sampling })).toMatchObject({ response_format: format });
    expect(bodyOf("other", { sampling, prompt: chat })).toMatchObject({ response_format: format });
    expect(await failureOf((async () => bodyOf("other", { sampling }))())).toBe("unsupported");
  });

  test("no cached context, where it can be told", () => {
    expect(bodyOf("vllm", { cachePrompt: false })).toMatchObject({ cache_salt: "salt" });
    expect(bodyOf("llama-server", { cachePrompt: false })).toMatchObject({ cache_prompt: false });
    expect(bodyOf("vllm")).not.toHaveProperty("cache_salt");
  });

  test("llama-server is never asked to draw a seed itself; the others take the largest as any", () => {
    expect(bodyOf("llama-server", { seed: 2 ** 32 - 1 }).seed).toBe(2 ** 32 - 2);
    expect(bodyOf("vllm", { seed: 2 ** 32 - 1 }).seed).toBe(2 ** 32 - 1);
  });

  test("the beginning of an answer goes only to who can go on behind it", async () => {
    const kinds: ServerKind[] = ["vllm", "sglang", "tgi", "llama-server", "other"];
    expect(kinds.filter(continuesChats)).toEqual(["vllm", "sglang"]);
    const prompt = { ...chat, said: "The" };
    expect(bodyOf("sglang", { prompt })).toMatchObject({ continue_final_message: true });
    expect(await failureOf((async () => bodyOf("other", { prompt }))())).toBe("unsupported");
  });
});
