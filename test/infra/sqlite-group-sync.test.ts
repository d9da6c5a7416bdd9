/** Group syncs over a disk that answers when it is told to. */
import { describe, expect, test } from "bun:test";
import { GroupSync } from "../../src/infra/sqlite/group-sync.ts";
import { StoreError } from "../../src/ports/task-store.ts";

class Disk {
  readonly running: ((failure: StoreError | null) => void)[] = [];
  readonly quiet: boolean[] = [];
  starts = 0;
  readonly sync = new GroupSync(
    (done) => {
      this.starts++;
      this.running.push(done);
    },
    (again) => this.quiet.push(!again),
  );

  end(failure: StoreError | null = null): void {
    const done = this.running.shift();
    if (done === undefined) throw new Error("no sync runs");
    done(failure);
  }

  /** Settled and in order, as seen by the callers. */
  request(name: string, log: string[]): Promise<void> {
    return this.sync.request().then(
      () => void log.push(name),
      () => void log.push(`${name} failed`),
    );
  }
}

describe("group sync", () => {
  test("nothing written: nothing to wait for", async () => {
    const disk = new Disk();
    await disk.sync.request();
    expect(disk.starts).toBe(0);
  });

  test("a write that came after a sync began is not served by it", async () => {
    const disk = new Disk();
    const log: string[] = [];
    disk.sync.noteWrite();
    const first = disk.request("first", log);
    // Nothing new since it began: it serves this one as well.
    const also = disk.request("also", log);
    disk.sync.noteWrite();
    const second = disk.request("second", log);
    const third = disk.request("third", log);
    expect(disk.running).toHaveLength(1);
    disk.end();
    await Promise.all([first, also]);
    expect(log).toEqual(["first", "also"]);
    expect(disk.starts).toBe(2);
    disk.end();
    await Promise.all([second, third]);
    expect(log).toEqual(["first", "also", "second", "third"]);
    expect(disk.starts).toBe(2);
    expect(disk.quiet).toEqual([false, true]);
    await disk.sync.request();
    expect(disk.starts).toBe(2);
  });

  test("a failed sync fails whoever waits and whoever comes later", async () => {
    const disk = new Disk();
    const log: string[] = [];
    disk.sync.noteWrite();
    const first = disk.request("first", log);
    disk.sync.noteWrite();
    const second = disk.request("second", log);
    disk.end(new StoreError("io", "the disk is gone"));
    await Promise.all([first, second, disk.request("third", log)]);
    expect(log.sort()).toEqual(["first failed", "second failed", "third failed"]);
    expect(disk.starts).toBe(1);
    expect(disk.sync.failure?.storeErrorKind).toBe("io");
  });
});
