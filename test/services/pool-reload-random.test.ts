/**
 * Reloads and drains at random moments over engines that crash: every task that was taken ends once, no answer is made of
 * two models, nothing is left. A seed that fails is in the message.
 */
import { expect, test } from "bun:test";
import type { PoolSpec } from "../../src/domain/pool.ts";
import { MockAdapter } from "../../src/infra/engines/mock.ts";
import type { EngineAdapter, EngineClient } from "../../src/ports/engine.ts";
import { PoolSpecs } from "../../src/services/pool-specs.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { MemoryRecords } from "../support/memory-records.ts";
import { SeededEntropy, type VirtualClock } from "../support/virtual-clock.ts";
import { poolControl } from "./pool-control-rig.ts";
import { mockPool, profile, Rig, replay } from "./rig.ts";

/** Now and then a generation crashes its engine, and one model in four does not load. */
class Unsteady implements EngineAdapter {
  readonly kind = "mock";
  private readonly inner: MockAdapter;
  private starts = 0;
  constructor(
    clock: VirtualClock,
    private readonly entropy: SeededEntropy,
    private readonly calm: () => boolean,
  ) {
    this.inner = new MockAdapter({ clock, entropy });
  }
  plan(): null {
    return null;
  }
  connectInProcess(pool: PoolSpec, replicaId: string): EngineClient {
    const id = `${pool.id}-${this.starts++}`;
    const draw = this.calm() ? 1 : this.entropy.unit();
    const crash = { kind: "crash", nth: 1 + Math.floor(draw * 12), afterTokens: 3, delayMs: 0 } as const;
    const broken = { kind: "load_failure", nth: null, afterTokens: 0, delayMs: 0 } as const;
    const faults = draw < 0.15 ? [broken] : draw < 0.8 ? [crash] : [];
    const mock = { tokenMs: 5, prefillMsPerToken: 1, loadMs: 20, faults };
    return this.inner.connectInProcess({ ...pool, id, mock }, replicaId);
  }
}

async function live(seed: number): Promise<{ reloads: number; failed: number; ended: string[] }> {
  const entropy = new SeededEntropy(seed);
  const int = (n: number): number => Math.floor(entropy.unit() * n);
  let calm = false;
  let specs: PoolSpecs | null = null;
  const rig = new Rig({
    adapter: (clock) => new Unsteady(clock, entropy, () => calm),
    specs: (log) => {
      const preempt = int(2) === 0 ? { maxWaitMs: 20, maxCuts: 2, minGainMs: 5 } : null;
      const shape = { replicas: 1 + int(3), slots: 1 + int(3), queueCapacity: 64, preempt };
      specs = new PoolSpecs([mockPool(shape)], new MemoryRecords(), log);
      return specs.list;
    },
  });
  await rig.start(200);
  // What has said something goes on with the same model.
  const spoke = new Map<string, string | null>();
  const start = rig.runner.start.bind(rig.runner);
  rig.runner.start = (attempt, listener) => {
    const { record, build } = attempt;
    const before = spoke.get(record.spec.taskId);
    if (record.tokensOut > 0) expect(build.model).toBe(before ?? null);
    spoke.set(record.spec.taskId, build.model);
    start(attempt, listener);
  };
  if (specs === null) throw new Error("the rig asked for no pools");
  const counts = { reloads: 0, failed: 0 };
  const { drains, reloads } = poolControl(rig, specs);
  const records: TaskRecord[] = [];
  const task = (): void => {
    const spec = rig.spec({
      maxTokens: 1 + int(40),
      priority: int(2) === 0 ? "batch" : "interactive",
      determinism: int(6) === 0 ? "strict" : "best_effort",
      sessionId: int(3) === 0 ? `s${int(4)}-${records.length >> 3}` : null,
      sampling: int(2) === 0 ? profile : { ...profile, temperature: 0 },
    });
    rig.submit(spec).then(
      ({ record }) => records.push(record),
      () => undefined,
    );
  };
  for (let step = 0; step < 120; step++) {
    const op = int(20);
    if (op < 12) task();
    else if (op < 14 && !reloads.isReloading("chat") && !drains.isDrained("chat")) {
      counts.reloads++;
      reloads
        .reload("chat", {
          modelRef: `mock:${["words", "other"][int(2)]}`,
          digest: null,
          strategy: int(2) === 0 ? "surge" : "recreate",
          deadlineMs: int(120),
        })
        .ended.catch(() => counts.failed++);
    } else if (op === 14 && !reloads.isReloading("chat")) await settle(rig, drains.drain("chat", int(60)));
    else if (op === 15) await settle(rig, drains.resume("chat"));
    else if (op === 16 && records.length > 0)
      void rig.dispatcher.cancel(records[int(records.length)]?.spec.taskId ?? "", "client");
    await rig.clock.advance(int(40));
  }
  calm = true;
  await settle(rig, drains.resume("chat"));
  await rig.clock.advance(60_000);
  const ended = records.map((record) => {
    const events = replay(record);
    const last = events.at(-1);
    const said = events.filter(({ event }) => event === "token").map(({ data }) => data.i);
    expect(said).toEqual(said.map((_, at) => at));
    return last?.event === "end" ? "end" : String(last?.data.code);
  });
  expect(reloads.isReloading("chat")).toBe(false);
  expect(rig.runner.size).toBe(0);
  reloads.stop();
  drains.stop();
  await rig.stop();
  return { ...counts, ended };
}

async function settle(rig: Rig, work: Promise<void>): Promise<void> {
  await rig.clock.advance(0);
  await work;
}

test("reloads and drains at random moments lose no task", async () => {
  const seen = { reloads: 0, failed: 0, end: 0, WORKER_RESET: 0, CANCELED: 0 };
  for (let seed = 1; seed <= 80; seed++) {
    try {
      const { reloads, failed, ended } = await live(seed);
      seen.reloads += reloads;
      seen.failed += failed;
      for (const how of ended) {
        expect(["end", "WORKER_RESET", "CANCELED", "POOL_UNAVAILABLE"]).toContain(how);
        if (how === "end" || how === "WORKER_RESET" || how === "CANCELED") seen[how]++;
      }
    } catch (error) {
      throw new Error(`seed ${seed}: ${error instanceof Error ? error.stack : String(error)}`);
    }
  }
  // Rules that nothing puts to the test hold easily.
  for (const [what, count] of Object.entries(seen)) expect([what, count > 0]).toEqual([what, true]);
});
