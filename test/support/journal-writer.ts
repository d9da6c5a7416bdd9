/**
 * A process that writes a journal until it is killed, and tells on stdout how many ticks were flushed.
 * Started by test/infra/journal-kill.test.ts: `journal-writer.ts <folder> <segment bytes> mapped|written`.
 *
 * In tick n each of 16 tasks gets one frame; every 40 ticks one of them is forgotten and another one takes its place.
 * It tells `<n>` behind each flush.
 */
import { writeSync } from "node:fs";
import { FileJournal } from "../../src/infra/journal/file-journal.ts";
import { FolderFiles } from "../../src/infra/journal/folder-files.ts";
import { journalToken } from "./journal-records.ts";

const [folder = "", segmentBytes = "", how = ""] = process.argv.slice(2);
const journal = new FileJournal(new FolderFiles(folder, how === "mapped"), Number(segmentBytes));
journal.recover();
const running = Array.from({ length: 16 }, (_, index) => ({ taskId: `task-${index}`, frames: 0 }));
for (let tick = 1; ; tick++) {
  for (const task of running) journal.append(task.taskId, journalToken(task.taskId, task.frames++));
  journal.flush();
  writeSync(1, `${tick}\n`);
  if (tick % 40 !== 0) continue;
  const place = (tick / 40) % 16;
  journal.forget(running[place]?.taskId ?? "");
  running[place] = { taskId: `task-${tick}-${place}`, frames: 0 };
  await journal.compact();
}
