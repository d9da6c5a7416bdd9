/**
 * What a transcript costs: made and stored in the turn that ends a task, then moved into the artifact store. CPU of the
 * whole process for each task, its threads included. Run by hand: `npx bun scripts/bench/transcripts.ts [tasks] [folder]`.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { samplerProfiles } from "../../src/domain/sampler-profile.ts";
import type { Sampling } from "../../src/domain/task.ts";
import { FolderBlobStore } from "../../src/infra/blobs/folder-blob-store.ts";
import { SqliteArtifactIndex } from "../../src/infra/sqlite/artifact-index.ts";
import { SqliteTaskStore } from "../../src/infra/sqlite/sqlite-task-store.ts";
import { SystemClock } from "../../src/infra/system-clock.ts";
import type { NewTranscript } from "../../src/ports/task-store.ts";
import { Artifacts } from "../../src/services/artifacts.ts";
import { type TaskRecord, TaskRegistry } from "../../src/services/task-registry.ts";
import { endEvent } from "../../src/services/terminal-events.ts";
import { Transcripts } from "../../src/services/transcripts.ts";
import { storedEnd, storedSpec, storedTask, uuidOf } from "../../test/support/stored-tasks.ts";

const count = Number(process.argv[2] ?? 2_000);
const folder = mkdtempSync(join(process.argv[3] ?? tmpdir(), "orchestratord-transcripts-"));
const print = (line: string) => process.stdout.write(`${line}\n`);
const quiet = () => undefined;
const log = { debug: quiet, info: quiet, warn: quiet, error: quiet };
const tokens = 256;
const words = ["hello", " world", " it", " was", "\n", " quoted", " naïve"];

const clock = new SystemClock();
const store = new SqliteTaskStore({ stateDir: folder, durability: "power" });
const artifacts = new Artifacts({
  store: await FolderBlobStore.open(join(folder, "artifacts")),
  index: new SqliteArtifactIndex({ path: join(folder, "artifacts.sqlite"), place: folder }),
  clock,
  log,
  rules: { artifactBytesMax: 8e6, attachmentBytesMax: 1e6, bytesMax: 1e12, maxAgeMs: null },
});
await artifacts.start();
const transcripts = new Transcripts({ store, clock, log, rules: { policy: "full", bytesMax: 8e6 } });

const registry = new TaskRegistry(1e9);
const { v1 } = samplerProfiles;
const specOf = (n: number) =>
  storedSpec(uuidOf(n), {
    input: { kind: "prompt", prompt: "Tell me of the river ".repeat(10) },
    renderedPrompt: null,
    sampling: v1 as Sampling,
  });
const result = {
  finishReason: "stop",
  tokensIn: 60,
  tokensCached: 0,
  tokensOut: tokens,
  promptMs: 1,
  decodeMs: 1,
} as const;

function ended(n: number): TaskRecord {
  const nowMs = clock.nowMs();
  const record = registry.add(specOf(n), storedTask(1).promise, tokens, nowMs);
  const { spec, sent: none } = record;
  const pieces = Array.from({ length: tokens }, (_, at) => ({
    text: words[at % words.length] ?? "",
    ids: [1000 + at],
  }));
  record.sent = none.concat(pieces);
  const { taskId: task_id, modelRef: model_ref, seed, determinism } = spec;
  const engine = { engine: "mock", engine_version: "1", pool_id: "demo", replica_id: "demo-0", model_ref };
  const told = {
    session_id: null,
    queue_position: 0,
    predicted_start_ms: 0,
    kv_warmth: false,
    tokens_in: 60,
    attempt: 1,
  };
  record.log.append({ type: "started", data: { task_id, ...engine, seed, determinism, ...told } });
  for (const { text, ids } of pieces) record.log.appendToken(text, ids);
  return Object.assign(record, { state: "done", finishedMs: nowMs, startedMs: nowMs, firstTokenMs: nowMs });
}

async function measured(what: string, of: number, work: () => void | Promise<void>): Promise<void> {
  const before = process.cpuUsage();
  await work();
  const { user, system } = process.cpuUsage(before);
  print(`${what.padEnd(34)} ${((user + system) / of).toFixed(0).padStart(6)} us CPU a task`);
}

const numbers = Array.from({ length: 2 * count }, (_, at) => at + 1);
for (const n of numbers) store.write([{ kind: "task_admitted", task: storedTask(n, specOf(n)) }]);
const records = numbers.slice(0, count).map(ended);
let made: NewTranscript[] = [];
const make = (record: TaskRecord): NewTranscript[] => {
  const data = endEvent(record, { ...result, result: null, work: [] } as never, clock.nowMs());
  return [transcripts.of(record, () => record.spec, null, data) ?? []].flat();
};
for (const record of records.slice(0, 500)) make(record);
await measured("make the document", count, () => {
  made = records.flatMap(make);
});
print(`${"bytes of a document".padEnd(34)} ${String(Buffer.byteLength(made[0]?.text ?? "")).padStart(6)}`);
await measured("store an end without one", count, () => {
  for (const n of numbers.slice(count))
    store.write([{ kind: "task_ended", taskId: uuidOf(n), end: storedEnd() }]);
});
await measured("store an end with one", count, () => {
  for (const [at, transcript] of made.entries()) {
    const end = storedEnd({ artifactId: transcript.artifactId });
    store.write([{ kind: "task_ended", taskId: uuidOf(at + 1), end, transcript }]);
  }
});
await measured("move it into the artifact store", count, async () => {
  transcripts.start((transcript) => artifacts.keep(transcript));
  while (transcripts.pending > 0) await new Promise((resolve) => clock.setTimer(50, () => resolve(null)));
});
await transcripts.stop();
await artifacts.stop();
await store.close();
rmSync(folder, { recursive: true });
