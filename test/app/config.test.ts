/**
 * From flags, environment and file to one Config: precedence, discovery, the folder scan, and every kind of
 * mistake with its place. No disk: see support/config-files.ts.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type Config, type ConfigResult, loadConfig } from "../../src/app/config.ts";
import { formatProblem, nearestName } from "../../src/app/config-problems.ts";
import { renderConfig } from "../../src/app/config-render.ts";
import { limits } from "../../src/domain/limits.ts";
import { type CompileOptions, compileText, diskOf, machine } from "../support/config-files.ts";

const digest = "ab".repeat(32);

function valid(result: ConfigResult): Config {
  if (!result.ok) throw new Error(`not valid:\n${result.problems.map(formatProblem).join("\n")}`);
  return result.config;
}
const compiled = (text: string | null, options?: CompileOptions): Config => valid(compileText(text, options));
const lines = (result: ConfigResult): string[] =>
  result.ok
    ? []
    : result.problems.map(formatProblem).map((line) => line.replace("/etc/orchestratord/config.yaml", "F"));
const problemsOf = (text: string | null, options?: CompileOptions): string[] =>
  lines(compileText(text, options));
const pool = (more: string): string => `pools:\n  - { id: a, model: file:/models/chat.gguf, ${more} }\n`;
const mockPool = (more: string): string =>
  `pools:\n  - { id: a, engine: mock, model: mock:words, ${more} }\n`;

describe("precedence", () => {
  const file = "addr: 10.0.0.1:1\nstate_dir: /file\nlog: { level: warn }\nmodels: { dir: /models }\n";
  const env = { ORCHD_ADDR: "10.0.0.2:2", ORCHD_STATE_DIR: "/env", ORCHD_LLAMA_SERVER: "/opt/llama-server" };
  const flags = {
    addr: "10.0.0.3:3",
    stateDir: "flag",
    logLevel: "debug",
    modelsDir: "../models",
    engineBin: "/usr/bin/llama-server",
  };
  const facts = ({ addr, stateDir, logLevel, models, engineBin }: Config) => [
    addr.port,
    stateDir,
    logLevel,
    models.dir,
    engineBin,
  ];

  const bin = "/usr/bin/llama-server";
  const table: [string, Config, unknown[]][] = [
    [
      "default",
      compiled(null),
      [8080, "/home/ada/.local/state/orchestratord", "info", "/home/ada/.cache/models", bin],
    ],
    ["file", compiled(file), [1, "/file", "warn", "/models", bin]],
    ["environment before file", compiled(file, { env }), [2, "/env", "warn", "/models", "/opt/llama-server"]],
    ["flag before environment", compiled(file, { env, flags }), [3, "/work/flag", "debug", "/models", bin]],
    [
      "empty variables count as unset",
      compiled(file, { env: { ORCHD_ADDR: "", ORCHD_API_KEY: "" } }),
      [1, "/file", "warn", "/models", bin],
    ],
  ];
  test.each(table)("%s", (_, config, expected) => {
    expect(facts(config)).toEqual(expected);
  });

  test("XDG_STATE_HOME counts where it is absolute", () => {
    expect(compiled(null, { env: { XDG_STATE_HOME: "/xdg" } }).stateDir).toBe("/xdg/orchestratord");
    expect(compiled(null, { env: { XDG_STATE_HOME: "xdg" } }).stateDir).toBe(
      "/home/ada/.local/state/orchestratord",
    );
  });

  test("relative paths of the file start at its folder, ~ is the home", () => {
    const config = compiled("state_dir: state\nmodels: { dir: ~/m }\n", { disk: { "/home/ada/m": [] } });
    expect(config.stateDir).toBe("/etc/orchestratord/state");
    expect(config.models.dir).toBe("/home/ada/m");
  });

  test("an empty file is the same as none", () => {
    const { filePath: _, ...rest } = compiled("# nothing\n");
    const { filePath: __, ...none } = compiled(null);
    expect(rest).toEqual(none);
  });
});

describe("discovery", () => {
  const load = (
    disk: Record<string, string>,
    more: { flags?: { config?: string }; env?: Record<string, string> } = {},
  ) =>
    loadConfig({
      flags: more.flags ?? {},
      env: { PATH: "/usr/bin", ...more.env },
      cwd: "/work",
      home: "/home/ada",
      files: diskOf({ ...machine, ...disk }),
      readModelKind: () => null,
    });
  const all = {
    "/work/flag.yaml": "addr: 10.0.0.1:1",
    "/work/env.yaml": "addr: 10.0.0.1:2",
    "/work/orchestratord.yaml": "addr: 10.0.0.1:3",
    "/xdg/orchestratord/config.yaml": "addr: 10.0.0.1:4",
    "/home/ada/.config/orchestratord/config.yaml": "addr: 10.0.0.1:5",
  };
  const without = (name: keyof typeof all) =>
    Object.fromEntries(Object.entries(all).filter(([key]) => key !== name));

  test("flag, variable, this folder, XDG", () => {
    const env = { ORCHD_CONFIG: "env.yaml", XDG_CONFIG_HOME: "/xdg" };
    expect(valid(load(all, { env, flags: { config: "flag.yaml" } })).addr.port).toBe(1);
    expect(valid(load(all, { env })).addr.port).toBe(2);
    expect(valid(load(all, { env: { XDG_CONFIG_HOME: "/xdg" } })).addr.port).toBe(3);
    const bare = without("/work/orchestratord.yaml");
    expect(valid(load(bare, { env: { XDG_CONFIG_HOME: "/xdg" } })).addr.port).toBe(4);
    expect(valid(load(bare)).addr.port).toBe(5);
    expect(valid(load({})).filePath).toBeNull();
  });

  test("a file that was named and cannot be read is a problem", () => {
    expect(lines(load(all, { flags: { config: "nope.yaml" } }))[0]).toStartWith(
      "--config: cannot read /work/nope.yaml",
    );
    expect(lines(load(all, { env: { ORCHD_CONFIG: "/nope" } }))[0]).toStartWith(
      "ORCHD_CONFIG: cannot read /nope",
    );
    const tooLong = { "/work/orchestratord.yaml": "#".repeat(2 * 1024 * 1024) };
    expect(lines(load(tooLong))[0]).toStartWith("/work/orchestratord.yaml: cannot read");
  });
});

describe("mistakes in the file: path, line, what was found, what is expected", () => {
  const only: [string, string, string][] = [
    [
      "an unknown key, with the nearest name",
      "log: { level: info }\nadress: x",
      "F:2:1: adress: unknown key; did you mean addr?",
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
    ["a key that is no name", "? [a]\n: 1", "F:1:3: found a key that is a list or a map, expected a name"],
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
    [
      "an address to fetch",
      "pools: [{ id: a, model: hf:org/x.gguf }]",
      "fetching is not supported by this version; download the file first",
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
    ["a variable that is a number", pool("env: { A: 1 }"), "pools[0].env.A: found 1, expected a text"],
  ];
  test.each(pools)("pools: %s", (_, text, part) => {
    const found = problemsOf(text);
    expect(found).toHaveLength(1);
    expect(found[0]).toContain(part);
  });

  const later = [
    pool("preempt: true"),
    pool("idle_unload_ms: 1000"),
    pool("queue: { full_policy: drop-lru }"),
    pool("devices: [0]"),
    pool("price: { per_1k_tokens_in: 1 }"),
    pool("engine: openai"),
    pool("sampler_profile_version: v2"),
    "storage: { durability: process }",
    "artifacts: { root: /x }",
    "artifacts: { max_bytes: 1 }",
    "sessions: { ttl_ms: 1 }",
    "sessions: { budget: { tokens: 5 } }",
    "telemetry: { otlp_endpoint: 'http://x' }",
    "models: { fetch: { enabled: true } }",
    "models: { fetch: { allow_hosts: [huggingface.co] } }",
    "models: { trust: strict }",
    "admission: { fair: per-key }",
    "streaming: { microbatch_ms: 5 }",
    "limits: { artifact_bytes: 1 }",
  ];
  test.each(later)("what comes later is not accepted as if it worked: %s", (text) => {
    const found = problemsOf(text);
    expect(found).toHaveLength(1);
    expect(found[0]).toMatch(/^F:\d+:\d+: [\w.[\]]+: found .*not supported by this version; leave it out/);
  });

  test("its neutral defaults are", () => {
    const neutral = [
      "storage: null",
      "limits: { artifact_bytes: 8388608 }",
      "sessions: { ttl_ms: 600000, max_turns: 8, budget: { tokens: null, time_ms: null, cost: null } }",
      "artifacts: { root: null, max_bytes: 10737418240, max_age_days: null, s3: null }",
      "models: { dir: /models, fetch: { enabled: false, allow_hosts: [] }, trust: permissive }",
      "telemetry: { otlp_endpoint: null }",
      "admission: { fair: fifo }",
      "streaming: { microbatch_ms: 0 }",
      pool(
        "devices: [], idle_unload_ms: null, price: { per_1k_tokens_in: 0 }, preempt: false, queue: { full_policy: reject }",
      ),
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
    expect(found.map((line) => line.split(": ", 2).join(" "))).toEqual([
      "F:1:1 adr",
      "F:2:16 auth.keys[0]",
      "F:2:32 auth.keys[1].id",
      "F:2:43 auth.keys[1].sha256",
      "F:3:24 restart.backoff_ms",
      "F:5:54 pools[0].slots",
      "F:6:11 pools[1].id",
      "F:7:22 pools[2].engine",
      '--addr found "x", expected HOST',
      '--log-level found "inf", expected debug, info, warn or error; did you mean info?',
      "ORCHD_API_KEY found a text of 5 characters, expected 16 to 512 visible ASCII characters without blanks",
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
      "[".repeat(100_000),
      `${"{a: ".repeat(50_000)}`,
      `a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\npools: [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]`,
    ]) {
      const found = problemsOf(text);
      expect(found.length).toBeGreaterThan(0);
      expect(found.length).toBeLessThanOrEqual(limits.poolsMax + 10);
    }
  });
});

describe("addresses", () => {
  const good: [string, string, number][] = [
    ["127.0.0.1:0", "127.0.0.1", 0],
    ["0.0.0.0:65535", "0.0.0.0", 65_535],
    ["[::1]:8080", "::1", 8080],
    ["[::]:80", "::", 80],
    ["my-host.local:9", "my-host.local", 9],
  ];
  test.each(good)("%s", (addr, host, port) => {
    expect(compiled(null, { flags: { addr } }).addr).toEqual({ host, port });
  });
  test.each([
    "",
    ":8080",
    "8080",
    "a:65536",
    "a:-1",
    "a:1.5",
    "::1:80",
    "[::1]",
    "[x]:1",
    "http://a:1",
    "a b:1",
    "-a:1",
  ])("refused: %p", (addr) => {
    expect(problemsOf(null, { flags: { addr } })).toHaveLength(1);
  });
  test.each(["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"])("auth off is fine on %s", (addr) => {
    expect(compiled(`auth: { mode: off }\naddr: "${addr}"`).auth.mode).toBe("off");
  });
});

describe("keys", () => {
  const keys = (list: string): string => `auth: { keys: [${list}] }`;

  test("by digest, from a file, from the environment", () => {
    const env = { ORCHD_API_KEY: "from-the-environment" };
    const disk = { "/etc/orchestratord/ci.key": "0123456789abcdef\n" };
    const list = `{ id: a, sha256: "${digest.toUpperCase()}", admin: true }, { id: ci, file: ci.key, rate: { per_second: 2, burst: 4 } }`;
    const { auth } = compiled(keys(list), { env, disk });
    expect(auth.keys).toEqual([
      { keyId: "a", sha256: digest, from: "sha256", filePath: null, admin: true, rate: null },
      {
        keyId: "ci",
        sha256: "9f9f5111f7b27a781f1f1ddde5ebc2dd2b796bfc7365c9c28b548e564176929f",
        from: "file",
        filePath: "/etc/orchestratord/ci.key",
        admin: false,
        rate: { perSecond: 2, burst: 4 },
      },
      expect.objectContaining({ keyId: "env", from: "env", admin: true }),
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
        queueCapacity: 256,
        timeouts: { loadMs: 120_000, firstTokenMs: 60_000, interTokenMs: 20_000, stopGraceMs: 5_000 },
        samplerProfileVersion: "v1",
        workloads: ["rerank"],
        engineBin: "/usr/bin/llama-server",
        mock: null,
      },
    ]);
  });

  test("what the file says of the workload goes before what the model says", () => {
    const config = compiled(pool("workloads: [embedding]"), { readModelKind: () => ["rerank"] });
    expect(config.pools[0]?.workloads).toEqual(["embedding"]);
    expect(compiled(pool("slots: 1")).pools[0]?.workloads).toEqual(["completion"]);
  });

  test("a mock pool with faults", () => {
    const config = compiled(
      mockPool("mock: { token_ms: 1, faults: [{ kind: stall, nth: 2, after_tokens: 3 }] }"),
    );
    expect(config.pools[0]?.mock).toEqual({
      tokenMs: 1,
      prefillMsPerToken: 0.1,
      loadMs: 0,
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

test("the Config is frozen all the way down", () => {
  const seen: unknown[] = [];
  const visit = (value: unknown): void => {
    if (typeof value !== "object" || value === null) return;
    seen.push(value);
    expect(Object.isFrozen(value)).toBe(true);
    Object.values(value).forEach(visit);
  };
  visit(compiled(`${pool("env: { A: b }")}auth: { keys: [{ id: a, sha256: ${digest} }] }`));
  expect(seen.length).toBeGreaterThan(15);
});

test("what --check-config prints is the same configuration again", () => {
  const disk = { "/c": "c", "/k": "k", "/key": "0123456789abcdef", "/bin/tool": "#!" };
  const text = `
addr: "[::1]:0"
auth: { mode: off, keys: [{ id: f, file: /key, rate: { per_second: 0.5, burst: 1 } }] }
tls: { cert: /c, key: /k }
admission: { default_deadline_ms: 5 }
models: { dir: /models, roots: [/models/a] }
engines: { llamacpp: { bin: tool } }
pools:
  - { id: a, model: chat.gguf, args: [-ngl, "99"], ctx: 512, queue: { capacity: 7 }, timeouts: { load_ms: 9 } }
  - { id: b, engine: mock, model: mock:words, workloads: [rerank, embedding], mock: { faults: [{ kind: late, delay_ms: 4 }] } }
`;
  const config = compiled(text, { disk });
  expect(compiled(renderConfig(config), { disk })).toEqual(config);
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

test("whatever happens to a valid file, the answer is a Config or problems with a place", async () => {
  const example = (
    await Bun.file(new URL("../../orchestratord.example.yaml", import.meta.url)).text()
  ).replace(/"REPLACE[^"]*"/, `"${digest}"`);
  const text = example
    .split("\n")
    .filter((line) => line.trim() !== "" && !/^\s*#/.test(line))
    .join("\n");
  const scrap = fc.oneof(
    fc.constantFrom(
      "null",
      "[]",
      "{}",
      "-1",
      "1e999",
      "~",
      "&a",
      "*a",
      "? ",
      "- ",
      ": ",
      "\t",
      "!!",
      "|",
      "'",
      '"',
      "#",
      "<<: ",
      "\n",
      "  ",
      "__proto__: 1",
      "---\n",
      "\u0000",
      "\ud83d",
    ),
    fc.string({ maxLength: 8 }),
  );
  const edit = fc.tuple(fc.nat(text.length), fc.nat(12), scrap);
  let broken = 0;
  fc.assert(
    fc.property(fc.array(edit, { minLength: 1, maxLength: 4 }), (edits) => {
      const mutated = edits.reduce(
        (all, [at, cut, put]) => all.slice(0, at) + put + all.slice(at + cut),
        text,
      );
      const result = compileText(mutated, { disk: { "/home/ada/.cache/models": [] } });
      if (result.ok) {
        expect(result.config.pools.length).toBeGreaterThan(0);
        return;
      }
      broken += 1;
      expect(result.problems.length).toBeGreaterThan(0);
      for (const problem of result.problems) {
        expect(problem.message).not.toBe("");
        if (problem.line !== null) expect(problem.line).toBeGreaterThan(0);
      }
    }),
    { numRuns: 500 },
  );
  expect(broken).toBeGreaterThan(50);
});
