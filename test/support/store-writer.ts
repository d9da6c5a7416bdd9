/**
 * A process that writes tasks into a store until it is killed, and tells on stdout what it was promised to keep.
 * Started by test/infra/sqlite-crash.test.ts: `store-writer.ts <folder> <power|process>`.
 *
 * A line for each batch that is durable: `{"admitted":[ordinals],"ended":[ordinals]}`. A StoreError ends it with the
 * line `{"refused":"<kind>"}`.
 */
import { writeSync } from "node:fs";
import { SqliteTaskStore } from "../../src/infra/sqlite/sqlite-task-store.ts";
import { isStoreError, type StoreOp } from "../../src/ports/task-store.ts";
import { newTranscript, storedEnd, storedTask, uuidOf } from "./stored-tasks.ts";

const [stateDir = "", durability] = process.argv.slice(2);
const tell = (line: unknown) => writeSync(1, `${JSON.stringify(line)}\n`);
const store = new SqliteTaskStore({ stateDir, durability: durability === "power" ? "power" : "process" });
const found = store.recover();
const live = found.live.map(({ ordinal }) => ordinal);
let { ordinal } = found;

try {
  for (;;) {
    const admitted = Array.from({ length: 1 + (ordinal % 7) }, () => ++ordinal);
    // Oldest first, about as many as come in.
    const ended = live.splice(0, live.length > 50 ? admitted.length : 0);
    const batch: StoreOp[] = admitted.map((n) => ({ kind: "task_admitted", task: storedTask(n) }));
    for (const n of ended) {
      const transcript = newTranscript(n);
      const end = storedEnd({ artifactId: transcript.artifactId });
      batch.push({ kind: "task_ended", taskId: uuidOf(n), end, transcript });
    }
    live.push(...admitted);
    store.write(batch);
    if (durability === "power") await store.synced();
    tell({ admitted, ended });
  }
} catch (error) {
  if (!isStoreError(error)) throw error;
  tell({ refused: error.storeErrorKind });
}
