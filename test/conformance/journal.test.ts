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

const overFiles = (files: MemoryFiles): JournalUnderTest => {
  const journal = new FileJournal(files, 1024);
  return {
    journal,
    reopen: async (how) => {
      if (how === "close") await journal.close();
      return overFiles(new MemoryFiles(files.image));
    },
    dispose: () => journal.close(),
  };
};
journalConformance({ name: "files in memory", open: async () => overFiles(new MemoryFiles()) });

const inFolder = (folder: string, left: FileJournal[]): JournalUnderTest => {
  const journal = new FileJournal(new FolderFiles(join(folder, "journal")), 2048);
  return {
    journal,
    reopen: async (how) => {
      // One that was killed is closed only when the test is over: its descriptor would stay open.
      if (how === "close") await journal.close();
      else left.push(journal);
      return inFolder(folder, left);
    },
    dispose: async () => {
      rmSync(folder, { recursive: true });
      for (const one of [...left, journal]) await one.close();
    },
  };
};
journalConformance({
  name: "a folder",
  open: async () => inFolder(mkdtempSync(join(tmpdir(), "orchestratord-journal-")), []),
});
