/** Capabilities: built from what runs now, unknown until an engine has said it. */
import { describe, expect, test } from "bun:test";
import type { EngineIdentity, PoolSpec } from "../../src/domain/pool.ts";
import { Capabilities } from "../../src/services/capabilities.ts";
import { identity, poolSpec, ShownReplicas, snapshot } from "../support/replicas.ts";

const rateLimits = { requestsPerSecond: 200, burst: 400, streamsPerKey: 1024 };
const llama = (more: Partial<PoolSpec> = {}) =>
  poolSpec({ engine: "llamacpp", modelRef: "file:/m/a.gguf", ctx: null, ...more });

function viewOf(pools: readonly PoolSpec[], control = new ShownReplicas()) {
  return new Capabilities({ apiVersion: "0.1.0", pools, control, rateLimits }).view();
}

describe("an engine", () => {
  test("that has not spoken yet is described by its configuration, the rest is unknown", () => {
    const { engines, pools, models, apiVersion } = viewOf([llama({ id: "a", replicas: 2, slots: 3 })]);
    expect(apiVersion).toBe("0.1.0");
    expect(engines).toHaveLength(1);
    expect(engines[0]).toMatchObject({
      engine: "llamacpp",
      engineVersion: null,
      ctxMax: 0,
      maxTokensOut: 0,
      concurrency: 6,
      workloads: ["completion"],
    });
    expect(pools[0]).toMatchObject({ state: "stopped", ready: false, ctx: null, slotsTotal: 6 });
    expect(models).toEqual([
      {
        modelRef: "file:/m/a.gguf",
        poolIds: ["a"],
        sizeBytes: null,
        params: null,
        ctxTrain: null,
        state: "Active",
      },
    ]);
  });

  test("is one entry, whatever number of pools it runs, with the newest version", () => {
    const pools = [
      llama({ id: "a", slots: 4 }),
      llama({ id: "b", slots: 2, replicas: 2, modelRef: "file:/m/b.gguf", workloads: ["embedding"] }),
      poolSpec({ id: "dry-run", slots: 8, ctx: 2048 }),
    ];
    const says = (engineVersion: string, ctxPerSlot: number, slots: number) =>
      identity({ engine: "llamacpp", engineVersion, ctxPerSlot, slots });
    const control = new ShownReplicas()
      .show("a", snapshot({ state: "ready", identity: says("b9999", 4096, 4) }))
      .show(
        "b",
        snapshot({ state: "busy", identity: { ...says("b11669", 32768, 3), workloads: ["embedding"] } }),
        snapshot({ state: "loading" }),
      );
    const { engines } = viewOf(pools, control);
    expect(engines.map((e) => [e.engine, e.engineVersion, e.ctxMax, e.maxTokensOut, e.concurrency])).toEqual([
      ["llamacpp", "b11669", 32768, 32767, 4 + 2 * 3],
      ["mock", null, 2048, 2047, 8],
    ]);
    expect(engines.map((e) => e.workloads)).toEqual([["completion", "embedding"], ["completion"]]);
  });

  test("claims what its pools do and nothing more", () => {
    const of = (more: Partial<EngineIdentity>) => identity({ engine: "llamacpp", ...more });
    const control = new ShownReplicas()
      .show("a", snapshot({ state: "ready", identity: of({ hasChatTemplate: false }) }))
      .show("b", snapshot({ state: "ready", identity: of({ workloads: ["embedding"] }) }));
    const preempt = { maxWaitMs: 1, maxCuts: 1, minGainMs: 1 };
    const specs = [llama({ id: "a" }), llama({ id: "b" }), poolSpec({ id: "m", preempt })];
    const { engines, pools } = viewOf(specs, control);
    const common = ["sse", "cancel", "resume", "idempotent_submit", "dry_run", "sessions", "budgets"];
    const generation = ["continuation", "seed", "strict"];
    expect(pools.map(({ features }) => features)).toEqual([
      [...common, ...generation, "grammar", "json_schema"],
      common,
      [...common, ...generation, "preemption"],
    ]);
    expect(engines.map(({ features }) => features)).toEqual([
      [...common, ...generation, "grammar", "json_schema"],
      [...common, ...generation, "preemption"],
    ]);
  });

  test("that runs in several versions names all of them, in their order", () => {
    const says = (engineVersion: string) =>
      snapshot({ state: "ready", identity: identity({ engine: "llamacpp", engineVersion }) });
    const control = new ShownReplicas().show("a", says("b11669"), says("b9999"), says("b11669"));
    const { engines, pools } = viewOf([llama({ id: "a", replicas: 3 }), llama({ id: "b" })], control);
    expect(pools.map((pool) => [pool.engineVersion, pool.engineVersions])).toEqual([
      ["b11669", ["b9999", "b11669"]],
      [null, []],
    ]);
    expect(engines[0]).toMatchObject({ engineVersion: "b11669", engineVersions: ["b9999", "b11669"] });
  });

  test("takes as many tokens as each of its pools", () => {
    const { pools } = viewOf([
      llama({ id: "a" }),
      poolSpec({ id: "m", ctx: 128, samplerProfileVersion: "v1" }),
    ]);
    expect(
      pools.map(({ maxTokensOut, samplerProfileVersion }) => [maxTokensOut, samplerProfileVersion]),
    ).toEqual([
      [null, "v1"],
      [127, "v1"],
    ]);
  });
});

describe("a model", () => {
  test("that several pools serve is told once, with what any of their engines knows", () => {
    const pools = [llama({ id: "a" }), llama({ id: "b" })];
    const control = new ShownReplicas().show(
      "b",
      snapshot({ state: "ready", identity: identity({ modelSizeBytes: 123, modelParams: 45, ctxTrain: 6 }) }),
    );
    expect(viewOf(pools, control).models).toEqual([
      {
        modelRef: "file:/m/a.gguf",
        poolIds: ["a", "b"],
        sizeBytes: 123,
        params: 45,
        ctxTrain: 6,
        state: "Active",
      },
    ]);
  });

  test("is told to /metrics once", () => {
    const pools = [llama({ id: "a" }), llama({ id: "b" }), poolSpec({ id: "m" })];
    const capabilities = new Capabilities({
      apiVersion: "0.1.0",
      pools,
      control: new ShownReplicas(),
      rateLimits,
    });
    expect(capabilities.models()).toEqual([
      { modelId: "file:/m/a.gguf", state: "Active" },
      { modelId: "mock:words", state: "Active" },
    ]);
  });
});

test("without pools there is nothing to ask for", () => {
  expect(viewOf([])).toEqual({ apiVersion: "0.1.0", engines: [], pools: [], models: [], rateLimits });
});
