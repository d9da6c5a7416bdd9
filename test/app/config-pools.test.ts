/** Keys and pools as the configuration names them, and the pools that a models folder makes (ORCHD-CLI-2). */
import { describe, expect, test } from "bun:test";
import { allowancesOf } from "../../src/app/config-keys.ts";
import { renderConfig } from "../../src/app/config-render.ts";
import { limits } from "../../src/domain/limits.ts";
import {
  type CompileOptions,
  compiled,
  compileText,
  digest,
  mockPool,
  pool,
  problemsOf,
  valid,
} from "../support/config-files.ts";

describe("keys", () => {
  const keys = (list: string): string => `auth: { keys: [${list}] }`;

  test("by digest, from a file, from the environment", () => {
    const env = { ORCHD_API_KEY: "from-the-environment" };
    const disk = { "/etc/orchestratord/ci.key": "0123456789abcdef\n" };
    const list = `{ id: a, sha256: "${digest.toUpperCase()}", admin: true }, { id: ci, file: ci.key, rate: { per_second: 2, burst: 4 } }`;
    const { auth } = compiled(keys(list), { env, disk });
    expect(auth.keys).toEqual([
      {
        keyId: "a",
        sha256: digest,
        from: "sha256",
        filePath: null,
        admin: true,
        rate: null,
        budget: null,
      },
      {
        keyId: "ci",
        sha256: "9f9f5111f7b27a781f1f1ddde5ebc2dd2b796bfc7365c9c28b548e564176929f",
        from: "file",
        filePath: "/etc/orchestratord/ci.key",
        admin: false,
        rate: { perSecond: 2, burst: 4 },
        budget: null,
      },
      expect.objectContaining({ keyId: "env", from: "env", admin: true, budget: null }),
    ]);
  });

  test("with a budget for a window of time: what is not named is not bounded", () => {
    const budgets = "budget: { tokens: 1000, cost: 0.5, window_ms: 3600000 }";
    const list = `{ id: a, sha256: ${digest}, ${budgets} }, { id: b, file: /b, budget: null }`;
    const { auth } = compiled(keys(list), {
      disk: { "/b": "0123456789abcdef" },
      env: { ORCHD_API_KEY: "from-the-environment" },
    });
    const budget = { tokens: 1000, timeMs: null, cost: 0.5, windowMs: 3_600_000 };
    expect(auth.keys.map((key) => key.budget)).toEqual([budget, null, null]);
    expect([...allowancesOf(auth.keys)]).toEqual([
      ["a", { budget: { tokens: 1000, timeMs: null, cost: 0.5 }, windowMs: 3_600_000 }],
    ]);
  });

  test("a key file that everyone can read is a warning", () => {
    const disk = { "/k": "0123456789abcdef" };
    const result = compileText(keys("{ id: a, file: /k }"), { disk, modes: { "/k": 0o644 } });
    expect(result.ok && result.warnings).toEqual(["the key file /k can be read by everyone; chmod 600 it"]);
  });

  const bad: [string, string, string][] = [
    [
      "the placeholder",
      '{ id: a, sha256: "REPLACE-WITH-THE-SHA256-OF-YOUR-KEY" }',
      "expected the SHA-256 of your key as 64 hexadecimal digits",
    ],
    [
      "a budget without its window",
      `{ id: a, sha256: "${digest}", budget: { tokens: 5 } }`,
      "auth.keys[0].budget.window_ms: missing, expected an integer from 1000 to 2678400000",
    ],
    [
      "a budget of a window that is too long",
      `{ id: a, sha256: "${digest}", budget: { tokens: 5, window_ms: 2678400001 } }`,
      "auth.keys[0].budget.window_ms: found 2678400001, expected an integer from 1000 to 2678400000",
    ],
    [
      "a budget that bounds nothing",
      `{ id: a, sha256: "${digest}", budget: { tokens: null, window_ms: 1000 } }`,
      "auth.keys[0].budget: found none of tokens, time_ms and cost, expected at least one",
    ],
    [
      "a misspelt budget",
      `{ id: a, sha256: "${digest}", budget: { time: 5, window_ms: 1000 } }`,
      "auth.keys[0].budget.time: unknown key; did you mean time_ms?",
    ],
    ["neither", "{ id: a }", "found neither of sha256 and file"],
    ["both", `{ id: a, sha256: "${digest}", file: /k }`, "found both of sha256 and file"],
    [
      "a short key",
      "{ id: a, file: /short }",
      "the file /short holds 5 characters, expected 16 to 512 visible",
    ],
    ["no file", "{ id: a, file: /nope }", "cannot read the file /nope"],
    ["a reserved id", `{ id: env, sha256: "${digest}" }`, "found env, which the daemon uses itself"],
    [
      "twice the same key",
      `{ id: a, sha256: "${digest}" }, { id: b, sha256: "${digest}" }`,
      "the same key as a has",
    ],
  ];
  test.each(bad)("refused: %s", (_, list, part) => {
    const found = problemsOf(keys(list), { disk: { "/short": "short", "/k": "x" } });
    expect(found).toHaveLength(1);
    expect(found[0]).toContain(part);
  });

  test("no message and no dump quotes a secret", () => {
    const secret = "sup3r-s3cret-value";
    const text = `${keys(`{ id: a, sha256: ${secret} }, { id: b, key: ${secret} }, { id: c, file: [${secret}] }`)}\n${pool(`env: { T: [${secret}] }`)}`;
    const found = problemsOf(text, { env: { ORCHD_API_KEY: `${secret} with a blank` } });
    expect(found.length).toBeGreaterThanOrEqual(5);
    expect(found.join("\n")).not.toContain(secret);
    const config = compiled(`${keys(`{ id: a, sha256: ${digest} }`)}\n${pool(`env: { TOKEN: ${secret} }`)}`, {
      env: { ORCHD_API_KEY: secret },
    });
    const dump = renderConfig(config);
    expect(dump).toContain("TOKEN: (not shown)");
    expect(dump).not.toContain(secret);
    expect(dump).not.toContain(digest);
    expect(JSON.stringify(config.auth)).not.toContain(secret);
  });
});

describe("pools", () => {
  test("a pool with its defaults", () => {
    const text = `models: { dir: /models }\npools: [{ id: chat, model: chat.gguf }]`;
    const { pools, poolsFrom } = compiled(text, { readModelKind: () => ["rerank"] });
    expect(poolsFrom).toBe("file");
    expect(pools).toEqual([
      {
        id: "chat",
        engine: "llamacpp",
        modelRef: "file:chat.gguf",
        modelPath: "/models/chat.gguf",
        replicas: 1,
        slots: 4,
        ctx: null,
        args: [],
        env: {},
        preload: true,
        idleUnloadMs: null,
        queueCapacity: 256,
        fullPolicy: "reject",
        price: { per1kTokensIn: 0, per1kTokensOut: 0 },
        devices: [],
        timeouts: { loadMs: 120_000, firstTokenMs: 60_000, interTokenMs: 20_000, stopGraceMs: 5_000 },
        taskTimeoutMs: null,
        preempt: null,
        samplerProfileVersion: "v1",
        workloads: ["rerank"],
        engineBin: "/usr/bin/llama-server",
        rpc: [],
        remote: null,
        mock: null,
      },
    ]);
  });

  test("a model that lies elsewhere has its place before it is there", () => {
    const text = (model: string) => `models: { dir: /models }\npools: [{ id: chat, model: "${model}" }]`;
    const of = (model: string, more = {}) => {
      const { modelRef, modelPath, workloads } = compiled(text(model), more).pools[0] ?? {};
      return [modelRef, modelPath, workloads];
    };
    const path = "/models/hf/o/r/x.gguf";
    expect(of("hf:o/r@main/x.gguf")).toEqual(["hf:o/r/x.gguf", path, ["completion"]]);
    const readModelKind = (read: string) => (read === path ? (["embedding"] as const) : null);
    expect(of("hf:o/r/x.gguf", { readModelKind })).toEqual(["hf:o/r/x.gguf", path, ["embedding"]]);
    // What is there already needs nobody's leave.
    const off = `${text("hf:o/r/x.gguf")}\n`.replace(
      "{ dir: /models }",
      "{ dir: /models, fetch: { enabled: false } }",
    );
    expect(compiled(off, { disk: { [path]: "GGUF" } }).pools[0]?.modelPath).toBe(path);
  });

  test("what the file says of the workload goes before what the model says", () => {
    const config = compiled(pool("workloads: [embedding]"), { readModelKind: () => ["rerank"] });
    expect(config.pools[0]?.workloads).toEqual(["embedding"]);
    expect(compiled(pool("slots: 1")).pools[0]?.workloads).toEqual(["completion"]);
  });

  test("preemption with its defaults, with its own bounds, and not at all; a bound on a whole task", () => {
    const preemptOf = (value: string) => compiled(mockPool(`preempt: ${value}`)).pools[0]?.preempt;
    expect(preemptOf("false")).toBeNull();
    expect(preemptOf("true")).toEqual({ maxWaitMs: 2000, maxCuts: 3, minGainMs: 250 });
    expect(preemptOf("{}")).toEqual({ maxWaitMs: 2000, maxCuts: 3, minGainMs: 250 });
    expect(preemptOf("{ max_wait_ms: 0, max_cuts: 7, min_gain_ms: 10 }")).toEqual({
      ...{ maxWaitMs: 0, maxCuts: 7, minGainMs: 10 },
    });
    expect(compiled(mockPool("timeouts: { task_ms: 900 }")).pools[0]?.taskTimeoutMs).toBe(900);
    const shown = renderConfig(compiled(mockPool("preempt: { max_cuts: 2 }, timeouts: { task_ms: 900 }")));
    expect(shown).toContain("max_cuts: 2");
    expect(shown).toContain("task_ms: 900");
  });

  test("a policy for a full queue, and a price", () => {
    const policies = ["reject", "drop-lru", "shed-low-priority"] as const;
    for (const policy of policies) {
      const config = compiled(mockPool(`queue: { full_policy: ${policy} }`));
      expect(config.pools[0]?.fullPolicy).toBe(policy);
      expect(config.pools[0]?.queueCapacity).toBe(256);
    }
    const priced = compiled(mockPool("price: { per_1k_tokens_out: 0.25 }")).pools[0];
    expect(priced?.price).toEqual({ per1kTokensIn: 0, per1kTokensOut: 0.25 });
    const demo = compiled(null, { env: { PATH: "" } }).pools[0];
    expect([demo?.fullPolicy, demo?.price]).toEqual(["reject", { per1kTokensIn: 0, per1kTokensOut: 0 }]);
  });

  test("devices, rest and the memory of mock pools; what an engine calls a card is that card (ORCHD-MEM-2)", () => {
    const text = [
      "devices: [{ id: CUDA1, memory_bytes: 24GiB }, { id: host, memory_bytes: 1000, reserve_bytes: 1 KiB }]",
      "residency: { swap_max_wait_ms: 5 }",
      mockPool("preload: false, idle_unload_ms: 0, devices: [gpu-1, host], mock: { memory_bytes: 2MiB }"),
    ].join("\n");
    expect(problemsOf(text)).toEqual([
      "F:1:94: devices[1].reserve_bytes: found 1 KiB, expected at most memory_bytes (1000)",
    ]);
    const config = compiled(text.replace("1 KiB", "null"));
    expect(config.devices).toEqual([
      { id: "gpu-1", memoryBytes: 24 * 2 ** 30, reserveBytes: null },
      { id: "host", memoryBytes: 1000, reserveBytes: null },
    ]);
    expect(config.residency).toEqual({ swapMaxWaitMs: 5, swapTurnMaxMs: 300_000 });
    const [first] = config.pools;
    expect([first?.devices, first?.idleUnloadMs, first?.mock?.memoryBytes]).toEqual([
      ["gpu-1", "host"],
      0,
      2 * 2 ** 20,
    ]);
    expect(compiled(renderConfig(config)).pools).toEqual(config.pools);
    expect(compiled(renderConfig(config)).devices).toEqual(config.devices);
  });

  test("a mock pool with faults", () => {
    const config = compiled(
      mockPool("mock: { token_ms: 1, faults: [{ kind: stall, nth: 2, after_tokens: 3 }] }"),
    );
    expect(config.pools[0]?.mock).toEqual({
      tokenMs: 1,
      prefillMsPerToken: 0.1,
      loadMs: 0,
      memoryBytes: 0,
      faults: [{ kind: "stall", nth: 2, afterTokens: 3, delayMs: 0 }],
    });
    expect(config.pools[0]?.engineBin).toBeNull();
  });

  test("without pools and models: demo", () => {
    const config = compiled(null, { env: { PATH: "" } });
    expect(config.poolsFrom).toBe("demo");
    expect(config.pools.map(({ id, engine, modelRef, preload }) => [id, engine, modelRef, preload])).toEqual([
      ["demo", "mock", "mock:words", true],
    ]);
    expect(config.engineBin).toBeNull();
  });

  const scan = (names: string[], more: CompileOptions = {}) => {
    const disk = { "/m": names, ...Object.fromEntries(names.map((name) => [`/m/${name}`, "GGUF"])) };
    const result = compileText(null, { flags: { modelsDir: "/m" }, ...more, disk });
    return { config: valid(result), warnings: result.ok ? result.warnings : [] };
  };

  test("every model of the folder, on demand, in order; parts once, projectors never", () => {
    const { config, warnings } = scan([
      "b-00002-of-00002.gguf",
      "b-00001-of-00002.gguf",
      "Ünï Model.gguf",
      "Qwen3-8B_Q4.GGUF",
      "qwen3-8b_q4.gguf",
      "mmproj-a.gguf",
      ".hidden.gguf",
      "notes.txt",
      "c-00001-of-00002.gguf",
    ]);
    expect(config.poolsFrom).toBe("models_dir");
    expect(config.pools.map(({ id, modelPath, preload }) => [id, modelPath, preload])).toEqual([
      ["qwen3-8b_q4", "/m/Qwen3-8B_Q4.GGUF", false],
      ["b", "/m/b-00001-of-00002.gguf", false],
      ["qwen3-8b_q4-2", "/m/qwen3-8b_q4.gguf", false],
      ["n-model", "/m/Ünï Model.gguf", false],
    ]);
    expect(warnings).toEqual(["left out /m/c-00001-of-00002.gguf: c-00002-of-00002.gguf is not there"]);
  });

  test("a single model is loaded at once", () => {
    expect(scan(["a.gguf"]).config.pools.map(({ preload }) => preload)).toEqual([true]);
  });

  test("what the model is for comes from its file", () => {
    const { config } = scan(["e.gguf"], {
      readModelKind: (path) => (path === "/m/e.gguf" ? ["embedding"] : null),
    });
    expect(config.pools[0]?.workloads).toEqual(["embedding"]);
  });

  test("a full folder stays within the bounds and says so", () => {
    const { config, warnings } = scan(
      Array.from({ length: 100 }, (_, i) => `m${String(i).padStart(3, "0")}.gguf`),
    );
    expect(config.pools).toHaveLength(limits.poolsMax);
    expect(config.pools.reduce((sum, { slots }) => sum + slots, 0)).toBeLessThanOrEqual(limits.slotsTotalMax);
    expect(warnings[0]).toStartWith("left out 36 models of /m");
  });

  test("models without an engine to run them are a problem", () => {
    const found = problemsOf("models: { dir: /models }", { env: { PATH: "/nowhere" } });
    expect(found).toEqual([expect.stringContaining("llama-server is not on PATH; install llama.cpp")]);
  });
});
