/** What only the SQLite store does: files, refusals, migrations, a full disk, checkpoints. */
import { Database, type Statement } from "bun:sqlite";
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  copyFileSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { limits } from "../../src/domain/limits.ts";
import { type Migration, migrations } from "../../src/infra/sqlite/migrations.ts";
import { SqliteTaskStore, type SqliteTaskStoreOptions } from "../../src/infra/sqlite/sqlite-task-store.ts";
import { prepareStatements } from "../../src/infra/sqlite/statements.ts";
import { isStoreError, type StoreOp } from "../../src/ports/task-store.ts";
import {
  everyEnded,
  newTranscript,
  refusalOf,
  storedAllowance,
  storedEnd,
  storedSession,
  storedTask,
  uuidOf,
} from "../support/stored-tasks.ts";

let stateDir = "";
let path = "";
let store: SqliteTaskStore | null = null;
beforeEach(() => {
  stateDir = mkdtempSync(join(tmpdir(), "orchestratord-store-"));
  path = join(stateDir, "orchestratord.db");
});
afterEach(async () => {
  await store?.close();
  store = null;
  rmSync(stateDir, { recursive: true });
});

const open = (more: Partial<SqliteTaskStoreOptions> = {}): SqliteTaskStore => {
  store = new SqliteTaskStore({ stateDir, durability: "power", ...more });
  return store;
};
const admit = (ordinal: number, more: Parameters<typeof storedTask>[1] = {}): StoreOp => ({
  kind: "task_admitted",
  task: storedTask(ordinal, more),
});
const end = (ordinal: number, finishedMs = 100): StoreOp => ({
  kind: "task_ended",
  taskId: uuidOf(ordinal),
  end: storedEnd({ finishedMs }),
});
/** A closed database with a bit of everything. */
async function filled(): Promise<void> {
  const store = open();
  store.write([1, 2, 3, 4, 5, 6].map((n) => admit(n, { sessionId: uuidOf(900 + (n % 2)) })));
  store.write([end(2), end(5), { kind: "session_saved", session: storedSession(1) }]);
  store.write([{ kind: "allowance_saved", allowance: storedAllowance("a") }]);
  await store.close();
}
/** As another program would. */
function alter(sql: string): void {
  const db = new Database(path);
  db.run(sql);
  db.close();
}
const contentOf = () =>
  readdirSync(stateDir)
    .filter((name) => !name.endsWith("-shm"))
    .sort()
    .map((name) => [name, Bun.hash(readFileSync(join(stateDir, name))).toString(16)]);

describe("files", () => {
  test("belong to the owner only, and leave no draft, log or shared memory behind", async () => {
    const store = open();
    store.write([admit(1)]);
    const names = readdirSync(stateDir).sort();
    expect(names).toEqual(["orchestratord.db", "orchestratord.db-wal"]);
    for (const name of names) expect(statSync(join(stateDir, name)).mode & 0o777).toBe(0o600);
    await store.close();
    expect(readdirSync(stateDir)).toEqual(["orchestratord.db"]);
    await open().close();
    expect(readdirSync(stateDir)).toEqual(["orchestratord.db"]);
  });

  test("are in use by one at a time", async () => {
    open().write([admit(1)]);
    const refusal = refusalOf(() => new SqliteTaskStore({ stateDir, durability: "power" }));
    expect(refusal.kind).toBe("locked");
    expect(refusal.message).toContain(path);
    await store?.synced();
    await store?.close();
    expect(open().recover().live).toHaveLength(1);
  });

  test("a draft of a first start that was interrupted is no obstacle", async () => {
    writeFileSync(`${path}.new`, "half");
    writeFileSync(`${path}.new-wal`, "half");
    expect(open().recover().live).toEqual([]);
  });
});

describe("a file that cannot be trusted is refused and left as it is (ORCHD-DUR-3)", () => {
  const damages: readonly { what: string; damage: () => void; kind?: string; says: string }[] = [
    { what: "empty", damage: () => truncateSync(path, 0), says: "damaged" },
    { what: "cut in the header", damage: () => truncateSync(path, 60), says: "damaged" },
    { what: "cut by half", damage: () => truncateSync(path, statSync(path).size / 2), says: "damaged" },
    { what: "garbage", damage: () => writeFileSync(path, "x".repeat(50_000)), says: "damaged" },
    {
      what: "another program's",
      damage: () => {
        rmSync(path);
        alter("PRAGMA journal_mode = WAL; CREATE TABLE notes (text)");
      },
      says: "not a database of orchestratord",
    },
    {
      what: "without one of its tables",
      damage: () => alter("DROP TABLE allowances"),
      says: "not those of schema",
    },
    { what: "without version", damage: () => alter("PRAGMA user_version = 0"), says: "no schema version" },
    {
      what: "a copy put back beside the log of its successor",
      damage: () => {
        alter("PRAGMA journal_mode = DELETE");
        writeFileSync(`${path}-wal`, "log");
      },
      says: "of another file",
    },
    { what: "newer", damage: () => alter("PRAGMA user_version = 99"), kind: "newer", says: "schema 99" },
    {
      what: "gone, but its log is there",
      damage: () => {
        rmSync(path);
        writeFileSync(`${path}-wal`, "log");
      },
      says: "missing",
    },
  ];
  for (const { what, damage, kind = "damaged", says } of damages)
    test(what, async () => {
      await filled();
      damage();
      const before = contentOf();
      const refusal = refusalOf(() => open());
      expect(refusal.kind).toBe(kind as typeof refusal.kind);
      expect(refusal.message).toContain(path);
      expect(refusal.message).toContain(says);
      expect(contentOf().filter(([name]) => before.some(([known]) => known === name))).toEqual(before);
      // It can be moved away, as the message says.
      for (const name of readdirSync(stateDir)) rmSync(join(stateDir, name));
      expect(open().recover().live).toEqual([]);
    });

  test("also when the log of a killed process waits beside it", async () => {
    const store = open();
    store.write([admit(1), admit(2)]);
    // What a killed process leaves: both files as they are now.
    const left = mkdtempSync(join(tmpdir(), "orchestratord-left-"));
    for (const name of ["orchestratord.db", "orchestratord.db-wal"])
      copyFileSync(join(stateDir, name), join(left, name));
    await store.close();
    for (const name of ["orchestratord.db", "orchestratord.db-wal"])
      copyFileSync(join(left, name), join(stateDir, name));
    rmSync(left, { recursive: true });
    const before = contentOf();
    expect(refusalOf(() => open({ migrations: [...migrations].slice(0, 0).concat(other) })).kind).toBe(
      "damaged",
    );
    expect(contentOf()).toEqual(before);
    expect(
      open()
        .recover()
        .live.map(({ ordinal }) => ordinal),
    ).toEqual([1, 2]);
  });

  test("a transcript that was changed on the disk is told as damaged, and hinders nobody else's", async () => {
    const first = open();
    first.write([admit(1), admit(2)]);
    for (const n of [1, 2]) {
      const transcript = newTranscript(n);
      const ended = storedEnd({ artifactId: transcript.artifactId });
      first.write([{ kind: "task_ended", taskId: uuidOf(n), end: ended, transcript }]);
    }
    await first.close();
    const db = new Database(path);
    db.run("UPDATE transcripts SET text = replace(text, 'naïve', 'clever') WHERE ordinal = 1");
    db.close();
    const store = open();
    expect(store.transcripts(10).map(({ text }) => text)).toEqual([null, newTranscript(2).text]);
    expect(store.findTranscript(newTranscript(1).artifactId, null)?.text).toBeNull();
  });

  test("whichever bit is flipped: it is noticed, or nothing that was stored is different", async () => {
    await filled();
    const sound = readFileSync(path);
    const everything = () => {
      const store = open();
      return {
        found: [1, 2, 3, 4, 5, 6].map((n) => store.find(uuidOf(n))),
        listed: store.list(everyEnded()),
        ofKey: store.list(everyEnded({ keyId: "default" })),
        ofSession: store.list(everyEnded({ sessionId: uuidOf(900) })),
        ...store.recover(),
      };
    };
    const expected = everything();
    await store?.close();
    let noticed = 0;
    const check = async (at: number, bit: number): Promise<void> => {
      const damaged = Buffer.from(sound);
      damaged.writeUInt8(damaged.readUInt8(at) ^ (1 << bit), at);
      writeFileSync(path, damaged);
      rmSync(`${path}-wal`, { force: true });
      try {
        expect(everything()).toEqual({ ...expected, ordinal: expect.any(Number) });
      } catch (error) {
        if (!isStoreError(error)) throw error;
        expect(["damaged", "newer"]).toContain(error.storeErrorKind);
        noticed++;
      } finally {
        await store?.close();
        store = null;
      }
    };
    // The header, and then anywhere that is not zero: empty room is most of a small file.
    for (let at = 0; at < 100; at++) await check(at, at % 8);
    const used = [...sound.keys()].filter((at) => sound[at] !== 0);
    await fc.assert(
      fc.asyncProperty(fc.constantFrom(...used), fc.nat(7), async (at, bit) => check(at, bit)),
      { numRuns: 150 },
    );
    expect(noticed).toBeGreaterThan(100);
  });
});

const other: Migration = { version: 1, apply: (db) => db.run("CREATE TABLE something (else_ TEXT)") };

describe("migrations", () => {
  const second: Migration = {
    version: 2,
    apply: (db) => db.run("ALTER TABLE tasks ADD COLUMN note TEXT NOT NULL DEFAULT 'old'"),
  };

  test("go forward in one transaction each, after a copy of the file was made", async () => {
    await filled();
    const store = open({ migrations: [...migrations, second] });
    expect(store.recover().live).toHaveLength(4);
    expect(statSync(`${path}.v1.bak`).mode & 0o777).toBe(0o600);
    await store.close();
    expect(refusalOf(() => open()).kind).toBe("newer");
    // The copy takes its place, as the message says.
    copyFileSync(`${path}.v1.bak`, path);
    expect(open().recover().live).toHaveLength(4);
  });

  test("one that fails changes nothing; the copy is made again at the next try", async () => {
    await filled();
    const broken: Migration = {
      version: 3,
      apply: (db) => {
        db.run("DELETE FROM tasks");
        db.run("INSERT INTO nowhere VALUES (1)");
      },
    };
    expect(() => open({ migrations: [...migrations, second, broken] })).toThrow("nowhere");
    expect(open({ migrations: [...migrations, second] }).recover().live).toHaveLength(4);
  });
});

describe("room", () => {
  const big = { input: { kind: "prompt", prompt: "x".repeat(20_000) } } as const;

  test("a full disk refuses the whole batch; once there is room it goes on (ORCHD-DUR-3)", async () => {
    const store = open({ pagesMax: 60 });
    let stored = 0;
    const refusal = refusalOf(() => {
      for (;;) {
        store.write([admit(stored + 1, big)]);
        stored++;
      }
    });
    expect(refusal.kind).toBe("full");
    expect(stored).toBeGreaterThan(3);
    const session: StoreOp = { kind: "session_saved", session: storedSession(1) };
    expect(refusalOf(() => store.write([session, admit(100), admit(101, big)])).kind).toBe("full");
    expect(store.find(uuidOf(100))).toBeNull();
    await store.synced();
    store.write([end(1), end(2)]);
    expect(store.prune(101, 10)).toBe(2);
    store.write([admit(200, big)]);
    await store.close();
    const { live, sessions } = open().recover();
    expect(live.map(({ ordinal }) => ordinal)).toEqual([
      ...Array.from({ length: stored - 2 }, (_, at) => at + 3),
      200,
    ]);
    expect(sessions).toEqual([]);
  });

  test("pruning gives pages back, a bounded number at a time", async () => {
    const store = open();
    store.write(Array.from({ length: 100 }, (_, at) => admit(at + 1, big)));
    store.write(Array.from({ length: 100 }, (_, at) => end(at + 1)));
    await store.close();
    const before = statSync(path).size;
    const again = open();
    expect(again.prune(101, 40)).toBe(40);
    expect(again.prune(101, 40)).toBe(40);
    expect(again.prune(101, 40)).toBe(20);
    await again.close();
    const after = statSync(path).size;
    expect(after).toBeLessThan(before / 2);
    expect(before - after).toBeLessThanOrEqual(3 * limits.storeGiveBackPagesMax * 4096);
  });

  test("the log stays bounded, whether or not anybody asks for a sync", async () => {
    for (const durability of ["power", "process"] as const) {
      const store = open({ durability });
      let ordinal = store.recover().ordinal;
      for (let round = 0; round < 12; round++) {
        store.write(Array.from({ length: 100 }, () => admit(++ordinal, big)));
        // Twelve times two megabytes: after each a turn of the event loop in which the store may tidy up.
        await new Promise((resolve) => setImmediate(resolve));
        expect(statSync(`${path}-wal`).size).toBeLessThan(limits.storeWalBytes + 4_000_000);
      }
      await store.close();
    }
    expect(open().recover().live).toHaveLength(2400);
  });
});

describe("promises", () => {
  test("a log that somebody removed is not taken for durable, and nothing more is accepted", async () => {
    const store = open();
    store.write([admit(1)]);
    await store.synced();
    unlinkSync(`${path}-wal`);
    store.write([admit(2)]);
    const failure = await store.synced().catch((error: unknown) => error);
    expect(isStoreError(failure) && failure.storeErrorKind).toBe("io");
    expect(refusalOf(() => store.write([admit(3)])).kind).toBe("io");
    expect(await store.synced().catch((error: unknown) => error)).toBe(failure);
  });

  test("what could not be read back is not written", () => {
    const endless = {
      ...storedTask(1),
      promise: { ...storedTask(1).promise, endMs: Number.POSITIVE_INFINITY },
    };
    const store = open();
    expect(() => store.write([{ kind: "task_admitted", task: endless }])).toThrow("/promise/endMs");
    expect(store.find(uuidOf(1))).toBeNull();
  });

  test("a list reads one range of one index, whatever it is filtered by", async () => {
    await open().close();
    const db = new Database(path, { readonly: true });
    const { ended, endedOfKey, endedOfSession, byId, prune } = prepareStatements(db);
    const plan = (statement: Statement, values: number): string =>
      db
        .query(`EXPLAIN QUERY PLAN ${statement.toString()}`)
        .all(...Array.from({ length: values }, () => 1))
        .map((row) => (row as { detail: string }).detail)
        .join("; ");
    const search = (index: string, columns: string) => `SEARCH tasks USING INDEX ${index} (${columns})`;
    expect(plan(ended, 3)).toBe(search("tasks_ended", "state=? AND ordinal<?"));
    expect(plan(endedOfKey, 4)).toBe(search("tasks_of_key", "key_id=? AND state=? AND ordinal<?"));
    expect(plan(endedOfSession, 5)).toBe(
      search("tasks_of_session", "session_id=? AND state=? AND ordinal<?"),
    );
    expect(plan(byId, 1)).toBe(search("sqlite_autoindex_tasks_1", "task_id=?"));
    expect(plan(prune, 2)).toContain("USING COVERING INDEX tasks_finished (finished_ms<?)");
    db.close();
  });
});
