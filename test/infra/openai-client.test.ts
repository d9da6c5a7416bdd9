/** The client of servers elsewhere against a scripted one: what goes wrong, what is asked, and what ends it. */
import { afterEach, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { unknownVersion } from "../../src/domain/pool.ts";
import { OpenAiAdapter } from "../../src/infra/engines/openai.ts";
import type { EngineClient } from "../../src/ports/engine.ts";
import { clock, entropy, failureOf, never, RecordingSink, request, within } from "../support/engine.ts";
import { OpenAiServer, type OpenAiServerOptions } from "../support/openai-server.ts";

const opened: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const close of opened.splice(0).reverse()) await close();
});

async function started(
  options: OpenAiServerOptions = {},
  more: Parameters<OpenAiServer["pool"]>[0] = {},
): Promise<{ server: OpenAiServer; client: EngineClient }> {
  const server = new OpenAiServer(options);
  opened.push(() => server.stop());
  const client = new OpenAiAdapter({ clock, entropy }).connectInProcess(server.pool(more));
  opened.push(() => client.close());
  return { server, client };
}

const ready = async (...args: Parameters<typeof started>) => {
  const both = await started(...args);
  const identity = await both.client.identity(never);
  return { ...both, identity };
};

const generate = async (client: EngineClient, options: Parameters<typeof request>[0] = {}) => {
  const sink = new RecordingSink();
  const result = await within(10_000, "the answer", client.generate(request(options), sink, never));
  return { result, sink };
};

const errorOf = async (call: Promise<unknown>): Promise<string> => {
  try {
    await call;
    return "it succeeded";
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
};

const chat = { messages: [{ role: "user" as const, content: "Tell me of the river" }], said: "" };

describe("what is asked", () => {
  test("of vLLM: its own parameters, the key, the host; no salt where its cache may be used", async () => {
    const { server, client } = await ready({ key: "the-key" });
    await generate(client, { sampling: { topK: 0, minP: 0.1, repeatPenalty: 1.2, stop: ["x"] } });
    await generate(client, { cachePrompt: false });
    await generate(client, { cachePrompt: false });
    const [plain, cold, colder] = server.of("/v1/completions");
    expect(plain?.key).toBe("the-key");
    expect(plain?.host).toBe(`127.0.0.1:${server.port}`);
    expect(plain?.body).toEqual({
      model: "words-7b",
      prompt: "Once upon a time",
      max_tokens: 16,
      seed: 7,
      temperature: 0,
      top_p: 0.95,
      presence_penalty: 0,
      frequency_penalty: 0,
      stop: ["x"],
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
      top_k: -1,
      min_p: 0.1,
      repetition_penalty: 1.2,
      return_token_ids: true,
    });
    expect(String(cold?.body.cache_salt).length).toBeGreaterThan(40);
    expect(colder?.body.cache_salt).not.toBe(cold?.body.cache_salt);
  });

  test("of a gateway: the OpenAI API and nothing else", async () => {
    const { server, client, identity } = await ready({ like: "gateway" }, { ctx: 512 });
    expect(identity).toMatchObject({ engineVersion: unknownVersion, ctxPerSlot: 512, features: [] });
    expect(client.prompts).toEqual({ tokenizes: false, chat: "begins", cold: false });
    await generate(client, { cachePrompt: false, sampling: { topK: 7, minP: 0.1, repeatPenalty: 1.2 } });
    expect(Object.keys(server.of("/v1/completions")[0]?.body ?? {}).sort()).toEqual(
      "frequency_penalty,max_tokens,model,presence_penalty,prompt,seed,stream,stream_options,temperature,top_p".split(
        ",",
      ),
    );
    expect(await failureOf(generate(client, { sampling: { grammar: 'root ::= "a"' } }))).toBe("unsupported");
    expect(await failureOf(generate(client, { sampling: { jsonSchema: {} } }))).toBe("unsupported");
    expect(await failureOf(client.tokenize("a", true, never))).toBe("unsupported");
    expect(await failureOf(generate(client, { prompt: { ...chat, said: "The" } }))).toBe("unsupported");
    expect(server.of("/v1/completions")).toHaveLength(1);
  });

  test("of a gateway that is named as vLLM: as of vLLM", async () => {
    const server = new OpenAiServer({ like: "gateway" });
    opened.push(() => server.stop());
    const remote = { baseUrl: server.url, kind: "vllm" as const, key: null };
    const client = new OpenAiAdapter({ clock, entropy }).connectInProcess(server.pool({ remote, ctx: 512 }));
    opened.push(() => client.close());
    await client.identity(never);
    // It has no tokenizer's page, which is found out.
    expect(client.prompts).toEqual({ tokenizes: false, chat: "continues", cold: true });
    await generate(client, { prompt: { ...chat, said: "The" } });
    const [asked] = server.of("/v1/chat/completions");
    expect(asked?.body).toMatchObject({ continue_final_message: true, add_generation_prompt: false });
    expect(asked?.body.messages).toEqual([...chat.messages, { role: "assistant", content: "The" }]);
  });

  test("the context is the smaller of what the pool and the server say, and one of them must", async () => {
    expect((await ready({ ctx: 300 }, { ctx: null })).identity.ctxPerSlot).toBe(300);
    expect((await ready({ ctx: 300 }, { ctx: 200 })).identity.ctxPerSlot).toBe(200);
    expect((await ready({ ctx: 300 }, { ctx: 2000 })).identity.ctxPerSlot).toBe(300);
    const { client } = await started({ like: "gateway" }, { ctx: null });
    expect(await failureOf(client.identity(never))).toBe("connection");
    expect(await client.exited).toMatchObject({
      cause: "refused",
      message: expect.stringContaining('set "ctx"'),
    });
  });
});

describe("an answer", () => {
  test("in pieces of one byte between comments, without [DONE], is the same", async () => {
    const { server, client } = await ready();
    const whole = await generate(client, { maxTokens: 30 });
    server.pieceBytes = 1;
    server.withoutDone = true;
    const torn = await generate(client, { maxTokens: 30 });
    expect(torn.sink.pieces).toEqual(whole.sink.pieces);
    expect(torn.sink.ids).toEqual(whole.sink.ids);
    expect(torn.result.tokensOut).toBe(30);
  });

  test("without its accounts is counted by its pieces, the prompt by its bound", async () => {
    const { server, client } = await ready({ like: "gateway" }, { ctx: 512 });
    server.withoutUsage = true;
    server.withoutDone = true;
    const { result, sink } = await generate(client, { prompt: "Once", maxTokens: 5 });
    expect(result).toMatchObject({ tokensIn: 4, tokensOut: sink.pieces.length, finishReason: "length" });
  });

  test("that begins with thoughts: a sign of life each, no text", async () => {
    const { server, client } = await ready();
    server.thoughts = 3;
    let heard = 0;
    const sink = Object.assign(new RecordingSink(), { onHeard: () => (heard += 1) });
    await client.generate(request({ prompt: chat, maxTokens: 4 }), sink, never);
    expect(heard).toBe(3);
    expect(sink.text).not.toContain("thought");
  });

  test("broken off is never taken for a whole one", async () => {
    const { server, client } = await ready();
    for (const [kind, failure] of [
      ["error", "protocol"],
      ["drop", "connection"],
      ["early_end", "connection"],
    ] as const) {
      server.mishaps = [{ kind, after: 3 }];
      const sink = new RecordingSink();
      const call = client.generate(request({ maxTokens: 400 }), sink, never);
      expect([kind, await within(10_000, kind, failureOf(call))]).toEqual([kind, failure]);
      expect(sink.pieces.length).toBeGreaterThanOrEqual(3);
      await within(10_000, "it is still there", client.awaitSlotFree(0, never));
    }
    expect((await generate(client)).result.tokensOut).toBe(16);
  });

  test("that is aborted is broken off at the server too", async () => {
    const { server, client } = await ready({ tokenMs: 5 });
    const abort = new AbortController();
    const sink = new RecordingSink((now) => {
      if (now.pieces.length === 3) abort.abort();
    });
    const call = client.generate(request({ maxTokens: 1000 }), sink, abort.signal);
    expect(await failureOf(call)).toBe("aborted");
    await within(10_000, "the server sees it", server.abortedAtLeast(1));
    expect(sink.pieces).toHaveLength(3);
  });
});

describe("a server that is busy", () => {
  test("is tried again, after what it says, until it takes the task", async () => {
    const { server, client } = await ready();
    server.mishaps = [
      { kind: "busy", status: 429 },
      { kind: "busy", status: 503, retryAfterSeconds: 1 },
      { kind: "busy", status: 502 },
    ];
    const fromMs = clock.nowMs();
    expect((await generate(client, { maxTokens: 4 })).result.tokensOut).toBe(4);
    expect(clock.nowMs() - fromMs).toBeGreaterThanOrEqual(1000);
    expect(server.of("/v1/completions")).toHaveLength(4);
  });

  test("is not tried any more once the task is aborted", async () => {
    const { server, client } = await ready();
    server.mishaps = [{ kind: "busy", status: 429, retryAfterSeconds: 60 }];
    const abort = new AbortController();
    const call = failureOf(client.generate(request(), new RecordingSink(), abort.signal));
    while (server.of("/v1/completions").length === 0) await clock.yieldTurn();
    abort.abort();
    expect(await within(5_000, "the abort", call)).toBe("aborted");
    expect(server.of("/v1/completions")).toHaveLength(1);
  });
});

describe("a refusal", () => {
  const body = (message: string) => ({ error: { message, type: "BadRequestError", code: 400 } });

  test("of one request is that task's own", async () => {
    const { server, client } = await ready();
    const cases = [
      [400, body("top_p must be in (0, 1]"), "rejected"],
      [
        400,
        body("This model's maximum context length is 4096 tokens. However, you requested 5000"),
        "context",
      ],
      [422, { detail: [{ msg: "Input should be a valid string" }] }, "rejected"],
      [403, "<html>blocked</html>", "rejected"],
      [404, { detail: "Not Found" }, "unsupported"],
      [500, { object: "error", message: "boom", type: "InternalServerError", code: 500 }, "protocol"],
    ] as const;
    for (const [status, said, kind] of cases) {
      server.mishaps = [{ kind: "refuse", status, body: said }];
      expect([status, await failureOf(generate(client))]).toEqual([status, kind]);
    }
    expect(await errorOf(generate(client).then(() => Promise.reject(new Error("still there"))))).toBe(
      "still there",
    );
  });

  test("of the key ends the engine with its reason, which names no key", async () => {
    const { server, client } = await started({ key: "right-key-0123456789" });
    server.key = "another-key-987654321";
    // What the pool hands over is read at the start.
    const late = new OpenAiAdapter({ clock, entropy }).connectInProcess(server.pool());
    opened.push(() => late.close());
    server.key = "a-third-key-5555555";
    for (const one of [client, late]) {
      expect(await one.health(never)).toBe("ok");
      expect(await failureOf(one.identity(never))).toBe("connection");
      const end = await one.exited;
      expect(end).toMatchObject({ cause: "refused" });
      const text = JSON.stringify(end);
      expect(text).toContain("refuses the key from the variable REMOTE_KEY");
      expect(text).not.toMatch(/right-key|another-key|third-key/);
      expect(await failureOf(one.health(never))).toBe("aborted");
    }
  });

  test("of the key while it serves: those under way are no refusals of their tasks", async () => {
    const { server, client } = await ready({ key: "right-key-0123456789", tokenMs: 5 });
    const running = failureOf(client.generate(request({ maxTokens: 1500 }), new RecordingSink(), never));
    while (server.generations === 0) await clock.yieldTurn();
    server.key = "rotated-key-0123456789";
    expect(await failureOf(generate(client, { slot: 1 }))).toBe("connection");
    expect(await client.exited).toMatchObject({ cause: "refused" });
    expect(await within(5_000, "the other", running)).toBe("aborted");
  });

  test("of the model names those that are served", async () => {
    const { server, client } = await started();
    server.models = ["a-7b", "b-13b"];
    expect(await failureOf(client.identity(never))).toBe("connection");
    expect(await client.exited).toMatchObject({
      cause: "refused",
      message: expect.stringContaining("does not serve the model words-7b; it names a-7b, b-13b"),
    });
  });
});

describe("health", () => {
  test("is that of its page, or of its list of models where it has none", async () => {
    const { server, client } = await started();
    expect(await client.health(never)).toBe("ok");
    server.healthStatus = 503;
    expect(await client.health(never)).toBe("loading");
    const gateway = await started({ like: "gateway", key: "k-0123456789" });
    expect(await gateway.client.health(never)).toBe("ok");
    expect(gateway.server.asked.map(({ path }) => path)).toEqual(["/health", "/v1/models"]);
  });

  test("a server that is gone ends the engine, once somebody waits to hear of it", async () => {
    const { server, client } = await ready();
    await server.stop();
    expect(await failureOf(generate(client))).toBe("unreachable");
    expect(await within(10_000, "the wait", failureOf(client.awaitSlotFree(0, never)))).toBe("unreachable");
    expect(await client.exited).toMatchObject({
      cause: "unreachable",
      message: expect.stringContaining(`of pool remote at ${server.url} does not answer any more`),
    });
  });
});

describe("TLS", () => {
  const fixture = (name: string) => join(import.meta.dir, "fixtures", name);
  const secure = () => {
    const server = Bun.serve({
      port: 0,
      tls: { cert: Bun.file(fixture("tls-cert.pem")), key: Bun.file(fixture("tls-key.pem")) },
      fetch: (asked) =>
        Response.json({ host: asked.headers.get("host"), key: asked.headers.get("authorization") }),
    });
    opened.push(() => server.stop(true));
    return server;
  };
  const poolAt = (baseUrl: string) => {
    const server = new OpenAiServer();
    opened.push(() => server.stop());
    return server.pool({ remote: { baseUrl, kind: "auto", key: null } });
  };

  test("nothing is sent to a server whose certificate nobody vouches for", async () => {
    const server = secure();
    let asked = 0;
    server.reload({
      fetch: () => {
        asked += 1;
        return new Response("");
      },
    });
    const pool = poolAt(`https://localhost:${server.port}/v1`);
    const client = new OpenAiAdapter({ clock, entropy }).connectInProcess(pool);
    opened.push(() => client.close());
    expect(await errorOf(client.health(never))).toContain("is not one that this machine trusts (DEPTH_ZERO");
    expect(asked).toBe(0);
  });

  test("NODE_EXTRA_CA_CERTS adds one's own authority, and the name must be its own", async () => {
    const server = secure();
    const probe = async (host: string): Promise<string> => {
      const caller = join(import.meta.dir, "../support/tls-caller.ts");
      const child = Bun.spawn([process.execPath, caller, `https://${host}:${server.port}/v1`], {
        env: { ...process.env, NODE_EXTRA_CA_CERTS: fixture("tls-cert.pem") },
      });
      const said = await new Response(child.stdout).text();
      await child.exited;
      return said.trim();
    };
    expect(await probe("localhost")).toBe("ok");
    expect(await probe("127.0.0.1")).toContain("(ERR_TLS_CERT_ALTNAME_INVALID)");
  });
});
