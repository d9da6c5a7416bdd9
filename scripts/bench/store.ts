/**
 * What durability costs on this disk: writes, syncs, accepts by concurrent callers, checkpoints, opening.
 * Run by hand: `npx bun scripts/bench/store.ts [folder]`; the folder's file system is what is measured.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { assert } from "../../src/domain/assert.ts";
import { samplerProfiles } from "../../src/domain/sampler-profile.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import { SqliteTaskStore } from "../../src/infra/sqlite/sqlite-task-store.ts";
import type { StoreOp } from "../../src/ports/task-store.ts";
import { storedEnd, storedSpec, storedTask } from "../../test/support/stored-tasks.ts";
import { quantile } from "./statistics.ts";

const folder = mkdtempSync(join(process.argv[2] ?? tmpdir(), "orchestratord-store-"));
const sampling = samplerProfiles.v1;
assert(sampling !== undefined, "there is a first profile");
const print = (line: string) => process.stdout.write(`${line}\n`);
const summary = (values: number[], unit = "ms") =>
  `p50 ${quantile(values, 0.5).toFixed(3)}  p99 ${quantile(values, 0.99).toFixed(3)}  max ${quantile(values, 1).toFixed(3)} ${unit} (n=${values.length})`;

/** A plain task of an agent. */
const spec = (taskId: string): TaskSpec =>
  storedSpec(taskId, {
    correlationId: crypto.randomUUID(),
    sessionId: crypto.randomUUID(),
    input: { kind: "prompt", prompt: "Summarise the following text in one sentence. ".repeat(8) },
    sampling,
    budget: null,
    metadata: {},
    tokensIn: 92,
    tokensInExact: false,
    renderedPrompt: null,
    bodyDigest: new Bun.CryptoHasher("sha256").update(taskId).digest("hex"),
  });

let ordinal = 0;
const admitted = (): Extract<StoreOp, { kind: "task_admitted" }> => ({
  kind: "task_admitted",
  task: { ...storedTask(++ordinal), spec: spec(crypto.randomUUID()), createdMs: Date.now() + 0.125 },
});
const ended = (taskId: string): StoreOp => ({
  kind: "task_ended",
  taskId,
  end: storedEnd({ finishedMs: Date.now() + 0.125 }),
});

const open = () => new SqliteTaskStore({ stateDir: folder, durability: "power" });
let store = open();
const timed = (work: () => void): number => {
  const from = performance.now();
  work();
  return performance.now() - from;
};

for (const size of [1, 64]) {
  const each: number[] = [];
  for (let round = 0; round < 200; round++) {
    const batch = Array.from({ length: size }, admitted);
    each.push(1000 * timed(() => store.write(batch)));
    await store.synced();
  }
  print(`write(batch of ${size}), synced between: ${summary(each, "us")}`);
}
{
  const each: number[] = [];
  for (let round = 0; round < 500; round++) {
    store.write([admitted()]);
    const from = performance.now();
    await store.synced();
    each.push(performance.now() - from);
  }
  print(`synced() after one write: ${summary(each)}`);
}
for (const endToo of [false, true]) {
  const each: number[] = [];
  const writes: number[] = [];
  const until = performance.now() + 4000;
  const from = performance.now();
  const client = async () => {
    while (performance.now() < until) {
      const begun = performance.now();
      const op = admitted();
      const batch = endToo ? [op, ended(op.task.spec.taskId)] : [op];
      writes.push(1000 * timed(() => store.write(batch)));
      await store.synced();
      each.push(performance.now() - begun);
    }
  };
  let worstLagMs = 0;
  let last = performance.now();
  const watch = setInterval(() => {
    const now = performance.now();
    worstLagMs = Math.max(worstLagMs, now - last - 1);
    last = now;
  }, 1);
  await Promise.all(Array.from({ length: 64 }, client));
  clearInterval(watch);
  const perSecond = (each.length * 1000) / (performance.now() - from);
  print(
    `64 callers, each write+synced${endToo ? ", accept and end" : ""}: ${perSecond.toFixed(0)}/s  ${summary(each)}`,
  );
  print(`  their writes ${summary(writes, "us")}; longest the loop stood still ${worstLagMs.toFixed(1)} ms`);
}
print(`${ordinal} tasks, ${(store.sizeBytes() / ordinal).toFixed(0)} bytes each on disk`);
print(
  `close: ${(
    await (async () => {
      const from = performance.now();
      await store.close();
      return performance.now() - from;
    })()
  ).toFixed(1)} ms`,
);
const opening = timed(() => {
  store = open();
});
let live = 0;
const recovering = timed(() => {
  live = store.recover().live.length;
});
print(
  `open with integrity check: ${opening.toFixed(0)} ms; recover ${live} live: ${recovering.toFixed(0)} ms`,
);
await store.close();
rmSync(folder, { recursive: true });
