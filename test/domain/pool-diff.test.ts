/** What differs between two specs of a pool, and whether its engines have to be replaced for it (ORCHD-CONF-2). */
import { describe, expect, test } from "bun:test";
import type { PoolSpec } from "../../src/domain/pool.ts";
import { isNarrower, poolChange, withSettingsOf } from "../../src/domain/pool-diff.ts";
import { poolSpec } from "../support/replicas.ts";

const pool = poolSpec({ id: "chat", args: ["-fa"], env: { A: "1", B: "2" } });
const remote = (secret: string, baseUrl = "http://gpu/v1"): PoolSpec["remote"] => ({
  ...{ baseUrl, kind: "vllm" },
  key: { from: "file", name: "/k", secret: { reveal: () => secret } },
});

describe("a change", () => {
  const table: [string, Partial<PoolSpec>, "engines" | "settings", readonly string[]][] = [
    ["another model", { modelRef: "mock:x" }, "engines", ["modelRef"]],
    ["another file", { modelPath: "/x.gguf" }, "engines", ["modelPath"]],
    ["other arguments", { args: ["-fa", "-v"] }, "engines", ["args"]],
    ["another variable", { env: { A: "1", B: "3" } }, "engines", ["env"]],
    ["more replicas", { replicas: 2 }, "engines", ["replicas"]],
    ["a larger queue", { queueCapacity: 99 }, "settings", ["queueCapacity"]],
    ["another price", { price: { per1kTokensIn: 1, per1kTokensOut: 1 } }, "settings", ["price"]],
    ["both", { preload: !pool.preload, ctx: 128 }, "engines", ["ctx", "preload"]],
    ["a key elsewhere", { remote: remote("one") }, "engines", ["remote"]],
  ];
  test.each(table)("%s", (_, more, reach, parts) => {
    expect(poolChange(pool, { ...pool, ...more })).toEqual({ reach, parts: [...parts] });
    expect(poolChange({ ...pool, ...more }, { ...pool, ...more })).toBeNull();
  });

  test("is none where only the order of a map differs, and one where a key was changed in its file", () => {
    expect(poolChange(pool, { ...pool, env: { B: "2", A: "1" } })).toBeNull();
    const [one, other] = [
      { ...pool, remote: remote("one") },
      { ...pool, remote: remote("two") },
    ];
    expect(poolChange(one, { ...pool, remote: remote("one") })).toBeNull();
    expect(poolChange(one, other)?.parts).toEqual(["remote"]);
    expect(poolChange(one, { ...pool, remote: remote("one", "http://other/v1") })?.parts).toEqual(["remote"]);
    expect(JSON.stringify(poolChange(one, other))).not.toContain("two");
  });
});

test("settings go to engines that were started otherwise, and nothing else does", () => {
  const after = { ...pool, modelRef: "mock:x", slots: 9, queueCapacity: 99, preload: !pool.preload };
  const now = withSettingsOf(pool, after);
  expect(now).toEqual({ ...pool, queueCapacity: 99, preload: !pool.preload });
  expect(poolChange(now, after)?.reach).toBe("engines");
});

test("what waits may no longer fit", () => {
  expect(isNarrower(pool, { ...pool, args: [], replicas: 3 })).toBe(false);
  expect(isNarrower({ ...pool, ctx: 256 }, { ...pool, ctx: 512 })).toBe(false);
  for (const more of [{ ctx: 16 }, { slots: pool.slots + 1 }, { workloads: ["embedding" as const] }])
    expect(isNarrower({ ...pool, ctx: 256 }, { ...pool, ctx: 256, ...more })).toBe(true);
});
