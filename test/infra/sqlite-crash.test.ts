/** What a store keeps when its process is killed, or when the system stops taking its writes. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SqliteTaskStore } from "../../src/infra/sqlite/sqlite-task-store.ts";
import { newTranscript, storedTask, uuidOf } from "../support/stored-tasks.ts";

interface Told {
  readonly admitted?: readonly number[];
  readonly ended?: readonly number[];
  readonly refused?: string;
}

const writer = join(import.meta.dir, "../support/store-writer.ts");
let stateDir = "";
beforeEach(() => {
  stateDir = mkdtempSync(join(tmpdir(), "orchestratord-store-"));
});
afterEach(() => rmSync(stateDir, { recursive: true }));

/** Runs the writer until it has told of `batches` batches, kills it, and returns all that it told. */
async function runUntilKilled(durability: string, batches: number): Promise<Told[]> {
  const child = Bun.spawn([process.execPath, writer, stateDir, durability], {
    stdout: "pipe",
    stderr: "inherit",
  });
  let text = "";
  const decoder = new TextDecoder();
  for await (const chunk of child.stdout) {
    text += decoder.decode(chunk, { stream: true });
    if (text.split("\n").length > batches) child.kill("SIGKILL");
  }
  await child.exited;
  return toldIn(text);
}

/** The last line may be cut; what was not told whole was not promised. */
const toldIn = (text: string): Told[] =>
  text
    .split("\n")
    .slice(0, -1)
    .map((line) => JSON.parse(line) as Told);

/** Everything promised is there, each once and in order; at most the batch that was under way is there besides. */
async function expectKept(promised: { live: Set<number>; ended: Set<number> }): Promise<void> {
  const store = new SqliteTaskStore({ stateDir, durability: "power" });
  try {
    const { live, ordinal } = store.recover();
    const ordinals = live.map((task) => task.ordinal);
    expect(ordinals).toEqual([...new Set(ordinals)].sort((a, b) => a - b));
    for (const n of promised.ended) {
      expect(store.find(uuidOf(n))?.ended?.state).toBe("done");
      const { artifactId, text } = newTranscript(n);
      expect(store.findTranscript(artifactId, null)?.text).toBe(text);
    }
    const endedBesides = [...promised.live].filter((n) => !ordinals.includes(n));
    const liveBesides = ordinals.filter((n) => !promised.live.has(n));
    // Ended by the batch that was under way, which then is there whole.
    for (const n of endedBesides) expect(store.find(uuidOf(n))?.ended?.state).toBe("done");
    expect(liveBesides.length).toBeLessThanOrEqual(7);
    if (endedBesides.length > 0) expect(liveBesides).toHaveLength(endedBesides.length);
    for (const task of live) expect(task).toEqual(storedTask(task.ordinal));
    expect(ordinal).toBeGreaterThanOrEqual(Math.max(0, ...ordinals));
    promised.live = new Set(ordinals);
    for (const n of endedBesides) promised.ended.add(n);
  } finally {
    await store.close();
  }
}

function note(promised: { live: Set<number>; ended: Set<number> }, told: readonly Told[]): void {
  for (const { admitted = [], ended = [] } of told) {
    for (const n of admitted) promised.live.add(n);
    for (const n of ended) {
      promised.live.delete(n);
      promised.ended.add(n);
    }
  }
}

describe("a store whose process is killed", () => {
  test("kill -9 at 25 moments: everything acknowledged is there, in order, none twice", async () => {
    const promised = { live: new Set<number>(), ended: new Set<number>() };
    for (let round = 0; round < 25; round++) {
      // Early, late and in between; which write it hits is up to the machine.
      const told = await runUntilKilled(round % 2 === 0 ? "power" : "process", 1 + ((round * 37) % 101));
      expect(told.length).toBeGreaterThan(0);
      note(promised, told);
      await expectKept(promised);
    }
    expect(promised.ended.size).toBeGreaterThan(100);
  });

  test("a file that may not grow: the batch is refused as an I/O error, all before it is kept", async () => {
    // In blocks of 1 KiB. Without the signal the write fails as on a broken disk.
    const limited = `trap '' XFSZ; ulimit -f 400; exec "$@"`;
    const child = Bun.spawn(["bash", "-c", limited, "bash", process.execPath, writer, stateDir, "power"], {
      stdout: "pipe",
      stderr: "inherit",
    });
    const told = toldIn(await child.stdout.text());
    expect(await child.exited).toBe(0);
    expect(told.pop()).toEqual({ refused: "io" });
    const promised = { live: new Set<number>(), ended: new Set<number>() };
    note(promised, told);
    expect(promised.live.size).toBeGreaterThan(10);
    const before = new Set(promised.live);
    await expectKept(promised);
    expect(promised.live).toEqual(before);
  });
});
