/**
 * Mistakes in a configuration, one by one and all at once: each is told with path, line, what was found and
 * what is expected.
 */
import { describe, expect, test } from "bun:test";
import { nearestName } from "../../src/app/config-problems.ts";
import { limits } from "../../src/domain/limits.ts";
import { compileText, mockPool, pool, problemsOf } from "../support/config-files.ts";

describe("mistakes in the file: path, line, what was found, what is expected", () => {
  const only: [string, string, string][] = [
    [
      "an unknown key, with the nearest name",
      "log: { level: info }\naddress: x",
      "F:2:1: address: unknown key; did you mean addr?",
    ],
    [
      "a nested one",
      "limits:\n  body_byte: 5000",
      "F:2:3: limits.body_byte: unknown key; did you mean body_bytes?",
    ],
    [
      "one that begins like a known one",
      "shutdown: { drain: 1 }",
      "F:1:13: shutdown.drain: unknown key; did you mean drain_deadline_ms?",
    ],
    [
      "one that resembles nothing",
      "tls: { xyzzy: 1 }",
      "F:1:8: tls.xyzzy: unknown key; known here: cert, key",
    ],
    [
      "a wrong type",
      "tasks: { max_attempts: many }",
      'F:1:24: tasks.max_attempts: found "many", expected an integer from 1 to 100',
    ],
    [
      "a number in quotes",
      'tasks: { max_attempts: "3" }',
      'F:1:24: tasks.max_attempts: found "3", expected an integer from 1 to 100 (without quotes)',
    ],
    [
      "a fraction",
      "tasks: { max_attempts: 1.5 }",
      "F:1:24: tasks.max_attempts: found 1.5, expected an integer from 1 to 100",
    ],
    [
      "not a number",
      "admission: { min_on_time_probability: .nan }",
      "F:1:39: admission.min_on_time_probability: found NaN, expected a number from 0 to 1",
    ],
    ["nothing", "limits:\n", "F:1:8: limits: found nothing (null), expected a map"],
    ["a list for a map", "limits: []", "F:1:9: limits: found a list of 0, expected a map"],
    ["a list as the file", "- a", "F:1:1: found a list of 1, expected a map"],
    [
      "none of the choices",
      "auth:\n  mode: none",
      'F:2:9: auth.mode: found "none", expected required, loopback-open or off',
    ],
    [
      "out of range",
      `limits: { body_bytes: ${limits.bodyBytesMax + 1} }`,
      `F:1:23: limits.body_bytes: found ${limits.bodyBytesMax + 1}, expected an integer from 1024 to ${limits.bodyBytesMax}`,
    ],
    [
      "a rate of zero",
      "limits: { rate: { per_second: 0, burst: 1 } }",
      "F:1:31: limits.rate.per_second: found 0, expected a number above 0, at most 1000000",
    ],
    [
      "a missing key",
      "limits: { rate: { per_second: 1 } }",
      "F:1:11: limits.rate.burst: missing, expected an integer from 1 to 1000000",
    ],
    [
      "a duplicate key",
      "log: { level: info }\nlog: { level: info }",
      "F:2:1: log: duplicate key; it stands on line 1 already",
    ],
    [
      "a nested duplicate",
      "limits:\n  body_bytes: 5000\n  body_bytes: 5000",
      "F:3:3: limits.body_bytes: duplicate key; it stands on line 2 already",
    ],
    [
      "a key that is no name",
      "? [a]\n: 1",
      "F:1:3: found a key that is a list, a map or an alias, expected a name",
    ],
    [
      "broken YAML",
      "addr: [1\nlog: 2",
      "F:2:1: not valid YAML: Flow sequence in block collection must be sufficiently indented and end with a ]",
    ],
    [
      "a custom tag",
      "addr: !!js/function x",
      "F:1:7: not valid YAML: Unresolved tag: tag:yaml.org,2002:js/function",
    ],
    [
      "an address",
      "addr: localhost",
      'F:1:7: addr: found "localhost", expected HOST:PORT as in 127.0.0.1:8080 or [::1]:8080',
    ],
    [
      "mode off for everybody",
      "auth: { mode: off }",
      "F:1:15: auth.mode: found off with the address 0.0.0.0, expected a loopback address (127.0.0.1 or ::1): anybody could use the engines",
    ],
    [
      "backoff beyond its maximum",
      "restart: { backoff_ms: 9, backoff_max_ms: 8 }",
      "F:1:24: restart.backoff_ms: found 9, expected at most restart.backoff_max_ms (8)",
    ],
    ["half of TLS", "tls: { cert: /c }", "F:1:1: tls: found one of cert and key, expected both or neither"],
    [
      "an unknown order",
      "admission: { fair: per_key }",
      'F:1:20: admission.fair: found "per_key", expected fifo or per-key',
    ],
    [
      "a session that ends at once",
      "sessions:\n  ttl_ms: 0",
      `F:2:11: sessions.ttl_ms: found 0, expected an integer from 1000 to ${limits.deadlineMsMax}`,
    ],
    [
      "a session without turns",
      "sessions: { max_turns: 0 }",
      "F:1:24: sessions.max_turns: found 0, expected an integer from 1 to 1000000",
    ],
    [
      "a misspelt bound",
      "sessions: { budget: { token: 5 } }",
      "F:1:23: sessions.budget.token: unknown key; did you mean tokens?",
    ],
    [
      "a budget of nothing",
      "sessions: { budget: { tokens: 0 } }",
      `F:1:31: sessions.budget.tokens: found 0, expected an integer from 1 to ${limits.budgetTokensMax} or null`,
    ],
    [
      "a negative cost",
      "sessions: { budget: { cost: -0.5 } }",
      `F:1:29: sessions.budget.cost: found -0.5, expected a number from 0 to ${limits.budgetCostMax} or null`,
    ],
    [
      "no truth value",
      "tasks: { cut_at_deadline: maybe }",
      'F:1:27: tasks.cut_at_deadline: found "maybe", expected true or false',
    ],
    [
      "an unknown durability",
      "storage:\n  durability: none",
      'F:2:15: storage.durability: found "none", expected power or process',
    ],
    [
      "an unknown key of the storage",
      "storage: { durabilty: power }",
      "F:1:12: storage.durabilty: unknown key; did you mean durability?",
    ],
    [
      "blocks of tokens that a reader would notice",
      "streaming: { microbatch_ms: 251 }",
      "F:1:29: streaming.microbatch_ms: found 251, expected an integer from 0 to 250",
    ],
    ["a storage that is no map", "storage: power", 'F:1:10: storage: found "power", expected a map or null'],
    [
      "a missing engine",
      "engines: { llamacpp: { bin: /nope } }\nmodels: { dir: /models }",
      "llama-server: /nope is not an executable file; install llama.cpp, or name its llama-server with --engine-bin or ORCHD_LLAMA_SERVER",
    ],
    [
      "a missing models folder",
      "models: { dir: /nowhere }",
      "/nowhere: the models folder cannot be listed; create it or name another",
    ],
    [
      "too many pools",
      `pools: [${Array.from({ length: 65 }, (_, i) => `{ id: p${i}, engine: mock, model: mock:words, slots: 1 }`).join(", ")}]`,
      "F:1:8: pools: found a list of 65, expected a list of at most 64",
    ],
  ];
  test.each(only)("%s", (_, text, line) => {
    expect(problemsOf(text)).toEqual([line]);
  });

  const pools: [string, string, string][] = [
    [
      "a bad id",
      "pools: [{ id: My Pool, engine: mock, model: mock:words }]",
      'pools[0].id: found "My Pool", expected 1 to 64 lower-case',
    ],
    [
      "a twin id",
      `${mockPool("slots: 1")}  - { id: a, engine: mock, model: mock:words }`,
      "F:3:11: pools[1].id: found a again; pools[0] has this id already",
    ],
    ["no model", "pools: [{ id: a }]", "F:1:9: pools[0].model: missing, expected a non-empty text"],
    [
      "a missing file",
      "pools: [{ id: a, model: file:x.gguf }]\nmodels: { dir: /models }",
      "F:1:25: pools[0].model: no such file: /models/x.gguf (relative paths start at models.dir, /models)",
    ],
    ["an address that is none", "pools: [{ id: a, model: hf:org/x.gguf }]", "expected hf:ORG/REPO/FILE.gguf"],
    [
      "an address with a secret",
      "pools: [{ id: a, model: 'https://u:p@h.example/x.gguf' }]",
      "found credentials in the address",
    ],
    [
      "a host that is not listed",
      "pools: [{ id: a, model: https://h.example/x.gguf }]",
      "cannot be fetched: h.example is not among models.fetch.allow_hosts",
    ],
    [
      "a model to fetch where nothing is fetched",
      "models: { fetch: { enabled: false } }\npools: [{ id: a, model: hf:o/r/x.gguf }]",
      "cannot be fetched: models.fetch.enabled is false",
    ],
    [
      "a part of a model",
      "pools: [{ id: a, model: hf:o/r/x-00001-of-00002.gguf }]",
      "enter each part into the catalog",
    ],
    [
      "an entry of the allow list that is none",
      "models: { fetch: { allow_hosts: [huggingface.co, 'https://hf.co'] } }",
      'models.fetch.allow_hosts[1]: found "https://hf.co", expected a host',
    ],
    ["a mock model on an engine", "pools: [{ id: a, model: mock:words }]", "set engine: mock"],
    [
      "a file on the mock",
      "pools: [{ id: a, engine: mock, model: file:/models/chat.gguf }]",
      "expected mock:words with engine mock",
    ],
    [
      "outside the roots",
      `models: { dir: /models, roots: [/srv] }\n${pool("").replace("/models/chat", "/etc/x")}`,
      "pools[0].model: /etc/x.gguf lies outside models.dir and models.roots (/models, /srv)",
    ],
    [
      "too many slots in one",
      mockPool("slots: 129"),
      "pools[0].slots: found 129, expected an integer from 1 to 128",
    ],
    [
      "too many slots in all",
      mockPool("slots: 97, replicas: 2"),
      `pools[0].slots: found 194 slots with this pool and those before it, expected at most ${limits.slotsTotalMax} over all pools`,
    ],
    [
      "a flag that is the daemon's",
      pool("args: [--port=1]"),
      "pools[0].args[0]: the daemon sets this flag itself; use addr",
    ],
    [
      "two workloads on one engine",
      pool("workloads: [embedding, rerank]"),
      "pools[0].workloads: found 2, expected one with engine llamacpp",
    ],
    [
      "an unknown workload",
      mockPool("workloads: [embeddings]"),
      'pools[0].workloads[0]: found "embeddings", expected completion, embedding or rerank',
    ],
    ["mock options elsewhere", pool("mock: {}"), "pools[0].mock: only engine mock takes this"],
    [
      "an unknown mock option",
      mockPool("mock: { token: 1 }"),
      "pools[0].mock.token: unknown key; did you mean token_ms?",
    ],
    [
      "an unknown fault",
      mockPool("mock: { faults: [{ kind: crsh }] }"),
      'pools[0].mock.faults[0].kind: found "crsh", expected crash, stall,',
    ],
    [
      "a bad variable name",
      pool("env: { A-B: x }"),
      'pools[0].env.A-B: found the name "A-B", expected letters, digits and _',
    ],
    [
      "an unknown policy",
      mockPool("queue: { full_policy: drop }"),
      'pools[0].queue.full_policy: found "drop", expected reject, drop-lru or shed-low-priority',
    ],
    [
      "a negative price",
      mockPool("price: { per_1k_tokens_in: -1 }"),
      "pools[0].price.per_1k_tokens_in: found -1, expected a number from 0 to 100000",
    ],
    [
      "a price of something else",
      mockPool("price: { per_1k_tokens: 1 }"),
      "pools[0].price.per_1k_tokens: unknown key; did you mean per_1k_tokens_in?",
    ],
    [
      "a device by its bare number",
      pool("devices: [0]"),
      "pools[0].devices[0]: found 0, expected host, gpu-0, gpu-1 and so on, or an engine's name for one such as CUDA0",
    ],
    [
      "rest of a pool that is kept loaded",
      pool("idle_unload_ms: 1000"),
      "pools[0].idle_unload_ms: found 1000 with preload: true, which keeps it loaded; set preload: false",
    ],
    [
      "a size without its unit",
      "devices: [{ id: host, memory_bytes: 24GB }]",
      'devices[0].memory_bytes: found "24GB", expected bytes, or a size such as 24GiB',
    ],
    [
      "a device twice",
      "devices: [{ id: gpu-0 }, { id: CUDA0 }]",
      "devices[1].id: found CUDA0, which devices[0] is already",
    ],
    ["a variable that is a number", pool("env: { A: 1 }"), "pools[0].env.A: found 1, expected a text"],
  ];
  test.each(pools)("pools: %s", (_, text, part) => {
    const found = problemsOf(text);
    expect(found).toHaveLength(1);
    expect(found[0]).toContain(part);
  });

  const later = [pool("sampler_profile_version: v2"), "telemetry: { otlp_endpoint: 'http://x' }"];
  test.each(later.map((text) => [text.replace("pools:\n  - ", "").trim(), text] as const))(
    "what comes later is not accepted as if it worked: %s",
    (_, text) => {
      const found = problemsOf(text);
      expect(found).toHaveLength(1);
      expect(found[0]).toMatch(/^F:\d+:\d+: [\w.[\]]+: found .*not supported by this version; leave it out/);
    },
  );

  test("its neutral defaults are", () => {
    const neutral = [
      "storage: null",
      "artifacts: { s3: null }",
      "models: { dir: /models, fetch: { enabled: false, allow_hosts: [] }, trust: permissive }",
      "telemetry: { otlp_endpoint: null }",
      pool("devices: [], idle_unload_ms: null"),
    ].join("\n");
    expect(problemsOf(neutral)).toEqual([]);
  });

  test("all problems at once, in the file's order, then flags", () => {
    const text = [
      "adr: x",
      "auth: { keys: [{ id: a }, { id: a, sha256: x }] }",
      "restart: { backoff_ms: 9, backoff_max_ms: 8 }",
      "pools:",
      "  - { id: a, engine: mock, model: mock:words, slots: 0 }",
      "  - { id: a, engine: mock, model: words }",
      "  - { id: b, engine: openai, model: gpt }",
    ].join("\n");
    const found = problemsOf(text, {
      flags: { addr: "x", logLevel: "inf" },
      env: { ORCHD_API_KEY: "short" },
    });
    expect(found.map((line) => line.split(/: |, expected/, 2).join(" "))).toEqual([
      "F:1:1 adr",
      "F:2:16 auth.keys[0]",
      "F:2:33 auth.keys[1].id",
      "F:2:44 auth.keys[1].sha256",
      "F:3:24 restart.backoff_ms",
      "F:5:54 pools[0].slots",
      "F:6:11 pools[1].id",
      "F:7:22 pools[2].engine",
      '--addr found "x"',
      '--log-level found "inf"',
      "ORCHD_API_KEY found a text of 5 characters",
    ]);
  });

  test("problems with flags and variables name them", () => {
    expect(problemsOf(null, { env: { ORCHD_ADDR: "x" } })[0]).toStartWith("ORCHD_ADDR: found");
    expect(problemsOf(null, { flags: { engineBin: "/nope" } })).toHaveLength(1);
    expect(problemsOf(null, { flags: { engineBin: "/nope" } })[0]).toStartWith("--engine-bin: /nope is not");
    expect(problemsOf(null, { env: { ORCHD_LLAMA_SERVER: "nope" } })[0]).toStartWith(
      "ORCHD_LLAMA_SERVER: nope is not on PATH",
    );
  });

  test("a variable of ours that nobody reads is a warning", () => {
    const result = compileText(null, { env: { ORCHD_ADRR: "x", ORCHD_CHILD_OF: "x" } });
    expect(result.ok && result.warnings).toEqual([
      "the variable ORCHD_ADRR is not known; did you mean ORCHD_ADDR?",
    ]);
  });

  test("what has no end is refused, not followed", () => {
    for (const text of [
      "[".repeat(9_000),
      `${"{a: ".repeat(1000)}1${"}".repeat(1000)}`,
      `a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\npools: [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]`,
    ]) {
      const found = problemsOf(text);
      expect(found.length).toBeGreaterThan(0);
      expect(found.length).toBeLessThanOrEqual(limits.poolsMax + 10);
    }
  });
});

describe("nearestName", () => {
  test.each([
    ["adr", "addr"],
    ["ADDR", "addr"],
    ["statedir", "state_dir"],
    ["zzz", null],
    ["", null],
  ])("%s → %s", (name, nearest) => {
    expect(nearestName(name, ["addr", "state_dir", "log"])).toBe(nearest);
  });
});
