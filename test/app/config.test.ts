/**
 * From flags, environment and file to one Config: precedence, discovery, addresses, and that whatever happens
 * to a file, the answer is a Config or problems. No disk: see support/config-files.ts.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type Config, loadConfig } from "../../src/app/config.ts";
import { renderConfig } from "../../src/app/config-render.ts";
import {
  compiled,
  compileText,
  digest,
  diskOf,
  lines,
  machine,
  mockPool,
  pool,
  problemsOf,
  valid,
} from "../support/config-files.ts";

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
    ["flag before environment", compiled(file, { env, flags }), [3, "/here/flag", "debug", "/models", bin]],
    [
      "empty variables count as unset",
      compiled(file, { env: { ORCHD_ADDR: "", ORCHD_API_KEY: "" } }),
      [1, "/file", "warn", "/models", bin],
    ],
  ];
  test.each(table)("%s", (_, config, expected: unknown) => {
    expect<unknown>(facts(config)).toEqual(expected);
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
      cwd: "/here",
      home: "/home/ada",
      files: diskOf({ ...machine, ...disk }),
      readModelKind: () => null,
    });
  const all = {
    "/here/flag.yaml": "addr: 10.0.0.1:1",
    "/here/env.yaml": "addr: 10.0.0.1:2",
    "/here/orchestratord.yaml": "addr: 10.0.0.1:3",
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
    const bare = without("/here/orchestratord.yaml");
    expect(valid(load(bare, { env: { XDG_CONFIG_HOME: "/xdg" } })).addr.port).toBe(4);
    expect(valid(load(bare)).addr.port).toBe(5);
    expect(valid(load({})).filePath).toBeNull();
  });

  test("a file that was named and cannot be read is a problem", () => {
    expect(lines(load(all, { flags: { config: "nope.yaml" } }))[0]).toStartWith(
      "--config: cannot read /here/nope.yaml",
    );
    expect(lines(load(all, { env: { ORCHD_CONFIG: "/nope" } }))[0]).toStartWith(
      "ORCHD_CONFIG: cannot read /nope",
    );
    const tooLong = { "/here/orchestratord.yaml": "#".repeat(2 * 1024 * 1024) };
    expect(lines(load(tooLong))[0]).toStartWith("/here/orchestratord.yaml: cannot read");
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

describe("sections that hold for every pool", () => {
  const facts = ({ admission, sessions, tasks, storage }: Config) => ({
    fair: admission.fair,
    sessions,
    cut: tasks.cutAtDeadline,
    durability: storage.durability,
  });
  const none = { tokens: null, timeMs: null, cost: null };
  const defaults = {
    fair: "fifo",
    sessions: { ttlMs: 600_000, turnsMax: 8, budget: none },
    cut: false,
    durability: "power",
  } as const;

  test.each([
    ["without a file", null],
    ["with empty sections", "admission: {}\nsessions: {}\ntasks: {}\nstorage: {}"],
    ["with a storage that is null", "storage: null"],
    ["with the defaults spelt out", "sessions: { budget: { tokens: null } }\nstorage: { durability: power }"],
  ])("their defaults %s", (_, text) => {
    expect(facts(compiled(text))).toEqual(defaults);
  });

  test("what the file says of them", () => {
    const text = [
      "admission: { fair: per-key }",
      "sessions: { ttl_ms: 1000, max_turns: 1, budget: { tokens: 7, time_ms: 8, cost: 0.5 } }",
      "tasks: { cut_at_deadline: true }",
      "storage: { durability: process }",
    ].join("\n");
    expect(facts(compiled(text))).toEqual({
      fair: "per-key",
      sessions: { ttlMs: 1000, turnsMax: 1, budget: { tokens: 7, timeMs: 8, cost: 0.5 } },
      cut: true,
      durability: "process",
    });
  });

  test("a budget of cost where nothing has a price is a warning", () => {
    const costly = `sessions: { budget: { cost: 1 } }
auth: { keys: [{ id: a, sha256: ${digest}, budget: { cost: 1, window_ms: 1000 } }] }
`;
    const free = compileText(costly + mockPool("slots: 1"));
    expect(free.ok && free.warnings).toEqual([
      "the budget of cost for sessions, the key a bounds nothing: every pool's price is 0",
    ]);
    const priced = compileText(costly + mockPool("price: { per_1k_tokens_out: 1 }"));
    expect(priced.ok && priced.warnings).toEqual([]);
    const uncosted = compileText("sessions: { budget: { tokens: 1 } }");
    expect(uncosted.ok && uncosted.warnings).toEqual([]);
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
auth: { mode: off, keys: [{ id: f, file: /key, rate: { per_second: 0.5, burst: 1 }, budget: { time_ms: 9, window_ms: 2000 } }] }
tls: { cert: /c, key: /k }
admission: { default_deadline_ms: 5, fair: per-key }
sessions: { ttl_ms: 5000, max_turns: 3, budget: { tokens: 10, cost: 0.25 } }
tasks: { cut_at_deadline: true }
storage: { durability: process }
models: { dir: /models, roots: [/models/a], fetch: { enabled: false, allow_hosts: ["*.a.example", "10.0.0.1:80"] }, trust: strict }
engines: { llamacpp: { bin: tool } }
pools:
  - { id: a, model: chat.gguf, args: [-ngl, "99"], ctx: 512, queue: { capacity: 7, full_policy: drop-lru }, price: { per_1k_tokens_in: 0.5, per_1k_tokens_out: 2 }, timeouts: { load_ms: 9 } }
  - { id: b, engine: mock, model: mock:words, workloads: [rerank, embedding], mock: { faults: [{ kind: late, delay_ms: 4 }] } }
`;
  const config = compiled(text, { disk });
  expect(compiled(renderConfig(config), { disk })).toEqual(config);
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
    { numRuns: 250 },
  );
  expect(broken).toBeGreaterThan(25);
});
