/** The journal suite over the fake, over files in memory with small segments, and over a folder of its own. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FileJournal } from "../../src/infra/journal/file-journal.ts";
import { FolderFiles } from "../../src/infra/journal/folder-files.ts";
import { MemoryFiles } from "../support/journal-files.ts";
import { MemoryJournal } from "../support/memory-journal.ts";
import { type JournalUnderTest, journalConformance } from "./journal.ts";

const inMemory = (journal: MemoryJournal): JournalUnderTest => ({
  journal,
  reopen: async () => inMemory(journal.reopen()),
  dispose: () => journal.close(),
});
journalConformance({ name: "memory", open: async () => inMemory(new MemoryJournal()) });
journalConformance({
  name: "memory, written at once",
  open: async () => inMemory(new MemoryJournal(new Map(), true)),
});

const overFiles = (files: MemoryFiles): JournalUnderTest => {
  const journal = new FileJournal(files, 1024);
  return {
    journal,
    reopen: async (how) => {
      if (how === "close") await journal.close();
      return overFiles(new MemoryFiles(files.image, files.mapped));
    },
    dispose: () => journal.close(),
  };
};
journalConformance({ name: "files in memory", open: async () => overFiles(new MemoryFiles()) });
journalConformance({
  name: "files in memory, mapped",
  open: async () => overFiles(new MemoryFiles(new Map(), true)),
});

const inFolder = (folder: string, mapped: boolean, left: FileJournal[]): JournalUnderTest => {
  const journal = new FileJournal(new FolderFiles(join(folder, "journal"), mapped), 2048);
  return {
    journal,
    reopen: async (how) => {
      // One that was killed is closed only when the test is over: its descriptor would stay open.
      if (how === "close") await journal.close();
      else left.push(journal);
      return inFolder(folder, mapped, left);
    },
    dispose: async () => {
      rmSync(folder, { recursive: true });
      for (const one of [...left, journal]) await one.close();
    },
  };
};
for (const mapped of [true, false])
  journalConformance({
    name: mapped ? "a folder" : "a folder, not mapped",
    open: async () => inFolder(mkdtempSync(join(tmpdir(), "orchestratord-journal-")), mapped, []),
  });
