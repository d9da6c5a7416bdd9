/**
 * What the journal costs: microseconds for the flush of one tick with 1, 16 and 64 records, bytes for each token, MB/s of large flushes,
 * the time that compaction holds the event loop, and recovery. `bun scripts/bench/journal.ts [folder]`; the folder decides
 * which disk (default: the system's temporary folder).
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { encodeToken } from "../../src/domain/sse.ts";
import { FileJournal } from "../../src/infra/journal/file-journal.ts";
import { FolderFiles } from "../../src/infra/journal/folder-files.ts";
import { quantile } from "./statistics.ts";

const folder = mkdtempSync(join(process.argv[2] ?? tmpdir(), "orchestratord-journal-bench-"));
const print = (line: string) => process.stdout.write(`${line}\n`);
const utf8 = new TextEncoder();
const frame = (seq: number) => utf8.encode(encodeToken(seq, " word", seq));
const frames = Array.from({ length: 4096 }, (_, index) => frame(10_000 + index));
const microseconds = (samples: readonly number[], q: number) => (quantile(samples, q) * 1000).toFixed(1);

const open = () => {
  const journal = new FileJournal(new FolderFiles(join(folder, "journal")));
  journal.recover();
  return journal;
};

/** Milliseconds of each tick: its appends and its flush. */
function ticks(journal: FileJournal, name: string, tasks: number, count: number): number[] {
  const samples: number[] = [];
  const ids = Array.from({ length: tasks }, (_, index) => `${name}-0000-4000-8000-${1_000_000 + index}`);
  for (let tick = 0; tick < count; tick++) {
    const bytes = frames[tick % frames.length] ?? frame(0);
    const from = performance.now();
    for (const taskId of ids) journal.append(taskId, { kind: "token", seq: tick, bytes, tokenIds: [tick] });
    journal.flush();
    samples.push(performance.now() - from);
  }
  return samples;
}

const journal = open();
ticks(journal, "warm-up", 16, 3_000);
for (const tasks of [1, 16, 64]) {
  const before = journal.sizeBytes();
  const count = 5_000;
  const samples = ticks(journal, `t${tasks}`, tasks, count);
  const each = (quantile(samples, 0.5) * 1000) / tasks;
  const bytes = (journal.sizeBytes() - before) / (tasks * count);
  print(
    `${String(tasks).padStart(2)} records a flush: p50 ${microseconds(samples, 0.5)} µs, p99 ${microseconds(samples, 0.99)} µs; ${each.toFixed(2)} µs and ${bytes.toFixed(0)} bytes a token (its frame has ${frame(10_000).byteLength})`,
  );
}
{
  const before = journal.sizeBytes();
  const samples = ticks(journal, "bulk", 1_000, 300);
  const seconds = samples.reduce((sum, ms) => sum + ms, 0) / 1000;
  print(
    `1000 records a flush: ${((journal.sizeBytes() - before) / seconds / 1e6).toFixed(0)} MB/s, ${(300_000 / seconds / 1e6).toFixed(2)} million tokens/s`,
  );
}

await journal.close();
{
  const from = performance.now();
  const again = new FileJournal(new FolderFiles(join(folder, "journal")));
  const { tasks } = again.recover();
  const ms = performance.now() - from;
  print(
    `recover ${tasks.size} tasks from ${(again.sizeBytes() / 1e6).toFixed(0)} MB: ${ms.toFixed(0)} ms, ${(again.sizeBytes() / ms / 1000).toFixed(0)} MB/s`,
  );
  // Three of four are done: old segments become sparse.
  let index = 0;
  for (const taskId of tasks.keys()) if (index++ % 4 !== 0) again.forget(taskId);
  const held: number[] = [];
  // Processor time: the wall's would count others, and this program is often run at low priority.
  const spentMs = () => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1000;
  };
  let turnFrom = spentMs();
  let more = true;
  const watch = () => {
    const now = spentMs();
    held.push(now - turnFrom);
    turnFrom = now;
    if (more) setImmediate(watch);
  };
  setImmediate(watch);
  const before = again.sizeBytes();
  const start = performance.now();
  let steps = 1;
  while (await again.compact()) steps++;
  more = false;
  print(
    `compaction: ${(before / 1e6).toFixed(0)} MB to ${(again.sizeBytes() / 1e6).toFixed(0)} MB in ${steps} steps, ${(performance.now() - start).toFixed(0)} ms; one turn of the loop took p50 ${quantile(held, 0.5).toFixed(2)} ms, p99 ${quantile(held, 0.99).toFixed(2)} ms, at most ${Math.max(...held).toFixed(1)} ms of processor time, all threads`,
  );
  await again.close();
}
rmSync(folder, { recursive: true });
