/**
 * What durability costs on this disk: writes, syncs, accepts by concurrent callers, checkpoints, opening.
 * Run by hand: `npx bun scripts/bench/store.ts [folder]`; the folder's file system is what is measured.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TaskSpec } from "../../src/domain/task.ts";
import { SqliteTaskStore } from "../../src/infra/sqlite/sqlite-task-store.ts";
import type { StoreOp } from "../../src/ports/task-store.ts";

const folder = mkdtempSync(join(process.argv[2] ?? tmpdir(), "orchestratord-store-"));
const print = (line: string) => process.stdout.write(`${line}\n`);
const quantile = (values: number[], q: number) =>
  values.sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(q * values.length))] ?? Number.NaN;
const summary = (values: number[], unit = "ms") =>
  `p50 ${quantile(values, 0.5).toFixed(3)}  p99 ${quantile(values, 0.99).toFixed(3)}  max ${quantile(values, 1).toFixed(3)} ${unit} (n=${values.length})`;

const spec = (taskId: string): TaskSpec => ({
  taskId,
  keyId: "default",
  correlationId: crypto.randomUUID(),
  sessionId: crypto.randomUUID(),
  workload: "completion",
  input: { kind: "prompt", prompt: "Summarise the following text in one sentence. ".repeat(8) },
  poolId: "demo",
  pinned: false,
  modelRef: "file:demo.gguf",
  priority: "interactive",
  seed: 4_123_456_789,
  determinism: "best_effort",
  samplerProfileVersion: "v1",
  sampling: {
    temperature: 0.8,
    topP: 0.95,
    topK: 40,
    minP: 0.05,
    repeatPenalty: 1,
    presencePenalty: 0,
    frequencyPenalty: 0,
    stop: [],
    grammar: null,
    jsonSchema: null,
  },
  maxTokens: 256,
  ctx: 4096,
  deadlineMs: 60_000,
  expectedTokens: null,
  budget: null,
  kvHint: "reuse",
  onDisconnect: "continue",
  metadata: {},
  tokensIn: 92,
  tokensInExact: false,
  renderedPrompt: null,
  bodyDigest: new Bun.CryptoHasher("sha256").update(taskId).digest("hex"),
});

let ordinal = 0;
const ids: string[] = [];
function admitted(): StoreOp {
  const taskId = crypto.randomUUID();
  ids.push(taskId);
  const promise = {
    queuePosition: 12,
    startMs: 1234.5,
    startLowMs: 800.25,
    startHighMs: 2100.75,
    endMs: 9876.5,
    onTimeProbability: 0.93,
    basis: "learned" as const,
  };
  const createdMs = Date.now() + 0.125;
  return {
    kind: "task_admitted",
    task: {
      ordinal: ++ordinal,
      spec: spec(taskId),
      createdMs,
      promise,
      expectedTokensOut: 123.4,
      watched: false,
      ended: null,
    },
  };
}
const ended = (taskId: string): StoreOp => ({
  kind: "task_ended",
  taskId,
  end: {
    state: "done",
    finishedMs: Date.now() + 0.125,
    startedMs: Date.now(),
    firstTokenMs: Date.now(),
    attempts: 1,
    replicaId: "demo/0",
    engineVersion: "b11669-Debian",
    tokensIn: 92,
    tokensOut: 123,
    finishReason: "stop",
    error: null,
  },
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
      const batch = endToo && op.kind === "task_admitted" ? [op, ended(op.task.spec.taskId)] : [op];
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
