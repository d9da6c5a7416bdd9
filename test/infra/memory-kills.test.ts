/** The kernel's counts of processes that it ended for memory, in folders that look like /proc and /sys. */
import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { MemoryKills } from "../../src/infra/memory-kills.ts";

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "orchd-kills-"));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

function put(path: string, text: string): void {
  mkdirSync(dirname(join(root, path)), { recursive: true });
  writeFileSync(join(root, path), text);
}

const counts: [where: string, groups: string, file: string, text: (n: number) => string][] = [
  [
    "the group, unified",
    "0::/system.slice/orchestratord.service\n",
    "sys/fs/cgroup/system.slice/orchestratord.service/memory.events",
    (n) => `low 0\nhigh 3\nmax 9\noom ${n + 5}\noom_kill ${n}\noom_group_kill 0\n`,
  ],
  [
    "the group, by controller",
    "4:cpu,memory:/docker/abc\n1:name=systemd:/x\n",
    "sys/fs/cgroup/memory/docker/abc/memory.oom_control",
    (n) => `oom_kill_disable 0\nunder_oom 0\noom_kill ${n}\n`,
  ],
  ["the machine", "0::/\n", "proc/vmstat", (n) => `nr_free_pages 7\noom_kill ${n}\nthp_migration_fail 0\n`],
];
for (const [where, groups, file, text] of counts)
  test(`counted by ${where}: each kill explains one end`, () => {
    put("proc/self/cgroup", groups);
    // Others than ours are not looked at where the group counts.
    put("proc/vmstat", "oom_kill 1000\n");
    put(file, text(3));
    const kills = new MemoryKills(root);
    expect(kills.explainsOne()).toBe(false);
    put(file, text(5));
    expect([kills.explainsOne(), kills.explainsOne(), kills.explainsOne()]).toEqual([true, true, false]);
    put(file, text(6));
    kills.note();
    expect(kills.explainsOne()).toBe(false);
  });

test("where nobody counts, nothing is said", () => {
  const kills = new MemoryKills(root);
  expect(kills.explainsOne()).toBeNull();
  put("proc/vmstat", "nr_free_pages 7\n");
  expect(kills.explainsOne()).toBeNull();
  put("proc/vmstat", "oom_kill 4\n");
  // What was counted before the first look is not known.
  expect([kills.explainsOne(), kills.explainsOne()]).toEqual([null, false]);
});
