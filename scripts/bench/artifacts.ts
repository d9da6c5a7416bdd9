/**
 * What a small artifact costs to put and to get when the store holds few and when it holds many: service, index
 * and folder together. Run by hand: `npx bun scripts/bench/artifacts.ts [few] [many] [folder]` (1,000 and 100,000).
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FolderBlobStore } from "../../src/infra/blobs/folder-blob-store.ts";
import { SqliteArtifactIndex } from "../../src/infra/sqlite/artifact-index.ts";
import { SystemClock } from "../../src/infra/system-clock.ts";
import { Artifacts } from "../../src/services/artifacts.ts";

const few = Number(process.argv[2] ?? 1_000);
const many = Number(process.argv[3] ?? 100_000);
const folder = mkdtempSync(join(process.argv[4] ?? tmpdir(), "orchestratord-artifacts-"));
const print = (line: string) => process.stdout.write(`${line}\n`);
const quiet = () => undefined;
const caller = { keyId: "bench", admin: false };
const samples = 500;

const artifacts = new Artifacts({
  store: await FolderBlobStore.open(join(folder, "artifacts")),
  index: new SqliteArtifactIndex({ path: join(folder, "index.sqlite"), place: folder }),
  clock: new SystemClock(),
  log: { debug: quiet, info: quiet, warn: quiet, error: quiet },
  rules: { artifactBytesMax: 1e6, attachmentBytesMax: 1e6, bytesMax: 1e12, maxAgeMs: null },
});
await artifacts.start();

const ids: string[] = [];
async function put(): Promise<void> {
  const { entry } = await artifacts.put(caller, {
    kind: "other",
    content: `artifact ${ids.length} ${"of a few words ".repeat(20)}`,
    tags: [`t${ids.length % 100}`],
    parent: null,
    metadata: { n: String(ids.length) },
    attachments: [],
  });
  ids.push(entry.id);
}

const median = (values: number[]): number => values.sort((a, b) => a - b)[values.length >> 1] ?? Number.NaN;

async function timed(work: (at: number) => Promise<unknown>): Promise<number> {
  const took: number[] = [];
  for (let at = 0; at < samples; at += 1) {
    const start = performance.now();
    await work(at);
    took.push(performance.now() - start);
  }
  return median(took);
}

/** Median milliseconds. */
async function measure(): Promise<{ put: number; get: number; list: number }> {
  const result = {
    put: await timed(put),
    get: await timed((at) => artifacts.get(caller, ids[(at * 7919) % ids.length] ?? "")),
    list: await timed((at) =>
      artifacts.list(caller, { kind: null, tag: `t${at % 100}`, search: null, before: null, limit: 50 }),
    ),
  };
  const line = Object.entries(result).map(([name, ms]) => `${name} ${ms.toFixed(3)} ms`);
  print(`${String(ids.length).padStart(7)} artifacts: ${line.join("  ")}  (median of ${samples})`);
  return result;
}

async function fill(count: number): Promise<void> {
  while (ids.length < count) await Promise.all(Array.from({ length: Math.min(16, count - ids.length) }, put));
}

try {
  await fill(few);
  const first = await measure();
  await fill(many);
  const last = await measure();
  print(`put ${(last.put / first.put).toFixed(2)} x, get ${(last.get / first.get).toFixed(2)} x`);
} finally {
  await artifacts.stop();
  rmSync(folder, { recursive: true });
}
