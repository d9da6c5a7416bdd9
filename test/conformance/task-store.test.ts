/** The store suite over the fake and over SQLite in a folder of its own. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SqliteTaskStore } from "../../src/infra/sqlite/sqlite-task-store.ts";
import { MemoryTaskStore } from "../support/memory-store.ts";
import { type StoreUnderTest, taskStoreConformance } from "./task-store.ts";

const inMemory = (store: MemoryTaskStore): StoreUnderTest => ({
  store,
  reopen: async () => inMemory(store.reopen("kill")),
  dispose: () => store.close(),
});

taskStoreConformance({ name: "memory", open: async () => inMemory(new MemoryTaskStore()) });

for (const durability of ["power", "process"] as const) {
  const onDisk = (stateDir: string): StoreUnderTest => {
    const store = new SqliteTaskStore({ stateDir, durability });
    return {
      store,
      reopen: async () => {
        await store.close();
        return onDisk(stateDir);
      },
      dispose: async () => {
        await store.close();
        rmSync(stateDir, { recursive: true });
      },
    };
  };
  taskStoreConformance({
    name: `SQLite, ${durability}`,
    open: async () => onDisk(mkdtempSync(join(tmpdir(), "orchestratord-store-"))),
  });
}
