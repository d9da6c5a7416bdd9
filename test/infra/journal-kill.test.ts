/** What a journal in a folder keeps when its process is killed. */
import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FileJournal } from "../../src/infra/journal/file-journal.ts";
import { FolderFiles } from "../../src/infra/journal/folder-files.ts";
import { journalToken, plain } from "../support/journal-records.ts";

const writer = join(import.meta.dir, "../support/journal-writer.ts");
let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "orchestratord-journal-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

/** Runs the writer until it has told of `ticks` ticks, kills it, and returns the last that it told. */
async function runUntilKilled(into: string, ticks: number, mapped: boolean): Promise<number> {
  const args = [into, "16384", mapped ? "mapped" : "written"];
  const child = Bun.spawn([process.execPath, writer, ...args], { stdout: "pipe", stderr: "inherit" });
  let text = "";
  const decoder = new TextDecoder();
  for await (const chunk of child.stdout) {
    text += decoder.decode(chunk, { stream: true });
    if (text.split("\n").length > ticks) child.kill("SIGKILL");
  }
  await child.exited;
  return Number(text.split("\n").at(-2));
}

test.each([true, false])(
  "kill -9 at 8 moments: everything flushed is there, whole (mapped: %p)",
  async (mapped) => {
    for (let round = 0; round < 8; round++) {
      const into = join(folder, String(round));
      const told = await runUntilKilled(into, 1 + round * 97, mapped);
      expect(told).toBeGreaterThan(0);
      const journal = new FileJournal(new FolderFiles(into), 16384);
      const { tasks, damage } = journal.recover();
      expect(damage).toEqual([]);
      // A task in each of 16 places; the one that began at tick n has a frame for each tick since.
      for (let place = 0; place < 16; place++) {
        // Told, and perhaps already forgotten.
        if (told % 40 === 0 && (told / 40) % 16 === place) continue;
        let began = 0;
        for (let tick = 40; tick < told; tick += 40) if ((tick / 40) % 16 === place) began = tick;
        const taskId = began === 0 ? `task-${place}` : `task-${began}-${place}`;
        const { records, damaged } = tasks.get(taskId) ?? { records: [], damaged: true };
        expect(damaged).toBe(false);
        expect(records.length).toBeGreaterThanOrEqual(told - began);
        expect(plain(records)).toEqual(plain(records.map((_, seq) => journalToken(taskId, seq))));
      }
      await journal.close();
      for (const name of readdirSync(into)) expect(statSync(join(into, name)).mode & 0o777).toBe(0o600);
      expect(statSync(into).mode & 0o777).toBe(0o700);
    }
  },
  60_000,
);
